"""Publishing with a reservation (``at_publish``): reserve the message's key, or find the task that has it.

What Celery publishes on behalf of another task, and what another task waits for, is always published.
"""

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, Final

from celery.utils import uuid
from celery.utils.time import maybe_make_aware
from kombu import serialization

from idempotent_tasks import events
from idempotent_tasks.core.delivery import DEFERRALS_HEADER, KEY_HEADER, Delivery, is_grouped
from idempotent_tasks.core.policy import Idempotency, seconds
from idempotent_tasks.core.processes import this_process
from idempotent_tasks.core.records import (
    Busy,
    Claim,
    ClaimAnswer,
    ClaimRequest,
    Finished,
    Granted,
    Mismatch,
    Parked,
    Record,
    Status,
    Unanswered,
    is_reservation,
    reservation_owner,
    reservation_seconds,
)
from idempotent_tasks.core.retry import Deadline, RetryingStore
from idempotent_tasks.errors import DuplicateError, MissingKeyError, PayloadMismatchError
from idempotent_tasks.messaging.claim_request import claim_request
from idempotent_tasks.messaging.result_backend import ResultBackend
from idempotent_tasks.settings import Settings, settings_of

__all__ = ["Publication", "publication_of", "reserve_for_retry"]

logger = logging.getLogger("idempotent_tasks")

#: Seconds for which a reservation is retried while the store is unavailable and a caller waits.
PUBLISH_RETRY_SECONDS: Final = 1.0
#: The reason with which a reservation is released whose message the broker did not take.
NOT_PUBLISHED: Final = "NotPublished"
#: Options with which a task or result object waits for this very message: links, parts of chains, groups and chords,
#: replacements, and frozen signatures (``celery.canvas.Signature.freeze``).
AWAITED: Final = ("chain", "chord", "link", "link_error", "group_id", "parent_id", "reply_to", "root_id")


@dataclass(frozen=True, kw_only=True)
class Publication:
    """A message to publish, and the reservation to request for its key."""

    #: The bound Celery task.
    task: Any
    policy: Idempotency
    settings: Settings
    #: For the reservation.
    request: ClaimRequest
    #: Whether something waits for this very message, so that no other task can replace it.
    awaited: bool
    #: When the message expires, in epoch milliseconds by the store's clock; None for never.
    wanted_until: int | None
    #: Whether the caller asks for a result that the task does not keep by default.
    wants_result: bool
    #: Whether the result of a task that is joined becomes a child of the publishing body's task.
    add_to_parent: bool

    def send(self, publish: Callable[[], Any]) -> Any:
        """Publish, or join the task that has the key; return the result object of the one or the other.

        Args:
            publish: publishes the message under the reservation's task id, and returns its result object.

        Raises:
            DuplicateError: the key has a task (``at_publish="raise"``).
            PayloadMismatchError: the key has a task with another payload.
            StoreError: the store is unavailable (``on_store_error="raise"``).
        """
        answer: ClaimAnswer | Unanswered | None = None
        try:
            answer = self._reserve()
            return self._follow(answer, publish)
        except BaseException:
            # For example a soft time limit of the publishing body, or a broker that refuses the message.
            self._withdraw(answer)
            raise

    def _follow(self, answer: ClaimAnswer | Unanswered, publish: Callable[[], Any]) -> Any:
        match answer:
            case Granted():
                self._emit(events.Reserved, seconds=self.request.lease_seconds)
            case Unanswered(error) if self.policy.on_store_error == "raise":
                raise error
            case Unanswered(error):
                logger.warning("%s[%s] is published unreserved: %s", self.request.task, self.request.task_id, error)
                self._emit(events.Unreserved, reason=type(error).__name__)
            case Mismatch() if not self.awaited:
                self._emit(events.Mismatched)
                raise PayloadMismatchError(task=self.request.task, key=self.request.key)
            case Finished(holder) | Busy(_, holder) | Parked(holder) if not self.awaited and self._can_replace(holder):
                return self._join(holder)
        return publish()

    def _reserve(self) -> ClaimAnswer | Unanswered:
        store = RetryingStore(store=self.settings.store_under(self.policy), observe=self.settings.observe)
        return store.claim(self.request, PUBLISH_RETRY_SECONDS)

    def _join(self, holder: Record) -> Any:
        if self.policy.at_publish == "raise":
            self._emit(events.Refused, holder_task_id=holder.task_id)
            state = "waits or runs" if holder.status is Status.INPROGRESS else "is done"
            state = state if holder.parked_at is None else "is parked"
            msg = f"not published: task {holder.task_id or 'of another writer'} has this key and {state}"
            raise DuplicateError(msg, self.request.task, self.request.key, holder.task_id)
        self._emit(events.Joined, holder_task_id=holder.task_id)
        result = self.task.AsyncResult(holder.task_id)
        parent = self.task.app.current_worker_task
        if parent is not None and self.add_to_parent:
            parent.add_trail(result)
        return result

    def _can_replace(self, holder: Record) -> bool:
        """Return whether the task that has the key can stand in for this message: the caller may join it or be refused.

        Otherwise the message is published under its own id, and its delivery waits for the outcome, or runs.
        """
        if holder.free:
            # Its run has ended without an outcome, and the key is not to be granted yet.
            return False
        if self.policy.at_publish == "raise":
            return holder.status is not Status.INPROGRESS or not self._is_revoked(holder)
        if holder.task_id is None or self.wants_result:
            # Another writer's record names no task to wait for.
            return False
        until = holder.stands_in_until
        if is_reservation(holder) and until is not None and (self.wanted_until is None or until < self.wanted_until):
            return False
        return not self._is_revoked(holder)

    def _is_revoked(self, holder: Record) -> bool:
        return holder.task_id is not None and this_process().own(ResultBackend).is_revoked(self.task, holder.task_id)

    def _withdraw(self, answer: ClaimAnswer | Unanswered | None) -> None:
        """Release what the store has granted, or may have, in one try, after which it is left to expire.

        Nobody may join a task that is not published.  If the broker has the message all the same and its delivery runs,
        that owns the key by now.
        """
        match answer:
            case Granted(claim):
                pass
            case None | Unanswered():
                claim = Claim.unseen(self.request)
            case _:
                return
        clock = self.settings.store.clock
        deadline = Deadline(clock, clock.monotonic() + PUBLISH_RETRY_SECONDS)
        # No event: no claim has ended.
        store = RetryingStore(store=self.settings.store, observe=lambda _: None, deadline=deadline)
        # ``crashed`` keeps the count of former deliveries' crashes.
        store.withdraw(claim, NOT_PUBLISHED, crashed=True, began=True)

    def _emit(self, kind: type[events.Event], **details: Any) -> None:
        self.settings.observe(kind.about(self.request, **details))


def publication_of(
    task: Any, args: Any, kwargs: Any, task_id: str | None, options: Mapping[str, Any]
) -> Publication | None:
    """Return the publication of a call of ``task.apply_async``; None where it needs no reservation.

    It needs none under ``at_publish="send"``, for a retry or a deferred copy, where the key is the id that a new
    task is about to get, and where the call runs in this process.

    Args:
        task: the bound Celery task.
        args, kwargs, task_id: as for ``apply_async``.
        options: its other arguments.

    Raises:
        ConfigurationError: a setting of the app is wrong.
        MissingKeyError, KeyEncodingError, TypeError: as `idempotent_tasks.core.keys.record_key`.
        kombu.exceptions.EncodeError: the arguments cannot be sent.
    """
    conf = task.app.conf
    declared = task.idempotency_policy.given.get("at_publish") or conf.get("idempotency_at_publish") or "send"
    headers = options.get("headers") or {}
    if declared == "send" or conf.task_always_eager or options.get("retries") or DEFERRALS_HEADER in headers:
        return None
    settings = settings_of(task.app)
    policy = task.policy_under(settings)
    is_new = task_id is None and policy.key is None and KEY_HEADER not in headers
    if settings.disabled or is_new:
        return None
    merged = {**task._get_exec_options(), **options}  # noqa: SLF001 - as apply_async itself does
    sent_args, sent_kwargs = _as_delivered(task, args, kwargs, merged)
    delivery = Delivery(
        task=task.name,
        task_id=task_id or uuid(),
        args=sent_args,
        kwargs=sent_kwargs,
        explicit_key=headers.get(KEY_HEADER),
        grouped=is_grouped(merged.get("group_id"), merged.get("chain")),
    )
    try:
        request = claim_request(delivery, policy, task.run_signature)
    except MissingKeyError:
        if policy.missing_key == "raise":
            raise
        return None
    return Publication(
        task=task,
        policy=policy,
        settings=settings,
        request=_reservation(request, task, policy, settings, merged),
        wanted_until=_wanted_until(task.app, settings, merged),
        wants_result=options.get("ignore_result") is False and task.ignore_result,
        awaited=any(merged.get(name) for name in AWAITED),
        add_to_parent=merged.get("add_to_parent", True),
    )


def reserve_for_retry(task: Any, request: ClaimRequest, options: Mapping[str, Any]) -> None:
    """Reserve the key of a run for its own retry, which is about to be published; does nothing under ``"send"``.

    The run has released its key.  If the store does not answer, or another delivery claims the key at that moment, the
    retry is published all the same, and waits its turn.

    Args:
        task: the bound Celery task.
        request: the claim request of the run.
        options: those of the retry's message.
    """
    settings = settings_of(task.app)
    policy = task.policy_under(settings)
    if policy.at_publish == "send":
        return
    reservation = _reservation(request, task, policy, settings, {**task._get_exec_options(), **options})  # noqa: SLF001
    store = RetryingStore(store=settings.store, observe=settings.observe)
    match store.claim(reservation, PUBLISH_RETRY_SECONDS):
        case Granted():
            settings.observe(events.Reserved.about(reservation, seconds=reservation.lease_seconds))
        case Unanswered(error):
            settings.observe(events.Unreserved.about(reservation, reason=type(error).__name__))


def _reservation(
    request: ClaimRequest, task: Any, policy: Idempotency, settings: Settings, options: Mapping[str, Any]
) -> ClaimRequest:
    """Return the request that reserves a key, or its lock, for a message with these options."""
    app = task.app
    delay = _seconds_until(app, options.get("countdown") or options.get("eta")) or 0.0
    expires_in = _seconds_until(app, options.get("expires"))
    held = reservation_seconds(seconds(policy.reserve), delay, expires_in, seconds(policy.grace))
    # Nobody can wait for a result that the message ignores.
    is_ignored = options.get("ignore_result") and not task.ignore_result
    return replace(
        # A key with a lock is the task id's own, which no other message has.
        request.parts[-1],
        owner=reservation_owner(request.task_id),
        lease_seconds=held,
        # A producer may end once the broker has the message.
        process=None,
        stands_in_until=0 if is_ignored else _wanted_until(app, settings, options),
    )


def _wanted_until(app: Any, settings: Settings, options: Mapping[str, Any]) -> int | None:
    """Return when a message expires, in epoch milliseconds by the store's clock; None for never."""
    expires_in = _seconds_until(app, options.get("expires"))
    return None if expires_in is None else int((settings.store.clock.now() + expires_in) * 1000)


def _seconds_until(app: Any, moment: float | str | datetime | None) -> float | None:
    """Return the seconds until a moment as Celery takes it: seconds from now, a ``datetime``, or one in ISO 8601."""
    if moment is None or isinstance(moment, int | float):
        return moment
    at = datetime.fromisoformat(moment) if isinstance(moment, str) else moment
    until: float = (maybe_make_aware(at, app.timezone) - app.now()).total_seconds()
    return until


def _as_delivered(task: Any, args: Any, kwargs: Any, options: Mapping[str, Any]) -> tuple[tuple[Any, ...], Any]:
    """Return the arguments as the worker, which computes the key from them, will deserialize them."""
    serializer = options.get("serializer") or task.app.conf.task_serializer
    args, kwargs = args or (), kwargs or {}
    dump = getattr(task, "_dump_pydantic_arguments", None)
    if dump is not None and serializer != "pickle":
        args, kwargs = dump(args, kwargs)
    content_type, encoding, body = serialization.dumps((args, kwargs), serializer)
    sent_args, sent_kwargs = serialization.loads(body, content_type, encoding, accept=[content_type])
    return tuple(sent_args), sent_kwargs
