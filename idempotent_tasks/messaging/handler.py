"""The handler of one delivery: the guard's verdict becomes a result, a deferral, ``Ignore``, ``Reject`` or an error."""

import logging
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any, Final, NoReturn

from celery.exceptions import (
    Ignore,
    SoftTimeLimitExceeded,
    TaskPredicate,
    Terminated,
    TimeLimitExceeded,
    WorkerLostError,
)

from idempotent_tasks import events
from idempotent_tasks.core.delivery import MOST_UNSEEN, UNSEEN_HEADER, Delivery
from idempotent_tasks.core.encoding import NONE
from idempotent_tasks.core.guard import (
    Failed,
    Guard,
    Interrupted,
    Replay,
    Replayed,
    Returned,
    Unclaimed,
    Unreadable,
    Verdict,
)
from idempotent_tasks.core.lease import Lease, RunContext, lease_terms
from idempotent_tasks.core.policy import Idempotency, seconds
from idempotent_tasks.core.processes import this_process
from idempotent_tasks.core.records import (
    Busy,
    Claim,
    ClaimRequest,
    Finished,
    Lost,
    Record,
    Released,
    Status,
    Superseded,
    Unanswered,
)
from idempotent_tasks.core.results import Results
from idempotent_tasks.core.retry import Deadline, RetryingStore
from idempotent_tasks.core.store import Store
from idempotent_tasks.errors import (
    IdempotencyError,
    InProgressError,
    MissingKeyError,
    PayloadMismatchError,
    ResultUnavailableError,
    StoreError,
)
from idempotent_tasks.messaging import callbacks
from idempotent_tasks.messaging.claim_request import claim_request, has_shared_key
from idempotent_tasks.messaging.confirms import confirm_publishes
from idempotent_tasks.messaging.deferral import Publisher
from idempotent_tasks.messaging.result_backend import ResultBackend
from idempotent_tasks.settings import Settings

__all__ = ["NEVER_FINAL", "UnguardedRun", "handle"]

logger = logging.getLogger("idempotent_tasks")

#: Seconds in which a process sends what follows a task once it has stored the outcome; a slower one is not waited for.
SENDING_SECONDS: Final = 5.0
#: Seconds for which a delivery waits in its slot at most whose message nothing can be published after.
SLOT_SECONDS: Final = 3600.0
#: The part of a hard time limit, and at most how many seconds of it, that stay for what becomes of the message.
LAST_PART: Final = 1 / 4
LAST_SECONDS: Final = 2.0

#: Why a claim is released whose answer an earlier delivery of the message did not see.
UNSEEN: Final = "Unseen"

#: Exceptions that something outside raises into a body at any moment.
INTERRUPTS: Final = (SoftTimeLimitExceeded,)
#: Exceptions that say what becomes of a message, a process or a claim, and never what came of a body.  A worker acts on
#: them whoever raised them (``celery.worker.request.Request.on_failure``): it requeues a message for the third and
#: fourth, drops it for the fifth, and ends for the sixth.
NEVER_FINAL: Final = (
    TaskPredicate,
    SoftTimeLimitExceeded,
    TimeLimitExceeded,
    WorkerLostError,
    Terminated,
    MemoryError,
    IdempotencyError,
)


@dataclass(frozen=True, slots=True)
class UnguardedRun:
    """``self.idempotency`` in a body that runs without a claim: called directly, or let through by a policy."""

    key: str | None = None
    fence: int = 0
    attempt: int = 0
    lost: bool = False


Body = Callable[[RunContext | UnguardedRun], Any]


def handle(task: Any, delivery: Delivery, policy: Idempotency, settings: Settings, body: Body) -> Any:
    """Run, replay or defer a delivery, and return the task's result.

    Args:
        task: the bound `IdempotentTask`; its current request is the delivery.
        delivery: the delivery.
        policy: the task's, under the settings.
        settings: of the task's app.
        body: runs the task's body.

    Raises:
        celery.exceptions.Ignore: the message was published again, or dropped by ``on_busy="skip"``.
        celery.exceptions.Reject: it could not be published again, and goes back to its queue.
        IdempotencyError: the delivery fails; see `Guard.deliver`, `Guard.replay`, `claim_request`, and the policy's
            ``raise``.
    """
    deadline = _deadline(delivery.hard_limit_seconds)
    if not delivery.eager:
        # What the body publishes, and what Celery sends when it is over.
        confirm_publishes(task.app)
    try:
        request = claim_request(delivery, policy, task.run_signature)
    except MissingKeyError as error:
        if policy.missing_key == "raise":
            raise
        return _run_unguarded(delivery, body, None, error)
    try:
        handler = DeliveryHandler(
            task=task, delivery=delivery, policy=policy, settings=settings, request=request, deadline=deadline
        )
        return handler.deliver(body)
    except Exception:
        # Not before: a message that is published again stays as it is.
        if not delivery.eager:
            callbacks.name_errbacks(task.request, request.key)
        raise


def _deadline(hard_limit_seconds: float | None) -> Deadline:
    """Return by when a delivery that begins now has to know what becomes of its message."""
    if hard_limit_seconds is None:
        return Deadline()
    clock = this_process().clock
    last = min(LAST_SECONDS, LAST_PART * hard_limit_seconds)
    return Deadline(clock, clock.monotonic() + hard_limit_seconds - last)


def _run_unguarded(delivery: Delivery, body: Body, key: str | None, why: Exception) -> Any:
    logger.warning("%s[%s] runs unguarded: %s", delivery.task, delivery.task_id, why)
    return body(UnguardedRun(key))


@dataclass(kw_only=True, eq=False)
class DeliveryHandler:
    """Turns the verdict on one delivery into what its worker does with the message."""

    #: As for `handle`.
    task: Any
    delivery: Delivery
    policy: Idempotency
    settings: Settings
    #: The claim that the delivery asks for.
    request: ClaimRequest
    #: By when the delivery must have come to an end.
    deadline: Deadline

    def __post_init__(self) -> None:
        self._store = self._retrying(self.settings.store)
        self._guard = self._make_guard()
        #: Owner tokens of claims whose answers were not seen, and that are not known to be released; the last first.
        self._unseen = list(self.delivery.unseen)

    def _retrying(self, store: Store) -> RetryingStore:
        observe = self.settings.observe
        return RetryingStore(store=store, observe=observe, deadline=self.deadline, interrupts=INTERRUPTS)

    def _make_guard(self) -> Guard:
        settings, delivery, request, store = self.settings, self.delivery, self.task.request, self._store
        # Whether what follows a task was sent, no memory knows; nor whether it succeeded or failed, before it is asked.
        if not callbacks.follows(request) and not callbacks.follows(request, failed=True):
            store = self._retrying(settings.store_under(self.policy))
        return Guard(
            store=store,
            policy=self._patient_policy,
            lease=Lease(
                terms=lease_terms(self.policy, delivery.hard_limit_seconds),
                store=settings.store,
                observe=settings.observe,
            ),
            results=Results(
                store=store,
                policy=self.policy,
                bucket=settings.results,
                accepted=settings.accepted,
                never_final=NEVER_FINAL,
            ),
            watched=delivery.watcher is not None,
        )

    @property
    def _patient_policy(self) -> Idempotency:
        """The policy; where the message cannot be deferred, to wait in this slot instead, for as long as there is."""
        policy = self.policy
        if self._is_deferrable or self.delivery.eager or policy.on_busy not in ("defer", "wait"):
            return policy
        return replace(policy, on_busy="wait", wait_timeout=max(SLOT_SECONDS, seconds(policy.wait_timeout)))

    def deliver(self, body: Body) -> Any:
        """Do what `handle` does, for a delivery that has a key."""
        match self._release_unseen() or self._verdict(body):
            case Returned(value):
                self._prepare_what_follows(dispatched=False)
                return value
            case Failed(failure):
                self._prepare_what_follows(dispatched=False, failed=True)
                raise failure
            case Finished(record):
                self._await_sender(record)
                return self._replay(record)
            case Superseded(record):
                return self._replay(record)
            case Busy(_, holder):
                return self._refuse(holder)
            case Unclaimed(store_error):
                return self._on_store_error(body, store_error)
            case Interrupted(interrupt):
                return self._put_off_interrupted(interrupt)

    def _verdict(self, body: Body) -> Verdict:
        request, delivery = self.request, self.delivery
        if not delivery.eager:
            # A producer that does not know the tasks could not tell.
            context = self.task.request
            self.task.refuse_chords_key(delivery.explicit_key, context.chord, context.chain)
        try:
            return self._guard.deliver(request, lambda run: self._run(body, run))
        except PayloadMismatchError as error:
            if error.key != request.key or not has_shared_key(delivery, self.policy):
                raise
            msg = (
                "the key was used with other arguments: an idempotency_key given to a group or chord is handed to each "
                "of its members, and names one call only; give each member its own, .set(idempotency_key=...)"
            )
            raise PayloadMismatchError(msg, request.task, request.key) from error

    def _run(self, body: Body, run: RunContext) -> Any:
        """Run the body, and note what its commit has to know of what follows it."""
        if not self.delivery.eager:
            callbacks.remember(self.task.request)
        try:
            value = body(run)
        except self.policy.final_errors:
            self._store.despite_interrupts(lambda: self._note_end(run))
            raise
        self._store.despite_interrupts(lambda: self._note_end(run))
        return value

    def _note_end(self, run: RunContext) -> None:
        run.result_ignored = self._is_result_ignored()
        if not run.handed_over and not self.delivery.eager:
            run.continuation = self._changed_continuation()

    def _changed_continuation(self) -> str | None:
        changed = callbacks.changed(self.task.request)
        if changed == callbacks.UNRECORDED:
            logger.warning(
                "%s[%s]: the body has changed what follows, and that has no JSON form or is too long for the record; "
                "a redelivery that does not know whether it was sent will fail",
                self.delivery.task,
                self.delivery.task_id,
            )
        return changed

    def _is_result_ignored(self) -> bool:
        """Return whether nobody gets the result: Celery does not store it, and gives it to nothing that follows."""
        request = self.task.request
        # Every Context has the attribute; only a message that says so has it among its own.
        of_call = vars(request).get("ignore_result")
        ignored = self.task.ignore_result if of_call is None else of_call
        return bool(ignored) and not callbacks.follows(request)

    def _replay(self, record: Record) -> Any:
        """Return, or raise, the outcome of a record, followed by what followed its run, where that was not sent yet."""
        match self._replayed(record):
            case Replayed(value, dispatched, changed):
                self._restore_what_follows(changed, dispatched=dispatched)
                self._prepare_what_follows(dispatched=dispatched)
                return value
            case Failed(failure, dispatched, changed):
                self._restore_what_follows(changed, dispatched=dispatched)
                self._prepare_what_follows(dispatched=dispatched, failed=True)
                raise failure
            case Busy(_, holder):
                return self._refuse(holder)
            case Unreadable(store_error):
                # The body never runs here, whatever on_store_error says: the key has its outcome.
                return self._put_off(store_error)
            case Interrupted(interrupt):
                return self._put_off_interrupted(interrupt)

    def _replayed(self, record: Record) -> Replay:
        recalled = None
        try:
            if record.status is Status.COMPLETED and record.codec == NONE:
                recalled = this_process().own(ResultBackend).recalled(self.task, record)
        except StoreError as error:
            return Unreadable(error)
        except INTERRUPTS as error:
            return Interrupted(error)
        return self._guard.replay(self.request, record, recalled, result_ignored=self._is_result_ignored())

    def _await_sender(self, record: Record) -> None:
        """Defer a delivery while another copy of it may yet be sending what follows."""
        left = self._seconds_of_sending(record)
        if left > 0:
            self._defer(left, "sending")

    def _seconds_of_sending(self, record: Record) -> float:
        """Return for how many seconds another copy of this delivery may yet be sending what follows it."""
        task_id = self.delivery.task_id
        sends = record.task_id == task_id and task_id not in record.dispatched
        followed = self._is_followed(failed=record.status is Status.FAILED)
        if record.continuation is not None:
            followed = record.continuation != callbacks.NOTHING and not self.delivery.eager
        if not sends or record.completed_at is None or not followed:
            return 0.0
        left = record.completed_at / 1000 + SENDING_SECONDS - self._store.clock.now()
        ended = left > 0 and this_process().has_ended(record.process, and_watcher=False)
        return 0.0 if ended else max(left, 0.0)

    def _is_followed(self, *, failed: bool) -> bool:
        # An eager call is never delivered again, and its signatures are the caller's own objects.
        return not self.delivery.eager and callbacks.follows(self.task.request, failed=failed)

    def _prepare_what_follows(self, *, dispatched: bool, failed: bool = False) -> None:
        if not self._is_followed(failed=failed):
            return
        request = self.task.request
        if dispatched:
            callbacks.suppress(request)
            return
        callbacks.name_links(request, self.request.key)
        callbacks.notify_when_sent(request, self._note_dispatch, self._give_back)

    def _restore_what_follows(self, changed: str | None, *, dispatched: bool) -> None:
        """Let a replay be followed by what followed the run; nothing is sent again that is known to have been sent."""
        if self.delivery.eager or dispatched:
            return
        try:
            callbacks.restore(self.task.request, changed)
        except ResultUnavailableError as error:
            raise ResultUnavailableError(error.message, self.delivery.task, self.request.key) from error

    def _note_dispatch(self) -> None:
        if self._store.note_dispatch(self.request.key, self.delivery.task_id):
            self._emit(events.Dispatched)

    def _refuse(self, holder: Record) -> NoReturn:
        """End a delivery whose key another holds, as ``on_busy`` says."""
        now = self._store.clock.now()
        if self.policy.on_busy == "skip" and not self._is_followed(failed=False):
            self._emit(events.Skipped)
            raise Ignore
        if self.policy.on_busy == "raise" or not self._is_deferrable:
            raise self._in_progress(holder.held_until)
        copy = self.delivery.copy
        if copy is not None and holder.awaits_successor(copy, now):
            self._emit(events.Merged)
            raise Ignore
        self._defer(holder.held_until - now, "busy", holder)

    def _in_progress(self, until: float) -> InProgressError:
        msg = "another delivery with this key is running; its result will be stored under the key"
        return InProgressError(msg, self.delivery.task, self.request.key, until)

    def _on_store_error(self, body: Body, error: StoreError) -> Any:
        if self.policy.on_store_error == "run":
            return _run_unguarded(self.delivery, body, self.request.key, error)
        self._unseen.insert(0, self.request.owner)
        # An interrupt has nothing to cut short but this: the body will not run.
        with suppress(*INTERRUPTS):
            if isinstance(self._withdraw(self.request, type(error).__name__), Released):
                self._unseen.remove(self.request.owner)
        return self._put_off(error)

    def _put_off(self, error: StoreError) -> NoReturn:
        if self.policy.on_store_error == "raise" or not self._is_deferrable:
            raise error
        logger.error("%s[%s] is deferred: %s", self.delivery.task, self.delivery.task_id, error)
        self._defer(None, type(error).__name__)

    def _put_off_interrupted(self, interrupt: BaseException) -> NoReturn:
        self._unseen.insert(0, self.request.owner)
        if not self._is_deferrable:
            raise interrupt
        self._defer(None, type(interrupt).__name__)

    def _release_unseen(self) -> Interrupted | None:
        """Release what earlier deliveries of this message claimed without seeing it, so that it counts as no crash.

        Of all of them the last alone can hold the key, so after a try without an answer no other follows: the next copy
        asks again.
        """
        try:
            for token in self.delivery.unseen:
                answer = self._withdraw(replace(self.request, owner=token), UNSEEN)
                if isinstance(answer, Unanswered):
                    break
                if isinstance(answer, Released):
                    self._unseen.remove(token)
        except INTERRUPTS as interrupt:
            # It comes once, and the body would run without it.
            return Interrupted(interrupt)
        return None

    def _withdraw(self, request: ClaimRequest, reason: str) -> Released | Lost | Unanswered:
        return self._store.withdraw(Claim.unseen(request), reason)

    @property
    def _is_deferrable(self) -> bool:
        """Whether a message of this delivery can be published again at all."""
        received = self.delivery.received
        return not self.delivery.eager and (received is None or received.is_addressable)

    @property
    def _unseen_header(self) -> dict[str, Any]:
        """What a copy is told of claims that it is to release; an empty list takes back what this message says."""
        return {UNSEEN_HEADER: self._unseen[:MOST_UNSEEN]} if self._unseen or self.delivery.unseen else {}

    def _defer(self, claim_left: float | None, reason: str, holder: Record | None = None) -> NoReturn:
        """Publish the message again, and have Celery be done with this copy of it.

        Args:
            claim_left: seconds until the claim in the way expires, or None where that is not known.
            reason: for observers.
            holder: the record of that claim, where it says which copies were published again.
        """
        began_at = self._store.clock.now()
        if not self._is_deferrable:
            raise self._in_progress(began_at + (claim_left or 0.0))
        publisher = this_process().own(Publisher)
        try:
            countdown = publisher.publish_again(self.task, self.delivery, claim_left, self._unseen_header)
        except Exception as error:
            logger.exception(
                "%s[%s] cannot be deferred and goes back to its queue", self.delivery.task, self.delivery.task_id
            )
            raise self._give_back(error, claim_left) from error
        deferrals = self.delivery.deferrals + 1
        self._emit(events.Deferred, countdown_seconds=round(countdown, 3), reason=reason, deferrals=deferrals)
        if holder is not None:
            # Only now: a note without its copy would have the message dropped that is delivered again after a crash.
            self._note_deferral(holder, began_at, began_at + countdown)
        raise Ignore

    def _note_deferral(self, holder: Record, now: float, due: float) -> None:
        """Note when the successor of this copy comes; any other message is never taken for its twin."""
        copy, owner = self.delivery.copy, holder.owner
        if copy is not None and owner is not None:
            past = holder.past_deferrals(now)
            self._store.note_deferral(self.request.key, owner, copy, int(due * 1000), past)

    def _give_back(self, error: Exception, claim_left: float | None = None) -> Exception:
        """Return what sends the message back to its queue, for an error of the broker's that kept from publishing."""
        return this_process().own(Publisher).give_back(self.task, self.delivery, error, claim_left, self._pause)

    def _pause(self, seconds: float) -> None:
        """Wait in this slot for so many seconds, or until the delivery must come to an end."""
        with suppress(*INTERRUPTS):
            self._store.clock.sleep(max(min(seconds, self._store.deadline.seconds_left), 0.0))

    def _emit(self, kind: type[events.Event], **details: Any) -> None:
        self.settings.observe(kind.about(self.request, **details))
