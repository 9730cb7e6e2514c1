"""One delivery at one task: the guard's verdict becomes a result, a deferral, `Ignore` or an error."""

import logging
import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass, field, replace
from enum import Enum, auto
from typing import Any, Final
from uuid import uuid4

from celery.exceptions import (
    Ignore,
    SoftTimeLimitExceeded,
    TaskPredicate,
    Terminated,
    TimeLimitExceeded,
    WorkerLostError,
)

from idempotent_tasks import continuation, deferral, events
from idempotent_tasks.active_run import ActiveRun
from idempotent_tasks.clock import SystemClock
from idempotent_tasks.confirms import confirm_publishes
from idempotent_tasks.delivery import MOST_UNSEEN, UNSEEN_HEADER, Delivery
from idempotent_tasks.errors import (
    IdempotencyError,
    InProgressError,
    MissingKeyError,
    PayloadMismatchError,
    ResultUnavailableError,
    StoreError,
)
from idempotent_tasks.guard import Guard
from idempotent_tasks.keys import arguments_digest, check_prefix, check_task_id, payload_digest, record_key
from idempotent_tasks.lease import Keeper, Term, term_of
from idempotent_tasks.policy import Idempotency, seconds
from idempotent_tasks.processes import current_process, has_ended
from idempotent_tasks.recall import recalled
from idempotent_tasks.records import Busy, Claim, ClaimRequest, Lost, Record, Status
from idempotent_tasks.retries import limited, persistently
from idempotent_tasks.settings import Settings
from idempotent_tasks.stores import Store
from idempotent_tasks.verdicts import Failed, Interrupted, Replayed, Returned, Sending, Unclaimed, Unreadable, Verdict

__all__ = ["NEVER_FINAL", "Reception", "UnguardedRun"]

logger = logging.getLogger("idempotent_tasks")

#: Seconds for which a note is tried again that spares others some work.
NOTE_PATIENCE: Final = 1.0
#: Seconds in which a process sends what follows a task once it has stored the outcome; a slower one is not waited for.
SENDING_SECONDS: Final = 5.0
#: Seconds for which a delivery waits in its slot at most whose message nothing can be published after.
SLOT_SECONDS: Final = 3600.0
#: The part of a hard time limit, and at most how many seconds of it, that stay for what becomes of the message.
LAST_PART: Final = 1 / 4
LAST_SECONDS: Final = 2.0

#: Why a claim is released whose answer an earlier delivery of the message did not see.
UNSEEN: Final = "Unseen"

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

_keeper = Keeper()
#: Never corrected, unlike a store's: how long a child may still live is measured on its own machine.
_local_clock = SystemClock()


def _local_time() -> float:
    """Return the monotonic time of this machine in seconds."""
    return _local_clock.monotonic()


@dataclass(frozen=True, slots=True)
class UnguardedRun:
    """``self.idempotency`` in a body that runs without a claim: called directly, or let through by a policy."""

    key: str | None = None
    fence: int = 0
    attempt: int = 0
    lost: bool = False


class Withdrawal(Enum):
    """What became of the release of a claim that may never have been granted."""

    RELEASED = auto()
    #: Another has the key, or nobody; a request that is still on its way may yet take it.
    NOT_HELD = auto()
    #: There was no answer, or no time to ask.
    UNKNOWN = auto()


Body = Callable[[ActiveRun | UnguardedRun], Any]


@dataclass(frozen=True, kw_only=True)
class Reception:
    """Everything that decides what becomes of one delivery."""

    #: The bound Celery task; its current request is the delivery.
    task: Any
    delivery: Delivery
    policy: Idempotency
    settings: Settings
    #: By this machine's monotonic clock, in seconds.
    _began_at: float = field(default_factory=_local_time, repr=False)
    #: Owner tokens of claims whose answers were not seen, and that are not known to be released; the last one first.
    _unseen: list[str] = field(default_factory=list, repr=False)
    #: The claim request, once it was asked for.
    _requested: list[ClaimRequest] = field(default_factory=list, repr=False)

    def handle(self, body: Body) -> Any:
        """Run, replay or defer the delivery, and return the task's result.

        Args:
            body: runs the task's body.

        Raises:
            celery.exceptions.Ignore: the message was published again, or dropped by ``on_busy="skip"``.
            celery.exceptions.Reject: it could not be published again, and goes back to its queue.
            IdempotencyError: the delivery fails; see `Guard.run`, `record_key`, and the policy's ``raise``.
        """
        if not self.delivery.eager:
            # What the body publishes, and what Celery sends when it is over.
            confirm_publishes(self.task.app)
        try:
            request = self.claim_request
        except MissingKeyError as error:
            if self.policy.missing_key == "raise":
                raise
            return self._run_unguarded(body, None, error)
        try:
            return self._handle_claim(request, body)
        except Exception:
            # Not before: a message that is published again stays as it is.
            if not self.delivery.eager:
                continuation.name_errbacks(self.task.request, request.key)
            raise

    def _handle_claim(self, request: ClaimRequest, body: Body) -> Any:
        match self._release_unseen(request) or self._verdict(request, body):
            case Returned(value):
                self._prepare_what_follows(dispatched=False)
                return value
            case Replayed(value, dispatched, changed):
                self._restore_what_follows(changed, dispatched=dispatched)
                self._prepare_what_follows(dispatched=dispatched)
                return value
            case Failed(failure, dispatched, changed, replayed):
                if replayed:
                    self._restore_what_follows(changed, dispatched=dispatched)
                self._prepare_what_follows(dispatched=dispatched, failed=True)
                raise failure
            case Sending(left):
                raise self._deferred(left, "sending")
            case Busy(_, holder):
                raise self._busy(holder)
            case Unclaimed(store_error):
                return self._on_store_error(body, store_error)
            case Unreadable(store_error):
                # The body never runs here, whatever on_store_error says: the key has its outcome.
                raise self._put_off(store_error)
            case Interrupted(interrupt):
                self._unseen.insert(0, request.owner)
                raise self._deferred(None, type(interrupt).__name__) if self._is_deferrable else interrupt

    def _verdict(self, request: ClaimRequest, body: Body) -> Verdict:
        if not self.delivery.eager:
            # A producer that does not know the tasks could not tell.
            context = self.task.request
            self.task.refuse_chords_key(self.delivery.explicit_key, context.chord, context.chain)
        try:
            return self._guard().run(request, self._body_with_memory(body))
        except PayloadMismatchError as error:
            if error.key != request.key or not self._has_shared_key:
                raise
            msg = (
                "the key was used with other arguments: an idempotency_key given to a group or chord is handed to each "
                "of its members, and names one call only; give each member its own, .set(idempotency_key=...)"
            )
            raise PayloadMismatchError(msg, request.task, request.key) from error

    @property
    def claim_request(self) -> ClaimRequest:
        """The claim that this delivery asks for; raises as `record_key` does."""
        if not self._requested:
            self._requested.append(self._request())
        return self._requested[0]

    @property
    def _term(self) -> Term:
        return term_of(self.policy, self.delivery.hard_limit_seconds)

    def _request(self) -> ClaimRequest:
        delivery, policy, signature = self.delivery, self.policy, self.task.run_signature
        prefix = check_prefix(delivery.task) if policy.prefix is None else policy.prefix
        return ClaimRequest(
            key=record_key(delivery, prefix, policy.key_selector, signature),
            owner=delivery.owner or uuid4().hex,
            lease_seconds=self._term.lease_seconds,
            retention_seconds=seconds(policy.expires),
            validation=self._validation(),
            task=delivery.task,
            task_id=check_task_id(delivery.task_id, delivery.task),
            # Named on a command line, in bytes that need not be text; it is for people only.
            worker=delivery.worker.encode(errors="backslashreplace").decode(),
            process=current_process(delivery.watcher),
        )

    def _validation(self) -> str | None:
        validate = self.policy.validate_selector
        if validate is not None:
            return payload_digest(self.delivery, validate, self.task.run_signature)
        return arguments_digest(self.delivery, self.task.run_signature) if self._has_shared_key else None

    @property
    def _has_shared_key(self) -> bool:
        """Whether the key may have been handed to several calls: Celery gives a group's options to each member."""
        delivery, policy = self.delivery, self.policy
        # What Powertools wrote validates as Powertools does.
        checked = policy.validate is not None or policy.powertools is not False
        return delivery.explicit_key is not None and delivery.grouped and not checked

    def _guard(self) -> Guard:
        return Guard(
            store=self._store,
            policy=self._patient_policy,
            observe=self.settings.observe,
            keeping=self._keeping,
            watched=self.delivery.watcher is not None,
            holder_has_ended=lambda holder: has_ended(holder.process),
            sending_for=self._sending_for,
            changed_continuation=self._changed_continuation,
            interrupts=(SoftTimeLimitExceeded,),
            never_final=NEVER_FINAL,
            results=self.settings.results,
            accepts_pickle=self.settings.accepts_pickle,
            accepted=self.settings.accepted,
            result_ignored=self._result_is_ignored,
            recall=lambda record: recalled(self.task, record),
            time_left=self._time_left,
        )

    def _sending_for(self, record: Record) -> float:
        """Return for how many seconds another copy of this delivery may yet be sending what follows it."""
        task_id = self.delivery.task_id
        sends = record.task_id == task_id and task_id not in record.dispatched
        followed = self._is_followed(failed=record.status is Status.FAILED)
        if record.continuation is not None:
            followed = record.continuation != continuation.NOTHING and not self.delivery.eager
        if not sends or record.completed_at is None or not followed:
            return 0.0
        left = record.completed_at / 1000 + SENDING_SECONDS - self.settings.store.clock.now()
        return left if left > 0 and not has_ended(record.process, and_watcher=False) else 0.0

    @property
    def _store(self) -> Store:
        # Whether what follows a task was sent, no memory knows; nor whether it succeeded or failed, before it is asked.
        request = self.task.request
        if continuation.follows(request) or continuation.follows(request, failed=True):
            return self.settings.store
        return self.settings.store_under(self.policy)

    def _result_is_ignored(self) -> bool:
        """Return whether nobody gets the result: Celery does not store it, and gives it to nothing that follows."""
        request = self.task.request
        # Every Context has the attribute; only a message that says so has it among its own.
        of_call = vars(request).get("ignore_result")
        ignored = self.task.ignore_result if of_call is None else of_call
        return bool(ignored) and not continuation.follows(request)

    def _time_left(self) -> float:
        limit = self.delivery.hard_limit_seconds
        if limit is None:
            return math.inf
        return self._began_at + limit - min(LAST_SECONDS, LAST_PART * limit) - _local_time()

    def _keeping(self, run: ActiveRun) -> AbstractContextManager[None]:
        if not self._term.renewed:
            return nullcontext()
        return _keeper.keep(run, self.settings.store, self._term, self.settings.observe)

    def _run_unguarded(self, body: Body, key: str | None, why: Exception) -> Any:
        logger.warning("%s[%s] runs unguarded: %s", self.delivery.task, self.delivery.task_id, why)
        return body(UnguardedRun(key))

    def _prepare_what_follows(self, *, dispatched: bool, failed: bool = False) -> None:
        if not self._is_followed(failed=failed):
            return
        request = self.task.request
        if dispatched:
            continuation.suppress(request)
            return
        continuation.name_links(request, self.claim_request.key)
        continuation.tell_when_sent(request, self._note_dispatch, self._given_back)

    def _restore_what_follows(self, changed: str | None, *, dispatched: bool) -> None:
        """Let a replay be followed by what followed the run; nothing is sent again that is known to have been sent."""
        if self.delivery.eager or dispatched:
            return
        try:
            continuation.restore(self.task.request, changed)
        except ResultUnavailableError as error:
            raise ResultUnavailableError(error.message, self.delivery.task, self.claim_request.key) from error

    def _body_with_memory(self, body: Body) -> Body:
        """Return the body, before which what follows it is remembered."""

        def remembering(run: ActiveRun | UnguardedRun) -> Any:
            continuation.remember(self.task.request)
            return body(run)

        return body if self.delivery.eager else remembering

    def _changed_continuation(self) -> str | None:
        changed = None if self.delivery.eager else continuation.changed(self.task.request)
        if changed == continuation.UNRECORDED:
            logger.warning(
                "%s[%s]: the body has changed what follows, and that has no JSON form or is too long for the record; "
                "a redelivery that does not know whether it was sent will fail",
                self.delivery.task,
                self.delivery.task_id,
            )
        return changed

    def _is_followed(self, *, failed: bool) -> bool:
        # An eager call is never delivered again, and its signatures are the caller's own objects.
        return not self.delivery.eager and continuation.follows(self.task.request, failed=failed)

    def _busy(self, holder: Record) -> Exception:
        if self.policy.on_busy == "skip" and not self._is_followed(failed=False):
            self._tell(events.Skipped)
            return Ignore()
        if self.policy.on_busy == "raise" or not self._is_deferrable:
            return self._in_progress(holder.held_until)
        copy = self.delivery.copy
        if copy is not None and holder.awaits_successor(copy, self.settings.store.clock.now()):
            self._tell(events.Merged)
            return Ignore()
        return self._deferred(holder.held_until - self.settings.store.clock.now(), "busy", holder)

    def _in_progress(self, until: float) -> InProgressError:
        msg = "another delivery with this key is running; its result will be stored under the key"
        return InProgressError(msg, self.delivery.task, self.claim_request.key, until)

    @property
    def _is_deferrable(self) -> bool:
        """Whether a message of this delivery can be published again at all."""
        received = self.delivery.received
        return not self.delivery.eager and (received is None or received.is_addressable)

    @property
    def _patient_policy(self) -> Idempotency:
        """The policy; where the message cannot be deferred, to wait in this slot instead, for as long as there is."""
        if self._is_deferrable or self.delivery.eager or self.policy.on_busy not in ("defer", "wait"):
            return self.policy
        return replace(self.policy, on_busy="wait", wait_timeout=max(SLOT_SECONDS, seconds(self.policy.wait_timeout)))

    def _on_store_error(self, body: Body, error: StoreError) -> Any:
        if self.policy.on_store_error == "run":
            return self._run_unguarded(body, self.claim_request.key, error)
        self._unseen.insert(0, self.claim_request.owner)
        # An interrupt has nothing to cut short but this: the body will not run.
        with suppress(SoftTimeLimitExceeded):
            if self._withdraw(self.claim_request, type(error).__name__) is Withdrawal.RELEASED:
                self._unseen.remove(self.claim_request.owner)
        raise self._put_off(error)

    def _put_off(self, error: StoreError) -> Exception:
        if self.policy.on_store_error == "raise" or not self._is_deferrable:
            return error
        logger.error("%s[%s] is deferred: %s", self.delivery.task, self.delivery.task_id, error)
        return self._deferred(None, type(error).__name__)

    def _release_unseen(self, request: ClaimRequest) -> Interrupted | None:
        """Release what earlier deliveries of this message claimed without seeing it, so that it counts as no crash.

        Of all of them the last alone can hold the key, so after a try without an answer no other follows: the next copy
        asks again.
        """
        self._unseen.extend(self.delivery.unseen)
        try:
            for token in self.delivery.unseen:
                answer = self._withdraw(replace(request, owner=token), UNSEEN)
                if answer is Withdrawal.UNKNOWN:
                    break
                if answer is Withdrawal.RELEASED:
                    self._unseen.remove(token)
        except SoftTimeLimitExceeded as interrupt:
            # It comes once, and the body would run without it.
            return Interrupted(interrupt)
        return None

    def _withdraw(self, request: ClaimRequest, reason: str) -> Withdrawal:
        """Release, in one try, a claim whose answer may have been lost: it would block the key for all its time."""
        left = self._time_left()
        if left <= 0:
            return Withdrawal.UNKNOWN
        store = self.settings.store
        with suppress(StoreError), limited(store.clock, left):
            if isinstance(store.release(Claim.unseen(request), reason, began=False), Lost):
                return Withdrawal.NOT_HELD
            self._tell(events.Released, reason=reason)
            return Withdrawal.RELEASED
        return Withdrawal.UNKNOWN

    @property
    def _unseen_header(self) -> dict[str, Any]:
        """What a copy is told of claims that it is to release; an empty list takes back what this message says."""
        return {UNSEEN_HEADER: self._unseen[:MOST_UNSEEN]} if self._unseen or self.delivery.unseen else {}

    def _deferred(self, claim_left: float | None, reason: str, holder: Record | None = None) -> Exception:
        """Publish the message again, and return what tells Celery to be done with this copy of it.

        Args:
            claim_left: seconds until the claim in the way expires, or None where that is not known.
            reason: for observers.
            holder: the record of that claim, where it says which copies were published again.
        """
        clock = self.settings.store.clock
        if not self._is_deferrable:
            return self._in_progress(clock.now() + (claim_left or 0.0))
        began_at = clock.now()
        try:
            countdown = deferral.publish_again(self.task, self.delivery, claim_left, self._unseen_header)
        except Exception as error:
            logger.exception(
                "%s[%s] cannot be deferred and goes back to its queue", self.delivery.task, self.delivery.task_id
            )
            return deferral.give_back(self.task, self.delivery, error, claim_left, self._pause)
        deferrals = self.delivery.deferrals + 1
        self._tell(events.Deferred, countdown_seconds=round(countdown, 3), reason=reason, deferrals=deferrals)
        if holder is not None:
            # Only now: a note without its copy would have the message dropped that is delivered again after a crash.
            self._note_deferral(holder, began_at, began_at + countdown)
        return Ignore()

    def _note_deferral(self, holder: Record, now: float, due: float) -> None:
        """Note when the successor of this copy comes; any other message is never taken for its twin."""
        store, key, copy, owner = self.settings.store, self.claim_request.key, self.delivery.copy, holder.owner
        if copy is not None and owner is not None:
            past = holder.past_deferrals(now)
            self._noted(lambda: store.note_deferral(key, owner, copy, int(due * 1000), past))

    def _pause(self, wanted: float) -> None:
        """Wait in this slot for so many seconds, or until the delivery must come to an end."""
        with suppress(SoftTimeLimitExceeded):
            self.settings.store.clock.sleep(max(min(wanted, self._time_left()), 0.0))

    def _given_back(self, error: Exception) -> Exception:
        """Return what sends the message back because what follows it could not be sent."""
        return deferral.give_back(self.task, self.delivery, error, None, self._pause)

    def _note_dispatch(self) -> None:
        if self._noted(lambda: self.settings.store.note_dispatch(self.claim_request.key, self.delivery.task_id)):
            self._tell(events.Dispatched)

    def _noted(self, note: Callable[[], None]) -> bool:
        patience = min(NOTE_PATIENCE, self._time_left())
        try:
            persistently(note, clock=self.settings.store.clock, seconds=patience)
        except (StoreError, SoftTimeLimitExceeded):
            return False
        return True

    def _tell(self, kind: type[events.Event], **details: Any) -> None:
        self.settings.observe(kind.about(self.claim_request, **details))
