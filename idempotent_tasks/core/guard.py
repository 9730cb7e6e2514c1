"""The guard: claim the key, run the body, commit its outcome; or replay, or return who holds the key.

No Celery and no DynamoDB here: `messaging` decides what a verdict means for the message.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Final, NoReturn, TypeVar

from idempotent_tasks import events
from idempotent_tasks.core.atomic import Atomic, refuse_in_transaction, transacting
from idempotent_tasks.core.encoding import NONE, unreplayable
from idempotent_tasks.core.lease import Lease, RunContext
from idempotent_tasks.core.policy import Idempotency, seconds
from idempotent_tasks.core.processes import this_process
from idempotent_tasks.core.receipts import Following, Receipt
from idempotent_tasks.core.records import (
    Busy,
    Claim,
    ClaimAnswer,
    ClaimRequest,
    Committed,
    Finished,
    Granted,
    KeptSteps,
    Lost,
    Mismatch,
    Outcome,
    Parked,
    Record,
    Status,
    Superseded,
    Unanswered,
    WritesRefused,
    committed_record,
    held_claim,
    was_committed,
)
from idempotent_tasks.core.recovery import Done, NotDone, Recovery, Unknown
from idempotent_tasks.core.results import Recalled, Results
from idempotent_tasks.core.retry import RetryingStore
from idempotent_tasks.core.stepped import SteppedRun
from idempotent_tasks.core.steps import RunEnds, StepCall, StepCaller, StepUnkept, StepUnresolved
from idempotent_tasks.core.store import AtomicStore
from idempotent_tasks.core.transaction import TransactedRun, has_receipt
from idempotent_tasks.core.unrecorded import UnrecordedOutcomes
from idempotent_tasks.errors import (
    ConfigurationError,
    CrashLoopError,
    PayloadMismatchError,
    RecordNotFoundError,
    ResultEncodingError,
    ResultUnavailableError,
    StoreError,
    StoreUnavailableError,
)

__all__ = [
    "PROCESS_ENDS",
    "Ask",
    "Failed",
    "Guard",
    "Interrupted",
    "Received",
    "Replay",
    "Replayed",
    "Returned",
    "Unclaimed",
    "Unreadable",
    "Unresolved",
    "Unwritten",
    "Verdict",
]

T = TypeVar("T")

#: The reason of the release of a claim whose process has ended.
HOLDER_ENDED: Final = "HolderEnded"
#: Exceptions that end a process, raised by the body or by billiard's SIGTERM at a hard time limit: no clean end.
PROCESS_ENDS: Final = (SystemExit, KeyboardInterrupt)
#: The reasons of the releases of a lock at the end of its run, and of a key whose lock another run holds.
UNLOCKED: Final = "Ended"
NOT_LOCKED: Final = "NotLocked"
#: The reason of a key that is parked because its task asks nobody (``on_rerun="park"``).
RERUN: Final = "Rerun"
#: The reason of the release of a claim that ended before its body could begin.
CLAIM_ENDED: Final = "ClaimEnded"
#: The reason of the release of a claim that would give an outcome to a later start of the key than its receipt is of.
LATER_START: Final = "LaterStart"
#: Seconds between two claims of a busy key under ``on_busy="wait"``.
WAIT_PAUSE: Final = 0.5


@dataclass(frozen=True, slots=True)
class Returned:
    """The body ran and returned."""

    value: Any


@dataclass(frozen=True, slots=True)
class Failed:
    """The key's outcome is a failure, of this run or replayed."""

    error: BaseException
    #: As in `Replayed`.
    dispatched: bool = False
    continuation: str | None = None
    #: Whether the failure is an earlier run's.
    replayed: bool = field(default=False, compare=False)


@dataclass(frozen=True, slots=True)
class Unclaimed:
    """The store did not answer the claim; the body did not run."""

    error: StoreError


@dataclass(frozen=True, slots=True)
class Interrupted:
    """The delivery was interrupted, as by a time limit, before its body started or before its outcome was read."""

    error: BaseException


@dataclass(frozen=True, slots=True)
class Received:
    """An earlier run has left its receipt, whose outcome is the key's now; the body did not run."""

    record: Record


@dataclass(frozen=True, slots=True)
class Unwritten:
    """The body's transaction was not carried out, or is not known to have been, and its claim is released."""

    error: StoreError


@dataclass(frozen=True, slots=True)
class Unresolved:
    """An earlier run left no outcome, and nobody knows what came of it, or of a step; the key is still held."""

    run: RunContext
    #: Why, for the record of a parked key.
    reason: str
    #: What ``recover`` has raised, so that it may be asked again; None where that is of no use.
    error: Exception | None = None
    #: Whether the body has begun, and was ended in one of its steps.
    began: bool = False


#: The result of `Guard.deliver`.  `Finished`, `Received` and `Superseded` have a record to replay.
Verdict = (
    Returned
    | Failed
    | Finished
    | Received
    | Superseded
    | Busy
    | Parked
    | Unclaimed
    | Unresolved
    | Unwritten
    | Interrupted
)
#: Asks what came of an earlier run, for the run that holds the key and with the key's record.
Ask = Callable[[RunContext, Record], Recovery]


@dataclass(frozen=True, slots=True)
class Replayed:
    """The key had its outcome already."""

    value: Any
    #: Whether the continuation (links, chain, chord) of this task id was sent before.
    dispatched: bool = False
    #: The continuation that the body of this task id has set instead of its message's; None for the message's.
    continuation: str | None = None


@dataclass(frozen=True, slots=True)
class Unreadable:
    """The key has an outcome that cannot be read for now; the body did not run."""

    error: StoreError


#: The result of `Guard.replay`.
Replay = Replayed | Failed | Unreadable | Busy | Parked | Interrupted


@dataclass(frozen=True, kw_only=True)
class Guard:
    """Runs bodies under claims, for one policy and one store."""

    store: RetryingStore
    policy: Idempotency
    lease: Lease
    results: Results
    #: Whether another process releases the claim when this one ends.
    watched: bool = False
    #: Sends what must follow the transaction of a run with a receipt; None where the policy has no receipts.
    following: Following | None = None

    def deliver(self, request: ClaimRequest, body: Callable[[RunContext], Any], ask: Ask | None = None) -> Verdict:
        """Claim the key, run the body, commit its outcome; return the verdict.

        Args:
            request: the claim to request.
            body: the task's body; an exception that is no final failure is raised again once the key is released.
            ask: the task's ``recover``, called before a body that would run again; None to run it, or to leave the key
                to a person, as ``on_rerun`` says.

        Raises:
            PayloadMismatchError: the key was used with another payload.
            CrashLoopError: the body crashed ``max_crashes`` times in a row.
            ConfigurationError: the key of the request's lock has an outcome.
            ResultEncodingError: the body succeeded, its result cannot be stored.
            AtomicWriteError: DynamoDB has refused the body's writes.
        """
        # To release after an interrupt: the claim may be granted before its answer is seen.
        claim = Claim.unseen(request)
        try:
            answer = self._claim(request, self.store)
            if isinstance(answer, Granted):
                claim = answer.claim
                undecided = self._left_to_a_person(RunContext(claim, self.store))
                if undecided is not None:
                    return undecided
                self._refuse_crash_loop(claim)
                if request.lock is None:
                    self._emit_claimed(claim, fence=claim.fence)
        except self.store.interrupts as error:
            self.store.release(claim, type(error).__name__, began=False)
            return Interrupted(error)
        match answer:
            case Granted() if request.lock is not None:
                return self._run_locked(RunContext(claim, self.store), request.lock, body, ask)
            case Granted():
                return self._run(RunContext(claim, self.store), body, ask)
            case Mismatch():
                self._emit(events.Mismatched, request)
                raise PayloadMismatchError(task=request.task, key=request.key)
            case Unanswered(store_error):
                return Unclaimed(store_error)
            case Finished() | Busy() | Parked():
                return answer

    def _left_to_a_person(self, run: RunContext) -> Unresolved | Unwritten | None:
        """Return why a body does not run that would run again; None if it may, or its earlier run left a receipt."""
        if self.policy.on_rerun != "park" or not run.rerun:
            return None
        return self._unless_received(run, lambda: Unresolved(run, RERUN))

    def _run_locked(
        self, run: RunContext, request: ClaimRequest, body: Callable[[RunContext], Any], ask: Ask | None
    ) -> Verdict:
        """Run the body while its lock is held; if another run holds that, release the key and return `Busy`."""
        answer = self._locked(run, request)
        if isinstance(answer, Granted):
            run.lock = RunContext(answer.claim, self._lock_store)
            return self._run_holding(run, run.lock, body, ask)
        # Not claimed, as far as observers know: no run began.
        self._lock_store.release(run.claim, NOT_LOCKED, began=False)
        match answer:
            case Unanswered(store_error):
                return Unclaimed(store_error)
            case Finished() | Mismatch() | Parked():
                msg = "the key of its lock has an outcome: another call was given that key as its idempotency_key"
                raise ConfigurationError(msg, request.task, request.key)
        return answer

    def _run_holding(
        self, run: RunContext, lock: RunContext, body: Callable[[RunContext], Any], ask: Ask | None
    ) -> Verdict:
        verdict: Verdict | None = None
        try:
            with self.lease.renewing(lock):
                try:
                    verdict = self._run(run, body, ask)
                finally:
                    lock.hand_over(UNLOCKED)
        except self.store.interrupts as error:
            # As in `_run`: after the body's end it is too late to matter.
            if verdict is None:
                raise run.raised or error  # noqa: B904 - it keeps its own cause
        return verdict

    def _locked(self, run: RunContext, request: ClaimRequest) -> ClaimAnswer | Unanswered | Interrupted:
        """Claim a lock, and renew the run's claim while that waits; no lock is granted past the claim's end.

        Observers hear of the claim only now, when its body will run.
        """
        lock = Claim.unseen(request)
        try:
            with self.lease.renewing(run):
                answer = self._claim(request, self._lock_store)
            if not isinstance(answer, Granted):
                return answer
            lock = answer.claim
            if not run.claim_has_ended():
                self._emit_claimed(run.claim, fence=lock.fence)
                return answer
        except self.store.interrupts as error:
            self._lock_store.release(lock, type(error).__name__, began=False)
            return Interrupted(error)
        self._lock_store.release(lock, NOT_LOCKED, began=False)
        return Unanswered(StoreUnavailableError("the claim ended before its lock was granted", request.task, run.key))

    @property
    def _lock_store(self) -> RetryingStore:
        # Observers count claims and ends of runs, which a lock is not.
        return replace(self.store, observe=lambda _: None)

    def _claim(self, request: ClaimRequest, store: RetryingStore) -> ClaimAnswer | Unanswered:
        """Claim the key; repeat while it is busy under ``on_busy="wait"``, and at once if its holder has ended."""
        clock = store.clock
        wait = seconds(self.policy.wait_timeout) if self.policy.on_busy == "wait" else 0.0
        give_up_at = clock.monotonic() + min(wait, store.deadline.seconds_left)
        while True:
            answer = store.claim(request)
            if isinstance(answer, Busy) and not answer.holder.free and this_process().has_ended(answer.holder.process):
                ended = Claim.shown_by(answer.holder, request.settle_seconds)
                store.release(ended, HOLDER_ENDED, crashed=True)
                answer = store.claim(request)
            left = give_up_at - clock.monotonic()
            if not isinstance(answer, Busy) or left <= 0:
                return answer
            clock.sleep(min(WAIT_PAUSE, left))

    def _refuse_crash_loop(self, claim: Claim) -> None:
        crashes = claim.attempt - 1
        if crashes < self.policy.max_crashes:
            return
        self._emit(events.CrashLooped, claim.request, crashes=crashes)
        self.store.release(claim, CrashLoopError.__name__, nothing_done=True)
        msg = (
            f"the body ended its process {crashes} times in a row without finishing and is not tried again; "
            "find out what kills the worker (memory? a hard time limit?), then publish the task again"
        )
        raise CrashLoopError(msg, claim.request.task, claim.key)

    def _run(self, run: RunContext, body: Callable[[RunContext], Any], ask: Ask | None) -> Verdict:
        verdict: Verdict | None = None
        try:
            # Until the outcome is stored: encoding, compression and an upload take time too.
            with self.lease.renewing(run):
                undecided: Unresolved | Unclaimed | Unwritten | None = None
                if ask is not None and run.rerun:
                    undecided = self._unless_received(run, partial(self._recover, run, ask))
                undecided = undecided or self._perform(run, body)
                if undecided is not None:
                    return undecided
                verdict = self._settled(run)
        except RunEnds as ends:
            return self.store.despite_interrupts(partial(self._ended_in_step, run, ends))
        except BaseException as error:
            is_interrupt = isinstance(error, self.store.interrupts)
            if not run.ended:
                stands = run.raised if is_interrupt and run.raised is not None else error
                self._release(run, stands)
                raise stands  # noqa: B904 - it keeps its own cause
            if not is_interrupt:
                raise
            # An interrupt after the body's end is too late to matter.
            return verdict or self._settled(run)
        return verdict

    def _unless_received(self, run: RunContext, otherwise: Callable[[], T | None]) -> T | Unwritten | None:
        """Return what a function returns; None if an earlier run has left its receipt.

        If nobody can tell whether one has, the claim is released.
        """
        receipts = self.policy.imported_receipts
        if receipts is None:
            return otherwise()
        run.asking = True
        try:
            is_received = has_receipt(receipts, run, self.store)
        except StoreError as error:
            return self._unwritten(run, error)
        run.asking = False
        return None if is_received else otherwise()

    def _unwritten(self, run: RunContext, error: StoreError) -> Unwritten:
        run.release(type(error).__name__)
        return Unwritten(error)

    def _perform(self, run: RunContext, body: Callable[[RunContext], Any]) -> Unwritten | None:
        """Run the body, unless the outcome is known; with receipts, have that committed in the body's database."""
        receipts, following = self.policy.imported_receipts, self.following
        run.steps = self._steps(run)
        if receipts is None or following is None:
            if not run.ended:
                self._run_body(run, body)
            return None
        transacted = TransactedRun(
            run=run,
            receipts=receipts,
            following=following,
            store=self.store,
            body=body,
            run_body=self._run_body,
            encode=lambda: self._outcome(run),
            is_final=self.results.is_final,
            is_repeatable=not self.policy.parks,
        )
        answer = transacted.perform()
        return None if answer is None else self._unwritten(run, answer.error)

    def _steps(self, run: RunContext) -> StepCaller:
        """Return what a body calls its steps with; most bodies have none, so the first step makes what it needs."""
        kept, made = run.claim.steps, dict[RunContext, SteppedRun]()

        def perform(call: StepCall) -> Any:
            # In one call, because a body may have steps in several threads.
            stepped = made.get(run) or made.setdefault(run, self._stepped(run, kept))
            return stepped.perform(call)

        return StepCaller(perform)

    def _stepped(self, run: RunContext, kept: KeptSteps) -> SteppedRun:
        # Not over `store`, which a cache may answer for.
        store = replace(self.store, store=self.lease.store)
        return SteppedRun(
            run=run, kept=kept, store=store, policy=self.policy, results=self.results, following=self.following
        )

    def _ended_in_step(self, run: RunContext, ends: RunEnds) -> Superseded | Unresolved | Unwritten:
        """Return why a body may not go on that was ended in a step."""
        if isinstance(ends, StepUnresolved):
            return Unresolved(run, ends.reason, ends.error, began=True)
        assert isinstance(ends, StepUnkept)  # noqa: S101 - there is no other
        if not ends.is_lost:
            return self._unwritten(run, ends.error)
        try:
            record = self.store.get(run.key)
        except StoreError as error:
            return self._unwritten(run, ends.error if isinstance(error, RecordNotFoundError) else error)
        if record.free or held_claim(record, run.claim) is not None:
            # Nobody else has the key: its claim has ended or its record was released, or it is the lock that is lost.
            return self._unwritten(run, ends.error)
        self._emit(events.Superseded, run.claim.request, fence=run.claim.fence)
        return Superseded(record)

    def _recover(self, run: RunContext, ask: Ask) -> Unresolved | Unclaimed | None:
        """Ask what came of an earlier run, and note its result; return None if that is known and the claim lives."""
        run.asking = True
        try:
            answer = ask(run, self.store.get(run.key))
            run.asking = False
            if isinstance(answer, Done):
                run.value = answer.result
                run.ended = True
        except Exception as error:
            if run.handed_over:
                # It has published a retry, whose run asks again.
                raise
            return Unresolved(run, type(error).__name__, error)
        if not run.ended and run.claim_has_ended():
            # The process stood still, or asking took too long: another delivery may have the key.
            self.store.release(run.claim, CLAIM_ENDED, began=False)
            return Unclaimed(
                StoreUnavailableError("the claim ended before recover answered", run.claim.request.task, run.key)
            )
        match answer:
            case Done() | NotDone():
                self._emit(events.Recovered, run.claim.request, done=run.ended)
                return None
            case Unknown(reason):
                return Unresolved(run, reason)
        msg = f"recover returned a {type(answer).__name__}; have it return Done(result), NotDone() or Unknown(reason)"
        return Unresolved(run, ConfigurationError.__name__, ConfigurationError(msg, run.claim.request.task, run.key))

    def _run_body(self, run: RunContext, body: Callable[[RunContext], Any]) -> None:
        """Run the body to its outcome; pass on any other exception."""
        try:
            # No call between these two, so that no interrupt comes between them.
            run.value = body(run)
            run.ended = True
            if run.ends is not None:
                _refuse_to_go_on(run, run.ends)
            if isinstance(run.value, Atomic):
                self._take_writes(run, run.value)
        except BaseException as error:
            if run.ends is not None and not isinstance(error, PROCESS_ENDS):
                raise run.ends from None
            if run.handed_over or not self.results.is_final(error):
                run.raised = error
                raise
            run.failure = error
            run.ended = True

    def _take_writes(self, run: RunContext, returned: Atomic) -> None:
        """Take result and writes from what a body has returned; it has ended only once they can be carried out."""
        run.ended = False
        refuse_in_transaction(returned, run.transaction, run.claim.request.task, run.key)
        self._transacting(run.claim).check_writes(run.key, returned.writes)
        run.value, run.writes = returned.result, returned.writes
        run.ended = True

    def _transacting(self, claim: Claim) -> AtomicStore:
        # Not `store`, which a cache may answer for.
        return transacting(self.lease.store, claim.request.task, claim.key)

    def _release(self, run: RunContext, error: BaseException) -> None:
        # Only the watcher knows whether the body exited by itself or was asked to from outside.
        if not (isinstance(error, PROCESS_ENDS) and self.watched):
            run.hand_over(type(error).__name__, crashed=self._is_crash(error))

    def _is_crash(self, error: BaseException) -> bool:
        if isinstance(error, Exception):
            return isinstance(error, MemoryError)
        # Except in the prefork pool, whose processes are watched, Celery takes a BaseException for a lost worker.
        # A greenlet is ended from outside, by a revoke; its exception's type is in a package that may be missing.
        kinds = {kind.__name__ for kind in type(error).__mro__}
        return not self.watched and not kinds & {GeneratorExit.__name__, "GreenletExit"}

    def _settled(self, run: RunContext) -> Verdict:
        """Commit an ended body's outcome despite interrupts; only return it if the run has released its key already."""
        if run.handed_over:
            return Returned(run.value)
        try:
            return self.store.despite_interrupts(lambda: self._commit(run))
        except BaseException as error:
            if not run.ending and not isinstance(error, self.store.interrupts):
                # It was raised between the body's end and the first try of the commit, such as a MemoryError.
                self._emit(events.Unrecorded, run.claim.request, reason=type(error).__name__)
            raise

    def _commit(self, run: RunContext) -> Verdict:
        """Store the outcome, and return it as the verdict, or the record that supersedes it."""
        claim = run.claim
        outcome, unwritable = self._outcome(run)
        run.ending = True
        if run.writes is not None:
            return self._commit_with(run, outcome, run.writes, unwritable)
        try:
            answer = self._stored(run, outcome)
        except Exception as error:
            if not isinstance(error, self.store.interrupts):
                self._emit(events.Unrecorded, claim.request, reason=type(error).__name__)
            raise
        match answer:
            case Committed():
                self._emit_commit(run, outcome)
            case Unanswered(store_error):
                this_process().own(UnrecordedOutcomes).keep(self.store, run.claim, outcome, store_error)
            case Superseded(record) if record.free and record.fence == claim.fence:
                # The effect is done, somebody has freed the key, and no other run has had it since.
                self._emit(events.Unrecorded, claim.request, reason=events.Released.__name__)
            case Superseded():
                self._emit(events.Superseded, claim.request, fence=claim.fence)
                return answer
        if unwritable is not None and not run.result_ignored:
            raise ResultEncodingError(unwritable.message, claim.request.task, claim.key) from None
        if run.is_replay:
            return Received(committed_record(claim, outcome, claim.request.retention_seconds, self.store.clock.now()))
        return Returned(run.value) if run.failure is None else Failed(run.failure)

    def _outcome(self, run: RunContext) -> tuple[Outcome, ResultEncodingError | None]:
        """Encode the outcome of a body that has ended; if that cannot be done, return one without data, and why."""
        if run.receipt is not None:
            return _received(run.receipt, run.claim), None
        unwritable = None
        try:
            if run.failure is None:
                outcome = self.results.completed(run.value, run.claim)
            else:
                outcome = self.results.failed(run.failure, run.claim)
        except ResultEncodingError as error:
            unwritable, outcome = error, unreplayable(error.message)
        return outcome if run.continuation is None else replace(outcome, continuation=run.continuation), unwritable

    def _commit_with(
        self,
        run: RunContext,
        outcome: Outcome,
        writes: Sequence[Mapping[str, Any]],
        unwritable: ResultEncodingError | None,
    ) -> Verdict:
        """Store the outcome and carry out the body's writes; or neither, and then the key is released."""
        claim = run.claim
        if unwritable is not None and not run.result_ignored:
            return self._without_writes(run, outcome, unwritable)
        run.writing = True
        try:
            answer = self.store.commit_with(self._transacting(claim), run, outcome, writes)
        finally:
            run.writing = False
        match answer:
            case Committed():
                self._emit_commit(run, outcome)
                return Returned(run.value)
            case Superseded(record) if not record.free:
                self._emit(events.Superseded, run.claim.request, fence=run.claim.fence)
                return answer
            case WritesRefused(codes):
                error = Atomic(run.value, writes).refused(codes, claim.request.task, claim.key)
                return self._without_writes(run, outcome, error)
            case Unanswered(store_error):
                return self._without_writes(run, outcome, store_error)
        # It was released, or deleted, under the body.
        gone = StoreUnavailableError("the claim is gone, and nothing was written", claim.request.task, claim.key)
        return self._without_writes(run, outcome, gone)

    def _without_writes(self, run: RunContext, outcome: Outcome, error: Exception) -> Verdict:
        """Release the claim, so that no try of the transaction is carried out after this one, and report.

        Raises:
            Exception: the error, unless it is the store's, once it is certain that nothing was written.
        """
        claim, request = run.claim, run.claim.request
        answer = run.release(type(error).__name__)
        try:
            if isinstance(answer, Unanswered):
                raise answer.error
            if isinstance(answer, Lost) and was_committed(self.store.get(run.key), claim):
                # A try whose answer was lost.
                self._emit_commit(run, outcome)
                return Returned(run.value)
        except RecordNotFoundError:
            pass
        except StoreError as unknown:
            return Unwritten(unknown)
        if isinstance(error, StoreError):
            return Unwritten(error)
        if isinstance(error, ResultEncodingError):
            raise ResultEncodingError(error.message, request.task, claim.key) from None
        raise error

    def _stored(self, run: RunContext, outcome: Outcome) -> Committed | Superseded | Unanswered:
        """Commit; once more under a new claim, where the run that has superseded this one left no outcome."""
        answer = self.store.commit(run, outcome)
        if not isinstance(answer, Superseded) or not answer.record.free or answer.record.fence == run.claim.fence:
            return answer
        match self.store.claim(run.claim.request.by(this_process().token())):
            case Granted(claim) if run.receipt is not None and claim.generation != run.receipt.generation:
                # Another run could still commit its rows beside an outcome that has no receipt of its generation.
                self.store.release(claim, LATER_START, began=False)
            case Granted(claim):
                run.claim = claim
                return self.store.commit(run, outcome)
            case Finished(record) | Parked(record) | Busy(_, record):
                return Superseded(record)
            case Unanswered() as unanswered:
                return unanswered
        return answer

    def _emit_claimed(self, claim: Claim, *, fence: int) -> None:
        self._emit(events.Claimed, claim.request, fence=fence, attempt=claim.attempt)

    def _emit_commit(self, run: RunContext, outcome: Outcome) -> None:
        request, replayable = run.claim.request, outcome.codec != NONE
        ran = round(self.store.clock.now() - run.began_at, 3)
        self._emit(events.Committed, request, fence=run.claim.fence, replayable=replayable, seconds=ran)
        if not replayable and not run.result_ignored:
            self._emit(events.Unreplayable, request, reason=outcome.error or "")

    def replay(
        self, request: ClaimRequest, record: Record, recalled: Recalled | None = None, *, result_ignored: bool = False
    ) -> Replay:
        """Return the outcome in a record of another delivery or run.

        Args:
            request: this delivery's claim request.
            record: of an outcome; or of a claim that has superseded this delivery's own.
            recalled: the result from the result backend, where the record has none.
            result_ignored: whether nobody gets the result, so that one that cannot be read is no error.

        Raises:
            ResultUnavailableError: the key has an outcome without a readable result.
            ConfigurationError: ``on_replay`` returned None; what ``on_replay`` itself raises is passed on.
        """
        if record.status is Status.INPROGRESS:
            return Busy(record.held_until, record) if record.parked_at is None else Parked(record)
        dispatched = request.task_id in record.dispatched
        # Another task id has the continuation of its own message.
        continuation = record.continuation if request.task_id == record.task_id else None
        replay: Replayed | Failed
        try:
            if record.status is Status.FAILED:
                replay = Failed(self.results.failure(record), dispatched, continuation, replayed=True)
            else:
                replay = Replayed(self.results.result(record, recalled), dispatched, continuation)
        except ResultUnavailableError:
            if not result_ignored:
                raise
            replay = Replayed(None, dispatched, continuation)
        except StoreError as error:
            return Unreadable(error)
        except self.store.interrupts as error:
            return Interrupted(error)
        if isinstance(replay, Replayed):
            replay = replace(replay, value=self.results.replayed(replay.value, record))
        completed = record.completed_at
        age = None if completed is None else round(self.store.clock.now() - completed / 1000, 3)
        self._emit(events.Replayed, request, holder_task_id=record.task_id, age_seconds=age)
        return replay

    def _emit(self, kind: type[events.Event], request: ClaimRequest, **details: Any) -> None:
        self.store.observe(kind.about(request, **details))


def _refuse_to_go_on(run: RunContext, ends: RunEnds) -> NoReturn:
    """End a body that was ended in a step, and has caught that and returned."""
    run.ended = False
    raise ends


def _received(receipt: Receipt, claim: Claim) -> Outcome:
    """Return the outcome in a receipt, for the record of a claim."""
    assert receipt.outcome is not None  # noqa: S101 - a row that is found has one
    # What a body has changed about what follows is about the message of its own task id.
    return receipt.outcome if receipt.task_id == claim.request.task_id else replace(receipt.outcome, continuation=None)
