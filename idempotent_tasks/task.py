"""`IdempotentTask`: the Celery task class whose body runs under a claim."""

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextvars import ContextVar
from types import MappingProxyType
from typing import Any, ClassVar, Final

from celery import Task
from celery.exceptions import Ignore, Reject
from kombu.exceptions import OperationalError

from idempotent_tasks.core.declaration import check_declaration, uncallable
from idempotent_tasks.core.delivery import (
    KEY_HEADER,
    KEY_OPTION,
    chord_with_key,
    explicit_key,
    id_text,
    inherited_headers,
    read_delivery,
)
from idempotent_tasks.core.encoding import JSON, NONE, PICKLE
from idempotent_tasks.core.keys import check_explicit_key
from idempotent_tasks.core.lease import RunContext
from idempotent_tasks.core.policy import Idempotency
from idempotent_tasks.core.store import ParkingStore
from idempotent_tasks.errors import ConfigurationError
from idempotent_tasks.messaging.handler import NEVER_FINAL, handle
from idempotent_tasks.messaging.publish import publication_of, reserve_for_retry
from idempotent_tasks.messaging.request_state import RequestState, state_of
from idempotent_tasks.messaging.unguarded import UnguardedRun, disabled_run
from idempotent_tasks.settings import Settings, codec_of, settings_of

__all__ = ["IdempotentTask", "guarded_tasks"]

#: Marks a ``__call__`` that goes through the guard; a wrapper made with ``functools.wraps`` has the mark too.
_GUARDING: Final = "__idempotency_guarding__"
#: The positional parameters of ``celery.app.task.Task.apply_async`` after the task id.
_POSITIONAL: Final = ("producer", "link", "link_error", "shadow")
#: The runs of the enclosing bodies by task, for other threads: Celery's request stack is the body's own thread's.
_runs: ContextVar[Mapping["IdempotentTask", RunContext | UnguardedRun]] = ContextVar(
    "idempotency_runs", default=MappingProxyType({})
)


class IdempotentTask(Task):
    """A Celery task whose body runs under a claim: ``@app.task(base=IdempotentTask)``.

    ``idempotency=`` takes an `Idempotency` or a mapping of its fields.  A delivery whose key has an outcome returns the
    stored result; one whose key is running waits its turn.  Called directly, the task is a plain function.
    """

    #: A lost worker must not take the only copy of the message with it.
    acks_late = True
    reject_on_worker_lost = True
    Request = "idempotent_tasks.worker.request:GuardedRequest"

    #: What the task declared.
    idempotency_policy: ClassVar[Idempotency] = Idempotency()
    _resolved: tuple[Settings, Idempotency] | None = None
    _signature: inspect.Signature | None = None

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Take ``idempotency=`` as the policy, and remove it: in a body, `idempotency` is the run context.

        Raises:
            ConfigurationError: the body is a coroutine function, the policy is wrong, or it does not fit the body.
        """
        super().__init_subclass__(**kwargs)
        if inspect.iscoroutinefunction(cls.run) or inspect.isasyncgenfunction(cls.run):
            msg = (
                f"the body of {cls.__name__} is an async function, which Celery calls and never awaits: "
                "make it a plain one, and let it call asyncio.run()"
            )
            raise ConfigurationError(msg)
        cls._adopt_policy()

    @classmethod
    def on_bound(cls, app: Any) -> None:
        """Take ``idempotency`` from ``task_annotations`` too, which Celery applies when it binds a task."""
        super().on_bound(app)
        cls._adopt_policy()
        cls.keep_guard_outermost()

    @classmethod
    def keep_guard_outermost(cls) -> None:
        """Guard any ``__call__`` that a subclass or mixin defines (an application context, a tracer).

        It runs inside the guard, once for each run of the body.

        Raises:
            ConfigurationError: it is a coroutine function.
        """
        first = next(each for each in cls.__mro__ if "__call__" in vars(each))
        called = vars(first)["__call__"]
        if inspect.iscoroutinefunction(called):
            raise ConfigurationError(f"{first.__qualname__}.__call__ is an async function, which Celery never awaits")
        if first is not IdempotentTask and not hasattr(called, _GUARDING):
            cls.__call__ = _guarding(called)  # type: ignore[method-assign]

    @classmethod
    def _adopt_policy(cls) -> None:
        """Make the nearest declaration, of the class or a base of it, the policy; check it against the body."""
        policy = Idempotency.of(next(_declarations(cls), cls.idempotency_policy))
        if policy is not cls.idempotency_policy:
            cls.idempotency_policy = policy
        if not isinstance(cls.idempotency, property):
            cls.idempotency = IdempotentTask.idempotency  # type: ignore[method-assign]
        if cls.run is not Task.run and not vars(cls).get("abstract"):
            check_declaration(policy, _body_signature(cls), cls.name or cls.__name__)

    @property
    def idempotency(self) -> RunContext | UnguardedRun:
        """The run context of the current body: its keys, ``fence``, ``run``, ``rerun``, ``attempt``, ``lost``.

        Also in another thread that runs in the body's `contextvars` context, as with ``asyncio.to_thread()``.
        """
        request = self.request_stack.top
        if request is None:
            return _runs.get().get(self) or UnguardedRun()
        state = state_of(request)
        if state.run is None and request.called_directly:
            # The same for the whole call: a step may have a transaction in it.
            state.run = UnguardedRun()
        return state.run or UnguardedRun()

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the task: guarded where a worker or ``apply`` delivers it, as a plain function where code calls it."""
        try:
            return self._guard(self._call_past_guard, args, kwargs, plain=super().__call__)
        except Ignore as ignored:
            if self.request.called_directly:
                raise
            # Celery formats each frame, which takes longer than publishing a deferred copy, and shows it to nobody.
            raise ignored.with_traceback(None) from None

    def _call_past_guard(self, *args: Any, **kwargs: Any) -> Any:
        """Run the body as the next class in the method resolution order that defines ``__call__`` does."""
        classes = type(self).__mro__
        following = classes[classes.index(IdempotentTask) + 1 :]
        if next(each for each in following if "__call__" in vars(each)) is not Task:
            return super().__call__(*args, **kwargs)
        # Celery's own pushes a new request or not, depending on celery.app.trace's stack protection.
        return self.run(*args, **kwargs)

    def _guard(
        self, call: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any], *, plain: Callable[..., Any]
    ) -> Any:
        """Run ``call`` as a delivery's guarded body; ``plain`` if called directly, ``call`` if already in the body."""
        request = self.request_stack.top
        if request is None or request.called_directly:
            return plain(*args, **kwargs)
        state = state_of(request)
        if state.received:
            return call(*args, **kwargs)
        state.received = True
        settings = settings_of(self.app)
        if settings.disabled:
            disabled = disabled_run(self, settings, request, tuple(args), kwargs)
            declared = self.idempotency_policy.over(settings.defaults)
            if declared.receipts is not None:
                declared = declared.imported()
            return disabled.perform(
                lambda run: self._run_body(state, run, call, args, kwargs), declared, settings, self.name
            )
        delivery = read_delivery(self.name, request, tuple(args), kwargs)
        policy = self.policy_under(settings)
        recover: Any = policy.recover
        return handle(
            self,
            delivery,
            policy,
            settings,
            lambda run: self._run_body(state, run, call, args, kwargs),
            ask=lambda run, record: self._run_body(state, run, recover, (record, *args), kwargs),
        )

    def apply_async(
        self,
        args: Any = None,
        kwargs: Any = None,
        task_id: Any = None,
        *positional: Any,
        idempotency_key: str | None = None,
        **options: Any,
    ) -> Any:
        """Publish the task; see ``celery.app.task.Task.apply_async``, and ``at_publish`` of `Idempotency`.

        Args:
            idempotency_key: the key of this call, 1 to 255 printable characters, instead of the task's own.

        Raises:
            KeyEncodingError: the key is something else.
            MissingKeyError: the key is empty.
            DuplicateError: the key has a task already (``at_publish="raise"``).
            PayloadMismatchError: it has one with another payload.
            StoreError: the store is unavailable (``on_store_error="raise"``).
            ConfigurationError: the key was given to a whole chord, and so to its body too; it names one call.
        """
        self._with_key(options, idempotency_key)
        publish = super().apply_async
        request = self.request_stack.top
        task_id = None if task_id is None else id_text(task_id)
        if request is not None and task_id is not None and task_id == id_text(request.id):
            run = _hand_over(request, "Retry")
            if run is not None:
                reserve_for_retry(self, run.claim.request, options)
            return publish(args, kwargs, task_id, *positional, **options)
        # At the first member, before any is published: a retry or a deferred copy was published before.
        self.refuse_chords_key(explicit_key(options), options.get("chord"), options.get("chain"))
        given = {**dict(zip(_POSITIONAL, positional, strict=False)), **options}
        publication = publication_of(self, args, kwargs, task_id, given)
        if publication is None:
            return publish(args, kwargs, task_id, *positional, **options)
        reserved_id = publication.request.task_id
        return publication.send(lambda: publish(args, kwargs, reserved_id, *positional, **options))

    def apply(
        self, args: Any = None, kwargs: Any = None, *positional: Any, idempotency_key: str | None = None, **options: Any
    ) -> Any:
        """Run the task in this process, guarded; see ``celery.app.task.Task.apply`` and `apply_async`."""
        self._with_key(options, idempotency_key)
        return super().apply(args, kwargs, *positional, **options)

    def retry(self, *args: Any, **options: Any) -> Any:
        """Retry the task; see ``celery.app.task.Task.retry``.

        The key is released before the message is published, so that the retry never meets its own claim.  If the
        broker does not take the message, this delivery goes back to its queue instead of being dropped.
        """
        try:
            return super().retry(*args, **options)
        except Reject as reject:
            if isinstance(reject.reason, OperationalError | OSError):
                raise Reject(reject.reason, requeue=True) from reject
            raise

    def on_replace(self, sig: Any) -> Any:
        """Release the key, then publish what replaces this task (``celery.app.task.Task.replace``)."""
        _hand_over(self.request, "Replaced")
        return super().on_replace(sig)

    def signature_from_request(self, request: Any = None, *args: Any, **options: Any) -> Any:
        """Return the signature that repeats a request, with its explicit key and without private headers."""
        request = self.request if request is None else request
        signature = super().signature_from_request(request, *args, **options)
        headers = inherited_headers(request, signature.options.get("headers") or {})
        # An option, too: a subclass's apply_async may replace the headers.
        if KEY_HEADER in headers:
            signature.options.setdefault(KEY_OPTION, headers[KEY_HEADER])
        return signature.set(headers=headers)

    @property
    def run_signature(self) -> inspect.Signature:
        """The signature of the body, without ``self``."""
        if self._signature is None:
            self._signature = inspect.signature(self.run)
        return self._signature

    def policy_under(self, settings: Settings) -> Idempotency:
        """Return the task's policy with the app's defaults, and import what it names.

        Raises:
            ConfigurationError: a name cannot be imported, the app does not accept the codec, its store cannot park,
                ``recover`` takes other arguments, or ``store_failures`` has exceptions that are never final.
        """
        if self._resolved is None or self._resolved[0] is not settings:
            policy = self.idempotency_policy.over(settings.defaults).imported()
            if "codec" not in policy.given and policy.powertools is False:
                policy = policy.over({"codec": codec_of(self.app.conf, self.serializer)})
            self._check(policy, settings)
            self._resolved = (settings, policy)
        return self._resolved[1]

    def _check(self, policy: Idempotency, settings: Settings) -> None:
        never = [each.__name__ for each in policy.final_errors if issubclass(each, NEVER_FINAL)]
        msg = None
        if policy.codec == PICKLE and not settings.accepts_pickle:
            msg = (
                "codec='pickle' is what the app does not accept: who can write a record could run code here; "
                "use 'json', or add 'pickle' to app.conf.result_accept_content"
            )
        elif policy.codec not in (JSON, NONE, *settings.accepted):
            msg = f"codec={policy.codec!r} is what the app does not accept; add it to app.conf.result_accept_content"
        elif policy.parks and not isinstance(settings.store, ParkingStore):
            msg = (
                f"a {type(settings.store).__name__} has no park() and keep_message(), which on_rerun= and recover= need"
            )
        elif (unfit := uncallable(policy, self.run_signature)) is not None:
            msg = unfit
        elif never:
            msg = f"store_failures has {never}, which are about a message, a claim or a process, and never final"
        if msg is not None:
            raise ConfigurationError(msg, self.name)

    def _with_key(self, options: dict[str, Any], idempotency_key: str | None) -> None:
        if idempotency_key is not None:
            key = check_explicit_key(idempotency_key, self.name)
            options["headers"] = {**(options.get("headers") or {}), KEY_HEADER: key}

    def refuse_chords_key(self, key: object, chord: Any, chain: Any) -> None:
        """Reject a member's key that was given to the whole chord, and so to its body too; a key names one call.

        Celery passes the options of a chord to each member of its header and to its body.  If the body is another
        guarded task, or unknown here, it may have been given the member's key on purpose.

        Args:
            key, chord, chain: as for `idempotent_tasks.core.delivery.chord_with_key`.

        Raises:
            ConfigurationError: the body is this task too, or is not guarded.
        """
        body = chord_with_key(key, chord, chain)
        # Not `tasks`, which would finalise the app.
        known = None if body is None else self.app._tasks.get(body.get("task"))  # noqa: SLF001
        if known is not None and (known is self or not isinstance(known, IdempotentTask)):
            msg = (
                "idempotency_key was given to a whole chord, which hands it to each member and to the body, "
                f"{known.name!r}; a key names one call: give each its own, .set(idempotency_key=...)"
            )
            raise ConfigurationError(msg, self.name)

    def _run_body(
        self,
        state: RequestState,
        run: RunContext | UnguardedRun,
        call: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
    ) -> Any:
        state.run = run
        token = _runs.set({**_runs.get(), self: run})
        try:
            return call(*args, **kwargs)
        finally:
            _runs.reset(token)
            state.run = None


def guarded_tasks(app: Any) -> list[IdempotentTask]:
    """Return the guarded tasks of an app; finalises it."""
    return [task for task in app.tasks.values() if isinstance(task, IdempotentTask)]


def _declarations(cls: type) -> Iterator[Any]:
    """Yield the policies that a class and its bases declare, as they stand there, the nearest one first."""
    for each in cls.__mro__:
        # A mixin may declare one too, on either side of IdempotentTask among the bases.
        own = {} if each is IdempotentTask else vars(each)
        declared = (own[name] for name in ("idempotency", "idempotency_policy") if name in own)
        # The property is the run context.
        yield from (value for value in declared if not isinstance(value, property))


def _body_signature(cls: type[IdempotentTask]) -> inspect.Signature | None:
    """Return the signature of a class's body without ``self``; None if it has none."""
    run = inspect.getattr_static(cls, "run")
    try:
        return inspect.signature(run.__get__(object(), cls) if hasattr(run, "__get__") else run)
    except (TypeError, ValueError):
        return None


def _hand_over(request: Any, reason: str) -> RunContext | None:
    """Release the key of the run that a request has, and return that; None where there is none."""
    run = state_of(request).run
    if not isinstance(run, RunContext):
        return None
    run.hand_over(reason)
    return run


def _guarding(called: Any) -> Callable[..., Any]:
    """Return a guarded ``__call__`` whose body is another class's ``__call__``."""

    def __call__(self: IdempotentTask, *args: Any, **kwargs: Any) -> Any:  # noqa: N807 - it becomes the method
        call = called.__get__(self, type(self)) if hasattr(called, "__get__") else called
        return self._guard(call, args, kwargs, plain=call)

    setattr(__call__, _GUARDING, True)
    return __call__
