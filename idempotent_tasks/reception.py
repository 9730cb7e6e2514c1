"""One delivery at one task: the guard's verdict becomes a result, a deferral, `Ignore` or an error."""

import logging
import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass, field
from typing import Any, Final
from uuid import uuid4

from celery.exceptions import Ignore, Reject, SoftTimeLimitExceeded, TaskPredicate

from idempotent_tasks import continuation, deferral, events
from idempotent_tasks.active_run import ActiveRun
from idempotent_tasks.clock import SystemClock
from idempotent_tasks.delivery import Delivery
from idempotent_tasks.errors import (
    IdempotencyError,
    InProgressError,
    MissingKeyError,
    PayloadMismatchError,
    ResultUnavailableError,
    StoreError,
    StoreUnavailableError,
)
from idempotent_tasks.guard import STORE_PATIENCE, Guard
from idempotent_tasks.keeper import Keeper, Term, term_of
from idempotent_tasks.keys import arguments_digest, check_prefix, payload_digest, record_key
from idempotent_tasks.liveness import current_process, has_ended
from idempotent_tasks.policy import Idempotency, seconds
from idempotent_tasks.recall import recalled
from idempotent_tasks.records import Busy, Claim, ClaimRequest, Record, Released, Status
from idempotent_tasks.retries import persistently
from idempotent_tasks.settings import Settings
from idempotent_tasks.stores import Store
from idempotent_tasks.verdicts import Failed, Interrupted, Replayed, Returned, Sending, Unclaimed, Unreadable, Verdict

__all__ = ["NEVER_FINAL", "Reception", "UnguardedRun"]

logger = logging.getLogger("idempotent_tasks")

#: Seconds for which a note is tried again that spares others some work.
NOTE_PATIENCE: Final = 1.0
#: Seconds in which a process sends what follows a task once it has stored the outcome; a slower one is not waited for.
SENDING_SECONDS: Final = 5.0
#: The part of a hard time limit, and at most how many seconds of it, that stay for what becomes of the message.
LAST_PART: Final = 1 / 4
LAST_SECONDS: Final = 2.0

#: Exceptions that say what becomes of a message, of a claim or of a process, and never what came of a body.
NEVER_FINAL: Final = (TaskPredicate, SoftTimeLimitExceeded, IdempotencyError, MemoryError)

_keeper = Keeper()
#: Never corrected, unlike a store's: how long a child may still live is measured on its own machine.
_local_clock = SystemClock()


@dataclass(frozen=True, slots=True)
class UnguardedRun:
    """``self.idempotency`` in a body that runs without a claim: called directly, or let through by a policy."""

    key: str | None = None
    fence: int = 0
    attempt: int = 0
    lost: bool = False


Body = Callable[[ActiveRun | UnguardedRun], Any]


@dataclass(frozen=True, kw_only=True)
class Reception:
    """Everything that decides what becomes of one delivery."""

    #: The bound Celery task; its current request is the delivery.
    task: Any
    delivery: Delivery
    policy: Idempotency
    settings: Settings
    #: Epoch seconds by this machine's clock.
    _began_at: float = field(default_factory=_local_clock.now, repr=False)
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
        match self._verdict(request, body):
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
                raise interrupt if self.delivery.eager else self._deferred(None, type(interrupt).__name__)

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
            task_id=delivery.task_id,
            worker=delivery.worker,
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
            policy=self.policy,
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
        return self._began_at + limit - min(LAST_SECONDS, LAST_PART * limit) - _local_clock.now()

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
        continuation.tell_when_sent(request, self._note_dispatch)

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
        if self.policy.on_busy == "raise" or self.delivery.eager:
            msg = "another delivery with this key is running; its result will be stored under the key"
            return InProgressError(msg, self.delivery.task, self.claim_request.key, holder.held_until)
        message, deferrals = self.delivery.message, self.delivery.deferrals
        if holder.deferred.get(message, -1) >= deferrals:
            self._tell(events.Merged)
            return Ignore()
        answer = self._deferred(holder.held_until - self.settings.store.clock.now(), "busy")
        if isinstance(answer, Ignore):
            # Only now: a note without its copy would have the message dropped that is delivered again after a crash.
            self._noted(lambda: self.settings.store.note_deferral(self.claim_request.key, message, deferrals))
        return answer

    def _on_store_error(self, body: Body, error: StoreError) -> Any:
        if self.policy.on_store_error == "run":
            return self._run_unguarded(body, self.claim_request.key, error)
        if isinstance(error, StoreUnavailableError):
            self._withdraw(type(error).__name__)
        raise self._put_off(error)

    def _put_off(self, error: StoreError) -> Exception:
        if self.policy.on_store_error == "raise" or self.delivery.eager:
            return error
        logger.error("%s[%s] is deferred: %s", self.delivery.task, self.delivery.task_id, error)
        return self._deferred(None, type(error).__name__)

    def _withdraw(self, reason: str) -> None:
        """Release, in one try, a claim whose answer may have been lost: it would block the key for all its time."""
        if self._time_left() < STORE_PATIENCE:
            return
        # An interrupt has nothing to cut short but this: the body will not run.
        with suppress(StoreError, SoftTimeLimitExceeded):
            if isinstance(self.settings.store.release(Claim.unseen(self.claim_request), reason), Released):
                self._tell(events.Released, reason=reason)

    def _deferred(self, claim_left: float | None, reason: str) -> Ignore | Reject:
        """Publish the message again, and return what tells Celery to be done with this copy of it."""
        timeout = deferral.visibility_timeout(self.task.app)
        countdown = deferral.countdown_seconds(self.delivery.deferrals, claim_left, timeout)
        try:
            deferral.publish_again(self.task, self.delivery, countdown)
        except Exception as error:
            logger.exception(
                "%s[%s] cannot be deferred and goes back to its queue", self.delivery.task, self.delivery.task_id
            )
            return Reject(error, requeue=True)
        deferrals = self.delivery.deferrals + 1
        self._tell(events.Deferred, countdown_seconds=round(countdown, 3), reason=reason, deferrals=deferrals)
        return Ignore()

    def _note_dispatch(self) -> None:
        if self._noted(lambda: self.settings.store.note_dispatch(self.claim_request.key, self.delivery.task_id)):
            self._tell(events.Dispatched)

    def _noted(self, note: Callable[[], None]) -> bool:
        clock = self.settings.store.clock
        try:
            persistently(note, clock=clock, until=clock.now() + NOTE_PATIENCE)
        except (StoreError, SoftTimeLimitExceeded):
            return False
        return True

    def _tell(self, kind: type[events.Event], **details: Any) -> None:
        self.settings.observe(kind.about(self.claim_request, **details))
