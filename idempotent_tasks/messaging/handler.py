"""Delivery handler: turns the guard's verdict into a result, a deferral, ``Ignore``, ``Reject`` or an error."""

import logging
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
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
from idempotent_tasks.core.busy import BusyKeys
from idempotent_tasks.core.delivery import MOST_UNSEEN, RECOVERIES_HEADER, UNSEEN_HEADER, Delivery, run_digest
from idempotent_tasks.core.encoding import NONE, OMITTED
from idempotent_tasks.core.guard import (
    Ask,
    Failed,
    Guard,
    Interrupted,
    Received,
    Replay,
    Replayed,
    Returned,
    Unclaimed,
    Unreadable,
    Unresolved,
    Unwritten,
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
    MessageKept,
    NoRoom,
    NotParked,
    Parked,
    Record,
    Released,
    Status,
    Superseded,
    Unanswered,
    is_reservation,
)
from idempotent_tasks.core.recovery import Done, Recovery
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
    UnresolvedError,
)
from idempotent_tasks.messaging import callbacks
from idempotent_tasks.messaging.claim_request import claim_request, has_shared_key
from idempotent_tasks.messaging.confirms import confirm_publishes
from idempotent_tasks.messaging.deferral import Publisher
from idempotent_tasks.messaging.following import SignaturesToFollow
from idempotent_tasks.messaging.parking import encoded_message
from idempotent_tasks.messaging.result_backend import ResultBackend
from idempotent_tasks.messaging.unguarded import Body, UnguardedRun
from idempotent_tasks.settings import Settings

__all__ = ["NEVER_FINAL", "handle"]

logger = logging.getLogger("idempotent_tasks")

#: For how many seconds after a commit its process is expected to be sending the task's callbacks.
SENDING_SECONDS: Final = 5.0
#: The least wait timeout in seconds of a delivery that waits in its slot because its message cannot be deferred.
SLOT_SECONDS: Final = 3600.0
#: The part of a hard time limit that is reserved for deferring the message, and its maximum in seconds.
LAST_PART: Final = 1 / 4
LAST_SECONDS: Final = 2.0

#: How often ``recover`` may fail before the key is parked.
MOST_FAILED_RECOVERIES: Final = 5
#: The reasons of deferrals: the key was parked, and its record has no room for the message; or it is parked no more.
PARKED: Final = "parked"
RESOLVED: Final = "resolved"
#: The reason with which a claim is released whose answer an earlier delivery of the message did not see.
UNSEEN: Final = "Unseen"

#: Exceptions that are raised into a body from outside at any moment.
INTERRUPTS: Final = (SoftTimeLimitExceeded,)
#: Exceptions about a message, a process or a claim, which are never the outcome of a body.  A worker acts on them
#: whoever raised them (``celery.worker.request.Request.on_failure``): it requeues a message for the third and fourth,
#: drops it for the fifth, and ends for the sixth.
NEVER_FINAL: Final = (
    TaskPredicate,
    SoftTimeLimitExceeded,
    TimeLimitExceeded,
    WorkerLostError,
    Terminated,
    MemoryError,
    IdempotencyError,
)


def handle(
    task: Any, delivery: Delivery, policy: Idempotency, settings: Settings, body: Body, *, ask: Ask | None = None
) -> Any:
    """Run, replay or defer a delivery, and return the task's result.

    Args:
        task: the bound `IdempotentTask`; its current request is the delivery.
        delivery: the delivery.
        policy: the task's, with the app's defaults.
        settings: of the task's app.
        body: runs the task's body.
        ask: calls the policy's ``recover``, if it has one.

    Raises:
        celery.exceptions.Ignore: the message was published again, or dropped by ``on_busy="skip"``.
        celery.exceptions.Reject: it could not be published again, and goes back to its queue.
        IdempotencyError: the delivery fails; see `Guard.deliver`, `Guard.replay`, `claim_request`, and the policy's
            ``raise``.
    """
    deadline = _deadline(delivery.hard_limit_seconds)
    if not delivery.eager:
        # For what the body publishes and the callbacks that Celery sends after it.
        confirm_publishes(task.app)
    try:
        request = claim_request(delivery, policy, task.run_signature)
    except MissingKeyError as error:
        if policy.missing_key == "raise":
            raise
        logger.warning("%s[%s] runs unguarded: %s", delivery.task, delivery.task_id, error)
        return UnguardedRun.keyless(delivery, policy, task).perform(body, policy, settings, delivery.task)
    try:
        return DeliveryHandler(task, delivery, policy, settings, request, deadline).deliver(body, ask)
    except Ignore:
        # No failure: nothing follows it.
        raise
    except Exception:
        # Not earlier: a deferred copy keeps the error callbacks of the message.
        if not delivery.eager:
            callbacks.assign_task_ids(task.request, request.key, failed=True)
        raise


def _running(holder: Record) -> str | None:
    """Return the name of the run that holds a key; None if none does."""
    return None if holder.owner is None or holder.free or is_reservation(holder) else run_digest(holder.owner)


def _deadline(hard_limit_seconds: float | None) -> Deadline:
    """Return the time by which a delivery that begins now must have deferred or given back its message."""
    if hard_limit_seconds is None:
        return Deadline()
    clock = this_process().clock
    last = min(LAST_SECONDS, LAST_PART * hard_limit_seconds)
    return Deadline(clock, clock.monotonic() + hard_limit_seconds - last)


@dataclass(eq=False)
class DeliveryHandler:
    """Handles one delivery that has a key; the fields are as for `handle`."""

    task: Any
    delivery: Delivery
    policy: Idempotency
    settings: Settings
    request: ClaimRequest
    #: By when the message must have been deferred or given back.
    deadline: Deadline

    def __post_init__(self) -> None:
        self._store = self._retrying(self.settings.store)
        self._guard = self._make_guard()
        #: Owner tokens of claims whose answers were not seen and which may still be held, the last one first.
        self._unseen = list(self.delivery.unseen)
        #: More headers of a deferred copy.
        self._headers: dict[str, Any] = {}

    def _retrying(self, store: Store) -> RetryingStore:
        observe = self.settings.observe
        return RetryingStore(store=store, observe=observe, deadline=self.deadline, interrupts=INTERRUPTS)

    def _make_guard(self) -> Guard:
        settings, delivery, request, store = self.settings, self.delivery, self.task.request, self._store
        # A cached outcome does not say whether callbacks were sent; and only the answer tells success from failure.
        if not callbacks.follows(request) and not callbacks.follows(request, failed=True):
            store = self._retrying(settings.store_under(self.policy))
        return Guard(
            store=store,
            policy=self._busy_policy,
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
            following=SignaturesToFollow(self.task.app),
        )

    @property
    def _busy_policy(self) -> Idempotency:
        """The policy; if the message cannot be deferred, ``defer`` and ``wait`` wait for `SLOT_SECONDS` at least."""
        policy = self.policy
        if self._is_deferrable or self.delivery.eager or policy.on_busy not in ("defer", "wait"):
            return policy
        timeout = max(SLOT_SECONDS, seconds(policy.wait_timeout))
        return Idempotency(**{**policy.given, "on_busy": "wait", "wait_timeout": timeout})

    def deliver(self, body: Body, ask: Ask | None) -> Any:
        """Do what `handle` does, for a delivery that has a key."""
        verdict = self._release_unseen() or self._known_refusal() or self._asked(body, ask)
        match verdict:
            case Returned(value):
                self._prepare_callbacks()
                return value
            case Failed(failure):
                self._prepare_callbacks(failed=True)
                raise failure
            case Finished(record):
                left = self._sending_seconds_left(record)
                if left > 0:
                    self._defer(left, "sending")
                return self._replay(record)
            case Superseded(record) | Received(record):
                return self._replay(record)
            case Unclaimed(store_error):
                return self._handle_unclaimed(body, store_error)
            case Unresolved():
                return self._handle_unresolved(verdict)
            case Busy() | Parked() | Unwritten() | Interrupted():
                return self._end_without_outcome(verdict)

    def _end_without_outcome(self, verdict: Busy | Parked | Unwritten | Interrupted) -> NoReturn:
        """Defer, drop or fail a delivery that gets no outcome now."""
        match verdict:
            case Busy(_, holder):
                self._handle_busy(holder)
            case Parked(record):
                self._end_parked(record)
            case Unwritten(store_error):
                self._defer_or_raise(store_error)
            case Interrupted(interrupt):
                self._defer_interrupted(interrupt)

    def _known_refusal(self) -> Busy | None:
        """Return the answer that another duplicate of the key has just had, where this one too would be deferred.

        A copy asks: it may be the second of one copy, which only the record can tell.
        """
        is_first = self.delivery.copy is None and not self.delivery.deferrals
        if self.policy.on_busy != "defer" or not self._is_deferrable or not is_first or self.request.lock is not None:
            return None
        return this_process().own(BusyKeys).refused(self.task.app, self.request, self._store.clock)

    def _asked(self, body: Body, ask: Ask | None) -> Verdict:
        """Return the guard's verdict, and note what it means for other deliveries of the key."""
        verdict = self._verdict(body, ask)
        self._store.despite_interrupts(lambda: self._note_refusal(verdict))
        return verdict

    def _note_refusal(self, verdict: Verdict) -> None:
        busy = this_process().own(BusyKeys)
        if self.request.lock is None and isinstance(verdict, Busy):
            busy.note(self.task.app, verdict, self._store.clock)
        else:
            busy.forget(self.task.app, self.request.key)

    def _verdict(self, body: Body, ask: Ask | None) -> Verdict:
        request, delivery = self.request, self.delivery
        if not delivery.eager:
            # A producer without the task's code could not.
            context = self.task.request
            self.task.refuse_chords_key(delivery.explicit_key, context.chord, context.chain)
        try:
            recover = None if self.policy.recover is None or ask is None else partial(self._recover, ask)
            return self._guard.deliver(request, lambda run: self._run(body, run), recover)
        except PayloadMismatchError as error:
            if error.key != request.key or not has_shared_key(delivery, self.policy):
                raise
            msg = (
                "the key was used with other arguments: an idempotency_key given to a group or chord is handed to each "
                "of its members, and names one call only; give each member its own, .set(idempotency_key=...)"
            )
            raise PayloadMismatchError(msg, request.task, request.key) from error

    def _run(self, body: Body, run: RunContext) -> Any:
        """Run the body, and note for its commit whether its result is ignored and its callbacks changed."""
        if not self.delivery.eager:
            if run.tries:
                # Its first try may have changed them, and was rolled back.
                callbacks.restore(self.task.request, None)
            callbacks.remember(self.task.request)
        try:
            value = body(run)
        except self.policy.final_errors:
            self._store.despite_interrupts(lambda: self._note_end(run))
            raise
        self._store.despite_interrupts(lambda: self._note_end(run))
        return value

    def _recover(self, ask: Ask, run: RunContext, record: Record) -> Recovery:
        """Call ``recover``, and note for the commit of a result what `_run` does."""
        if not self.delivery.eager:
            callbacks.remember(self.task.request)
        answer = ask(run, record)
        if isinstance(answer, Done):
            self._store.despite_interrupts(lambda: self._note_end(run))
        return answer

    def _note_end(self, run: RunContext) -> None:
        run.result_ignored = self._is_result_ignored()
        if run.handed_over or self.delivery.eager:
            return
        run.continuation = callbacks.changed(self.task.request)
        if run.continuation == callbacks.UNRECORDED:
            logger.warning(
                "%s[%s]: the body has changed what follows, and that has no JSON form or is too long for the record; "
                "a redelivery that does not know whether it was sent will fail",
                self.delivery.task,
                self.delivery.task_id,
            )

    def _is_result_ignored(self) -> bool:
        """Return whether nobody gets the result: Celery neither stores it nor passes it to a callback."""
        request = self.task.request
        # Every Context has the attribute, but only one whose message sets it has it in its own dict.
        of_call = vars(request).get("ignore_result")
        ignored = self.task.ignore_result if of_call is None else of_call
        return bool(ignored) and not callbacks.follows(request)

    def _replay(self, record: Record) -> Any:
        """Return, or raise, the outcome of a record, with those callbacks of its run that were not sent yet."""
        match self._replayed(record):
            case Replayed(value, dispatched, changed):
                self._restore_callbacks(changed, dispatched=dispatched, omitted=self._is_omitted(record))
                return value
            case Failed(failure, dispatched, changed):
                self._restore_callbacks(changed, dispatched=dispatched, failed=True)
                raise failure
            case Unreadable(store_error):
                # Whatever on_store_error says, the body does not run: the key has its outcome.
                return self._defer_or_raise(store_error)
            case Busy() | Parked() | Interrupted() as verdict:
                return self._end_without_outcome(verdict)

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

    def _sending_seconds_left(self, record: Record) -> float:
        """Return for how many more seconds another copy of this delivery may be sending its callbacks."""
        task_id = self.delivery.task_id
        sends = record.task_id == task_id and task_id not in record.dispatched
        has_callbacks = self._has_callbacks(failed=record.status is Status.FAILED)
        if record.continuation is not None:
            has_callbacks = record.continuation != callbacks.NOTHING and not self.delivery.eager
        if not sends or record.completed_at is None or not has_callbacks:
            return 0.0
        left = record.completed_at / 1000 + SENDING_SECONDS - self._store.clock.now()
        ended = left > 0 and this_process().has_ended(record.process, and_watcher=False)
        return 0.0 if ended else max(left, 0.0)

    def _has_callbacks(self, *, failed: bool) -> bool:
        # An eager call is never delivered again, and its signatures are the caller's own objects.
        return not self.delivery.eager and callbacks.follows(self.task.request, failed=failed)

    def _prepare_callbacks(self, *, failed: bool = False) -> None:
        if self._has_callbacks(failed=failed):
            callbacks.assign_task_ids(self.task.request, self.request.key)
            callbacks.notify_when_sent(self.task.request, self._note_dispatch, self._give_back)

    def _restore_callbacks(
        self, changed: str | None, *, dispatched: bool, failed: bool = False, omitted: bool = False
    ) -> None:
        """Give a replay the callbacks of its run; none if they are known to have been sent.

        Raises:
            ResultUnavailableError: they cannot be read, or take a result that was omitted.
        """
        if dispatched:
            if self._has_callbacks(failed=failed):
                callbacks.suppress(self.task.request)
            return
        try:
            if not self.delivery.eager:
                callbacks.restore(self.task.request, changed)
            if omitted:
                callbacks.refuse_result(self.task.request)
        except ResultUnavailableError as error:
            raise ResultUnavailableError(error.message, self.delivery.task, self.request.key) from error
        self._prepare_callbacks(failed=failed)

    def _is_omitted(self, record: Record) -> bool:
        """Return whether a replay has None for a result that the task stores nowhere; ``on_replay`` may have it."""
        return record.codec == OMITTED and self.policy.on_replay is None

    def _note_dispatch(self) -> None:
        if self._store.note_dispatch(self.request.key, self.delivery.task_id):
            self._emit(events.Dispatched)

    def _handle_busy(self, holder: Record) -> NoReturn:
        """Skip, merge, defer or fail a delivery whose key another holds, as ``on_busy`` says."""
        now = self._store.clock.now()
        # Nothing runs while a free key settles: its messages wait.
        on_busy = "defer" if holder.free else self.policy.on_busy
        is_own = holder.task_id == self.delivery.task_id
        if on_busy == "skip" and not is_own and not self._has_callbacks(failed=False):
            self._emit(events.Skipped)
            raise Ignore
        if on_busy == "raise" or not self._is_deferrable:
            raise self._in_progress(holder.held_until, is_free=holder.free)
        copy = self.delivery.copy
        if copy is not None and holder.awaits_successor(copy, now):
            self._emit(events.Merged)
            raise Ignore
        self._defer(holder.held_until - now, "busy", holder)

    def _in_progress(self, until: float, *, is_free: bool = False) -> InProgressError:
        msg = "another delivery with this key is running; its result will be stored under the key"
        if is_free:
            msg = "a run of this key has ended without an outcome, and settle= has not passed since"
        return InProgressError(msg, self.delivery.task, self.request.key, until)

    def _handle_unresolved(self, unresolved: Unresolved) -> NoReturn:
        """Park the key of a rerun; or have a later delivery ask ``recover`` again that has failed."""
        claim, error = unresolved.run.claim, unresolved.error
        if error is not None:
            self._ask_later(claim, error, began=unresolved.began)
        match self._store.despite_interrupts(lambda: self._store.park(claim, unresolved.reason)):
            case Parked(record):
                self._end_parked(record)
            case Lost():
                self._defer(None, events.Lost.__name__)
            case Unanswered(store_error):
                if not unresolved.began:
                    # Whoever releases it says that no body began under it.
                    self._unseen.insert(0, claim.owner)
                self._defer_or_raise(store_error)

    def _ask_later(self, claim: Claim, error: Exception, *, began: bool) -> None:
        """Free the key, and defer the message or raise the error; return once that has happened too often."""
        failures = self.delivery.failed_recoveries + 1
        if failures >= MOST_FAILED_RECOVERIES:
            return
        where = self.delivery.task, self.delivery.task_id
        logger.warning("%s[%s]: recover failed (%d of %d)", *where, failures, MOST_FAILED_RECOVERIES, exc_info=error)
        self._store.release(claim, type(error).__name__, began=began)
        if not self._is_deferrable:
            raise error
        self._headers[RECOVERIES_HEADER] = failures
        self._defer(None, type(error).__name__)

    def _end_parked(self, record: Record) -> NoReturn:
        """Fail a delivery whose key is parked, once its message is kept with the record; else defer the message."""
        kept = self._store.despite_interrupts(lambda: self._keep_message(record))
        match kept:
            case Unanswered(error):
                self._defer_or_raise(error)
            case NoRoom():
                self._defer(None, PARKED)
            case NotParked():
                self._defer(None, RESOLVED)
        self._emit(events.Parked, reason=record.error or "")
        then = "its message is kept, and is published again then" if kept is not None else "then call the task again"
        msg = (
            f"an earlier run left no outcome ({record.error}), and the body does not run again by itself: find out "
            f"what it has done, and say so with `celery idempotency resolve KEY --done JSON` or `--run`; {then}"
        )
        raise UnresolvedError(msg, self.delivery.task, self.request.key)

    def _keep_message(self, record: Record) -> MessageKept | NoRoom | NotParked | Unanswered | None:
        """Keep this delivery's message in the record of its parked key; return None if it cannot be published again."""
        if not self._is_deferrable:
            return None
        try:
            message = encoded_message(self.task, self.delivery)
        except INTERRUPTS:
            raise
        except Exception:
            logger.exception("%s[%s]: its message cannot be kept", self.delivery.task, self.delivery.task_id)
            return NoRoom()
        return self._store.keep_message(record.key, self.delivery.task_id, message)

    def _handle_unclaimed(self, body: Body, error: StoreError) -> Any:
        if self.policy.on_store_error == "run":
            logger.warning("%s[%s] runs unguarded: %s", self.delivery.task, self.delivery.task_id, error)
            return UnguardedRun.of(self.request).perform(body, self.policy, self.settings, self.delivery.task)
        self._unseen.insert(0, self.request.owner)
        # An interrupt can only cut this short: the body will not run.
        with suppress(*INTERRUPTS):
            if isinstance(self._store.withdraw_parts(self.request, type(error).__name__), Released):
                self._unseen.remove(self.request.owner)
        return self._defer_or_raise(error)

    def _defer_or_raise(self, error: StoreError) -> NoReturn:
        if self.policy.on_store_error == "raise" or not self._is_deferrable:
            raise error
        logger.error("%s[%s] is deferred: %s", self.delivery.task, self.delivery.task_id, error)
        self._defer(None, type(error).__name__)

    def _defer_interrupted(self, interrupt: BaseException) -> NoReturn:
        self._unseen.insert(0, self.request.owner)
        if not self._is_deferrable:
            raise interrupt
        self._defer(None, type(interrupt).__name__)

    def _release_unseen(self) -> Interrupted | None:
        """Release claims whose answers earlier deliveries of this message did not see, so that none counts as a crash.

        Only the latest can hold the key.  When a release gets no answer, the rest is left to the next copy.
        """
        try:
            for token in self.delivery.unseen:
                answer = self._store.withdraw_parts(self.request.by(token), UNSEEN)
                if isinstance(answer, Unanswered):
                    break
                if isinstance(answer, Released):
                    self._unseen.remove(token)
        except INTERRUPTS as interrupt:
            # It comes only once: the body would run without it.
            return Interrupted(interrupt)
        return None

    @property
    def _is_deferrable(self) -> bool:
        """Whether a message of this delivery can be published again at all."""
        received = self.delivery.received
        return not self.delivery.eager and (received is None or received.is_addressable)

    @property
    def _copy_headers(self) -> dict[str, Any]:
        """More headers of a copy, among them the claims to release; an empty list clears this message's own header."""
        unseen = {UNSEEN_HEADER: self._unseen[:MOST_UNSEEN]} if self._unseen or self.delivery.unseen else {}
        return {**self._headers, **unseen}

    def _defer(self, claim_left: float | None, reason: str, holder: Record | None = None) -> NoReturn:
        """Publish the message again, and have Celery ignore this copy of it.

        Args:
            claim_left: seconds until the claim that holds the key expires; None if unknown.
            reason: for observers.
            holder: the record of that claim, if its deferred copies are noted there.
        """
        began_at = self._store.clock.now()
        if not self._is_deferrable:
            raise self._in_progress(began_at + (claim_left or 0.0))
        publisher = this_process().own(Publisher)
        try:
            run = None if holder is None else _running(holder)
            countdown = publisher.publish_again(self.task, self.delivery, claim_left, self._copy_headers, run)
        except Exception as error:
            logger.exception(
                "%s[%s] cannot be deferred and goes back to its queue", self.delivery.task, self.delivery.task_id
            )
            raise self._give_back(error, claim_left) from error
        deferrals = self.delivery.deferrals + 1
        self._emit(events.Deferred, countdown_seconds=round(countdown, 3), reason=reason, deferrals=deferrals)
        if holder is not None:
            # Only now: with a note but no copy, a redelivery after a crash would be dropped as merged.
            self._note_deferral(holder, began_at, began_at + countdown)
        raise Ignore

    def _note_deferral(self, holder: Record, now: float, due: float) -> None:
        """Note when the successor of this copy is due, so that a duplicate delivery of this copy is merged into it."""
        copy, owner = self.delivery.copy, holder.owner
        if copy is not None and owner is not None:
            past = holder.past_deferrals(now)
            self._store.note_deferral(holder.key, owner, copy, int(due * 1000), past)

    def _give_back(self, error: Exception, claim_left: float | None = None) -> Exception:
        """Return the rejection that sends the message back to its queue after the broker refused a publish."""
        return this_process().own(Publisher).give_back(self.task, self.delivery, error, claim_left, self._pause)

    def _pause(self, seconds: float) -> None:
        """Wait in this slot for so many seconds, at most until the deadline."""
        with suppress(*INTERRUPTS):
            self._store.clock.sleep(max(min(seconds, self._store.deadline.seconds_left), 0.0))

    def _emit(self, kind: type[events.Event], **details: Any) -> None:
        self.settings.observe(kind.about(self.request, **details))
