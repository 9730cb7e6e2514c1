"""`IdempotentTask`: a guard's verdict becomes a return value, a deferral, `Ignore` or an error of a Celery task."""

import inspect
import logging
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, Final
from uuid import uuid4

from celery import Task
from celery.exceptions import Ignore, Reject, SoftTimeLimitExceeded
from kombu.exceptions import OperationalError

from idempotent_tasks import deferral, events
from idempotent_tasks.delivery import KEY_HEADER, PRIVATE_HEADERS, Delivery, read_delivery
from idempotent_tasks.errors import InProgressError, MissingKeyError, StoreError
from idempotent_tasks.guard import ActiveRun, Guard, Interrupted, Replayed, Returned, Unclaimed, Verdict
from idempotent_tasks.keeper import Keeper, term_of
from idempotent_tasks.keys import check_explicit_key, check_prefix, payload_digest, record_key
from idempotent_tasks.policy import Idempotency, seconds
from idempotent_tasks.records import Busy, ClaimRequest
from idempotent_tasks.settings import Settings, settings_of

__all__ = ["IdempotentTask", "UnguardedRun"]

logger = logging.getLogger("idempotent_tasks")

#: Where a request holds the run of its body.
_RUN: Final = "idempotency_run"
_keeper: Final = Keeper()


@dataclass(frozen=True, slots=True)
class UnguardedRun:
    """``self.idempotency`` in a body that runs without a claim: called directly, or let through by a policy."""

    key: str | None = None
    fence: int = 0
    attempt: int = 0
    lost: bool = False


class IdempotentTask(Task):
    """A Celery task whose body runs under a claim: ``@app.task(base=IdempotentTask)``.

    ``idempotency=`` takes an `Idempotency` or a mapping of its fields.  A delivery whose key has an outcome gets the
    stored result; one whose key is running waits for its turn.  Called directly, the task is a plain function.
    """

    #: A lost worker must not take the only copy of the message with it.
    acks_late = True
    reject_on_worker_lost = True
    Request = "idempotent_tasks.request:GuardedRequest"

    #: What the task declared.
    idempotency_policy: ClassVar[Idempotency] = Idempotency()

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Take ``idempotency=`` as the policy, so that the name stays free for the run of a body."""
        super().__init_subclass__(**kwargs)
        cls._adopt_policy()

    @classmethod
    def on_bound(cls, app: Any) -> None:
        """Take ``idempotency`` from ``task_annotations`` too, which Celery applies when it binds a task."""
        super().on_bound(app)
        cls._adopt_policy()

    @classmethod
    def _adopt_policy(cls) -> None:
        if "idempotency" in vars(cls):
            cls.idempotency_policy = Idempotency.of(vars(cls)["idempotency"])
            del cls.idempotency

    @property
    def idempotency(self) -> ActiveRun | UnguardedRun:
        """The run of the current body: ``key``, ``fence``, ``attempt``, ``lost``."""
        run = vars(self.request).get(_RUN)
        return run if isinstance(run, ActiveRun | UnguardedRun) else UnguardedRun()

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the task: guarded where a worker or ``apply`` delivers it, as a plain function where code calls it."""
        request = self.request_stack.top
        if request is None or request.called_directly or _RUN in vars(request):
            return super().__call__(*args, **kwargs)
        delivery = read_delivery(self.name, request, args, kwargs)
        settings = settings_of(self.app)
        policy = self.idempotency_policy.over(settings.defaults)
        try:
            claim_request = self._claim_request(delivery, policy)
        except MissingKeyError as error:
            if policy.missing_key == "raise":
                raise
            logger.warning("%s[%s] runs unguarded: %s", self.name, delivery.task_id, error)
            return self._run_unguarded(args, kwargs, None)
        verdict = self._guard(settings, policy, delivery).run(claim_request, lambda run: self._body(run, args, kwargs))
        return self._act_on(verdict, delivery, policy, settings, claim_request)

    def apply_async(
        self,
        args: Any = None,
        kwargs: Any = None,
        task_id: str | None = None,
        *positional: Any,
        idempotency_key: str | None = None,
        **options: Any,
    ) -> Any:
        """Publish the task; see ``celery.app.task.Task.apply_async``.

        Args:
            idempotency_key: the key of this call, 1 to 255 printable characters, instead of the task's own.

        Raises:
            KeyEncodingError: the key is something else.
            MissingKeyError: the key is empty.
        """
        self._with_key(options, idempotency_key)
        request = self.request_stack.top
        run = vars(request).get(_RUN) if request is not None else None
        if isinstance(run, ActiveRun) and task_id is not None and task_id == request.id:
            run.hand_over("Retry")
        return super().apply_async(args, kwargs, task_id, *positional, **options)

    def apply(
        self, args: Any = None, kwargs: Any = None, *positional: Any, idempotency_key: str | None = None, **options: Any
    ) -> Any:
        """Run the task in this process, guarded; see ``celery.app.task.Task.apply`` and `apply_async`."""
        self._with_key(options, idempotency_key)
        return super().apply(args, kwargs, *positional, **options)

    def retry(self, *args: Any, **options: Any) -> Any:
        """Retry the task; see ``celery.app.task.Task.retry``.

        The key is released before the message is published, so that the retry never meets its own claim.  Where
        the broker does not take the message, this delivery goes back to its queue instead of being dropped.
        """
        try:
            return super().retry(*args, **options)
        except Reject as reject:
            if isinstance(reject.reason, OperationalError | OSError):
                raise Reject(reject.reason, requeue=True) from reject
            raise

    def on_replace(self, sig: Any) -> Any:
        """Release the key, then publish what replaces this task (``celery.app.task.Task.replace``)."""
        run = vars(self.request).get(_RUN)
        if isinstance(run, ActiveRun) and not self.request.is_eager:
            run.hand_over("Replaced")
        return super().on_replace(sig)

    def signature_from_request(self, request: Any = None, *args: Any, **options: Any) -> Any:
        """Return the signature that repeats a request, with its explicit key and without our private headers."""
        request = self.request if request is None else request
        signature = super().signature_from_request(request, *args, **options)
        kept = {**(request.headers or {}), **(signature.options.get("headers") or {})}
        own = {name: value for name, value in kept.items() if name == KEY_HEADER}
        headers = {**(signature.options.get("headers") or {}), **own}
        return signature.set(headers={name: each for name, each in headers.items() if name not in PRIVATE_HEADERS})

    @cached_property
    def _run_signature(self) -> inspect.Signature:
        return inspect.signature(self.run)

    def _with_key(self, options: dict[str, Any], idempotency_key: str | None) -> None:
        if idempotency_key is not None:
            key = check_explicit_key(idempotency_key, self.name)
            options["headers"] = {**(options.get("headers") or {}), KEY_HEADER: key}

    def _claim_request(self, delivery: Delivery, policy: Idempotency) -> ClaimRequest:
        signature = self._run_signature
        prefix = check_prefix(self.name) if policy.prefix is None else policy.prefix
        validate = policy.validate_selector
        return ClaimRequest(
            key=record_key(delivery, prefix, policy.key_selector, signature),
            owner=uuid4().hex,
            lease_seconds=term_of(policy, delivery.hard_limit_seconds).lease_seconds,
            retention_seconds=seconds(policy.expires),
            validation=None if validate is None else payload_digest(delivery, validate, signature),
            task=self.name,
            task_id=delivery.task_id,
            worker=delivery.worker,
        )

    def _guard(self, settings: Settings, policy: Idempotency, delivery: Delivery) -> Guard:
        term = term_of(policy, delivery.hard_limit_seconds)

        def keeping(run: ActiveRun) -> Any:
            return _keeper.keep(run, settings.store, term, settings.observe) if term.renewed else nullcontext()

        return Guard(
            store=settings.store,
            policy=policy,
            observe=settings.observe,
            keeping=keeping,
            interrupts=(SoftTimeLimitExceeded,),
        )

    def _body(self, run: ActiveRun | UnguardedRun, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        vars(self.request)[_RUN] = run
        try:
            return self.run(*args, **kwargs)
        finally:
            del vars(self.request)[_RUN]

    def _run_unguarded(self, args: tuple[Any, ...], kwargs: Mapping[str, Any], key: str | None) -> Any:
        return self._body(UnguardedRun(key), args, kwargs)

    def _act_on(
        self, verdict: Verdict, delivery: Delivery, policy: Idempotency, settings: Settings, request: ClaimRequest
    ) -> Any:
        match verdict:
            case Returned(value) | Replayed(value):
                return value
            case Busy(until):
                return self._on_busy(until, delivery, policy, settings, request)
            case Unclaimed(error):
                return self._on_store_error(error, delivery, policy, settings, request)
            case Interrupted(error):
                if delivery.eager:
                    raise error
                return self._defer(delivery, settings, request, None, type(error).__name__)

    def _on_busy(
        self, until: float, delivery: Delivery, policy: Idempotency, settings: Settings, request: ClaimRequest
    ) -> Any:
        if policy.on_busy == "skip":
            raise Ignore
        if policy.on_busy == "raise" or delivery.eager:
            msg = "another delivery with this key is running; its result will be stored under the key"
            raise InProgressError(msg, self.name, request.key, until)
        return self._defer(delivery, settings, request, until - settings.store.clock.now(), "busy")

    def _on_store_error(
        self, error: StoreError, delivery: Delivery, policy: Idempotency, settings: Settings, request: ClaimRequest
    ) -> Any:
        if policy.on_store_error == "run":
            logger.error("%s[%s] runs unguarded: %s", self.name, delivery.task_id, error)
            return self._run_unguarded(delivery.args, delivery.kwargs, request.key)
        if policy.on_store_error == "raise" or delivery.eager:
            raise error
        logger.error("%s[%s] is deferred: %s", self.name, delivery.task_id, error)
        return self._defer(delivery, settings, request, None, type(error).__name__)

    def _defer(
        self, delivery: Delivery, settings: Settings, request: ClaimRequest, claim_left: float | None, reason: str
    ) -> Any:
        timeout = deferral.visibility_timeout(self.app)
        countdown = deferral.countdown_seconds(delivery.deferrals, claim_left, timeout)
        try:
            deferral.publish_again(self, delivery, countdown)
        except Exception as error:
            logger.exception("%s[%s] cannot be deferred and goes back to its queue", self.name, delivery.task_id)
            raise Reject(error, requeue=True) from error
        settings.observe(
            events.Deferred(
                task=self.name,
                task_id=delivery.task_id,
                key=request.key,
                countdown_seconds=round(countdown, 3),
                reason=reason,
            )
        )
        raise Ignore
