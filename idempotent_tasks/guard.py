"""The heart: claim the key, run the body, commit its outcome; or replay, or say who holds the key.

No Celery and no DynamoDB here.  What a verdict means for the message is `idempotent_tasks.task`'s business.
"""

import math
from collections.abc import Callable, Collection
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Final, TypeVar

from idempotent_tasks import events
from idempotent_tasks.active_run import ActiveRun
from idempotent_tasks.codec import NONE, unreplayable
from idempotent_tasks.committed import committed_record
from idempotent_tasks.errors import (
    CrashLoopError,
    PayloadMismatchError,
    RecordExistsError,
    ResultEncodingError,
    ResultUnavailableError,
    StoreError,
    StoreUnavailableError,
)
from idempotent_tasks.policy import Idempotency, seconds
from idempotent_tasks.records import (
    Busy,
    Claim,
    ClaimAnswer,
    ClaimRequest,
    CommitAnswer,
    Committed,
    Finished,
    Granted,
    Lost,
    Mismatch,
    Outcome,
    Record,
    Released,
    Renewed,
    Status,
    Superseded,
    Vanished,
)
from idempotent_tasks.results import Outcomes, Recalled
from idempotent_tasks.retries import LEASE_PART, persistently
from idempotent_tasks.stores import CLOCK_TOLERANCE_SECONDS, ResultStore, Store
from idempotent_tasks.verdicts import Failed, Interrupted, Replayed, Returned, Sending, Unclaimed, Unreadable, Verdict

__all__ = ["Guard", "Keeping"]

T = TypeVar("T")
Keeping = Callable[[ActiveRun], AbstractContextManager[None]]

#: Seconds for which a claim, and a commit or a release after its claim's end, is tried again while the store fails.
STORE_PATIENCE: Final = 5.0
#: Seconds for which a commit is tried at most where the claim is renewed meanwhile, if that is more than its lease.
COMMIT_PATIENCE: Final = 60.0
#: Seconds that a commit or a release is given where less is left: nothing else is worth the last moment of a process.
LAST_TRY: Final = 0.5
#: How often a key is asked for that is granted too late, or a record put back that comes and goes.
MOST_ROUNDS: Final = 5
#: Why the claim of a process is released that is found to have ended.
HOLDER_ENDED: Final = "HolderEnded"
#: What ends a process, by the body itself or by billiard's SIGTERM at a hard time limit, is no clean end of the body.
PROCESS_ENDS: Final = (SystemExit, KeyboardInterrupt)
#: Seconds between two looks at a busy key under ``on_busy="wait"``.
WAIT_PAUSE: Final = 0.5


@dataclass(frozen=True, kw_only=True)
class Guard:
    """Runs bodies under claims, for one policy and one store."""

    store: Store
    policy: Idempotency
    observe: Callable[[events.Event], None]
    #: Keeps a claim alive while its body runs.
    keeping: Keeping
    #: Whether another process releases the claim when this one ends.
    watched: bool = False
    #: Whether the process that a record names as its holder is certain to have ended.
    holder_has_ended: Callable[[Record], bool] = lambda _: False
    #: For how many seconds the process that stored an outcome may yet be sending what follows this delivery.
    sending_for: Callable[[Record], float] = lambda _: 0.0
    #: Returns what follows the task, where the body has changed that since it began; None otherwise.
    changed_continuation: Callable[[], str | None] = lambda: None
    #: Exceptions that something outside raises into this thread at any moment, such as a soft time limit.
    interrupts: tuple[type[BaseException], ...] = ()
    #: Exceptions that are never a key's outcome, whatever ``store_failures`` says.
    never_final: tuple[type[BaseException], ...] = ()
    #: As in `Outcomes`.
    results: ResultStore | None = None
    accepts_pickle: bool = False
    accepted: Collection[str] = ()
    #: Returns whether nobody gets the result: one that cannot be stored, or read, is no error then.
    result_ignored: Callable[[], bool] = lambda: False
    recall: Callable[[Record], Recalled | None] = lambda _: None
    #: Returns the seconds in which the delivery must come to an end, because this process is killed after them.
    time_left: Callable[[], float] = lambda: math.inf

    def run(self, request: ClaimRequest, body: Callable[[ActiveRun], Any]) -> Verdict:
        """Run the body if its key can be claimed, and return what became of the delivery.

        Args:
            request: the claim to ask for.
            body: the task's body; what it raises is passed on after the key was released, unless it is the outcome.

        Raises:
            PayloadMismatchError: the key was used with another payload.
            CrashLoopError: the body crashed ``max_crashes`` times in a row.
            ResultEncodingError: the body succeeded, its result cannot be stored.
            ResultUnavailableError: the key has an outcome without a readable result.
            ConfigurationError: ``on_replay`` returned nothing; what it raises is passed on.
        """
        # What an interrupt leaves of a claim that was granted, seen or not.
        claims = [Claim.unseen(request)]
        try:
            answer = self._claim(request)
            if isinstance(answer, Granted):
                claims.append(answer.claim)
                self._refuse_crash_loop(answer.claim)
                self._tell(events.Claimed, request, fence=answer.claim.fence, attempt=answer.claim.attempt)
        except StoreError as error:
            return Unclaimed(error)
        except self.interrupts as error:
            self._release(claims[-1], type(error).__name__, began=False)
            return Interrupted(error)
        match answer:
            case Granted(claim):
                return self._run_claimed(claim, body)
            case Finished(record):
                left = self.sending_for(record)
                return Sending(left) if left > 0 else self._replay(request, record)
            case Mismatch():
                self._tell(events.Mismatched, request)
                raise PayloadMismatchError(task=request.task, key=request.key)
            case Busy():
                return answer

    def _claim(self, request: ClaimRequest) -> ClaimAnswer:
        clock = self.store.clock
        patience = seconds(self.policy.wait_timeout) if self.policy.on_busy == "wait" else 0.0
        give_up_at = clock.monotonic() + min(patience, self.time_left())
        while True:
            answer = self._claim_once(request)
            if isinstance(answer, Busy) and self.holder_has_ended(answer.holder):
                self._release(Claim.shown_by(answer.holder), HOLDER_ENDED, crashed=True)
                answer = self._claim_once(request)
            left = give_up_at - clock.monotonic()
            if not isinstance(answer, Busy) or left <= 0:
                return answer
            clock.sleep(min(WAIT_PAUSE, left))

    def _claim_once(self, request: ClaimRequest) -> ClaimAnswer:
        left = self._seconds_left(STORE_PATIENCE)
        return persistently(lambda: self._timely_answer(request), clock=self.store.clock, seconds=left)

    def _timely_answer(self, request: ClaimRequest) -> ClaimAnswer:
        """Claim, and renew at once a claim that is over, or nearly, when its grant arrives.

        Raises:
            StoreUnavailableError: each grant came too late.
        """
        answer = self.store.claim(request)
        for _ in range(MOST_ROUNDS):
            if not isinstance(answer, Granted) or self._has_time(answer.claim):
                return answer
            renewed = self.store.renew(answer.claim, request.lease_seconds, request.retention_seconds)
            answer = Granted(renewed.claim) if isinstance(renewed, Renewed) else self.store.claim(request)
        raise StoreUnavailableError("every grant came after its own end", request.task, request.key)

    def _has_time(self, claim: Claim) -> bool:
        return claim.expires_at - self.store.clock.now() > claim.request.lease_seconds * LEASE_PART

    def _run_claimed(self, claim: Claim, body: Callable[[ActiveRun], Any]) -> Verdict:
        run = ActiveRun(claim, self._release)
        ended: list[Callable[[], Verdict]] = []
        verdicts: list[Verdict] = []
        try:
            # Until the outcome is stored: what is written, compressed and sent elsewhere before takes its time too.
            with self.keeping(run):
                ended.append(self._ended(run, body))
                verdicts.append(self._despite_interrupts(ended[0]))
        except BaseException as error:
            if not ended:
                self._let_go(run, error)
            elif not run.ending and not isinstance(error, self.interrupts):
                # It came between the body's end and the first try of the commit, for example for want of memory.
                self._tell(events.Unrecorded, claim.request, reason=type(error).__name__)
            # An interrupt after the body's return comes too late to mean anything.
            if not ended or not isinstance(error, self.interrupts):
                raise
        return verdicts[0] if verdicts else self._despite_interrupts(ended[0])

    def _ended(self, run: ActiveRun, body: Callable[[ActiveRun], Any]) -> Callable[[], Verdict]:
        """Run the body, and return what brings its outcome on record; what it raises else is passed on."""
        values: list[Any] = []
        try:
            values.append(body(run))
        except BaseException as error:
            if not values and self._is_final(run, error):
                return partial(self._fail, run, error)
            if not values or not isinstance(error, self.interrupts):
                raise
        if run.handed_over:
            return lambda: Returned(values[0])
        return lambda: self._finish(run, values[0])

    def _is_final(self, run: ActiveRun, error: BaseException) -> bool:
        final = isinstance(error, self.policy.final_errors) and not isinstance(error, self.never_final)
        return final and not run.handed_over

    def _let_go(self, run: ActiveRun, error: BaseException) -> None:
        # Whether an exit is the body's own or was asked for from outside, only the watcher knows.
        if not (isinstance(error, PROCESS_ENDS) and self.watched):
            run.hand_over(type(error).__name__, crashed=self._is_crash(error))

    def _is_crash(self, error: BaseException) -> bool:
        if isinstance(error, Exception):
            return isinstance(error, MemoryError)
        # But in the prefork pool, whose processes are watched, Celery takes what is no Exception for a lost worker. A
        # greenlet is ended from outside, by a revoke; its exception's type is in a package that may not be there.
        kinds = {kind.__name__ for kind in type(error).__mro__}
        return not self.watched and not kinds & {GeneratorExit.__name__, "GreenletExit"}

    def _refuse_crash_loop(self, claim: Claim) -> None:
        crashes = claim.attempt - 1
        if crashes < self.policy.max_crashes:
            return
        self._tell(events.CrashLooped, claim.request, crashes=crashes)
        self._release(claim, CrashLoopError.__name__)
        msg = (
            f"the body ended its process {crashes} times in a row without finishing and is not tried again; "
            "find out what kills the worker (memory? a hard time limit?), then publish the task anew"
        )
        raise CrashLoopError(msg, claim.request.task, claim.key)

    @property
    def _outcomes(self) -> Outcomes:
        return Outcomes(
            store=self.store,
            policy=self.policy,
            results=self.results,
            accepts_pickle=self.accepts_pickle,
            accepted=self.accepted,
            recall=self.recall,
            interrupts=self.interrupts,
            never_final=self.never_final,
            time_left=self.time_left,
        )

    def _finish(self, run: ActiveRun, value: Any) -> Verdict:
        try:
            outcome = self._outcomes.of_result(value, run.claim)
        except ResultEncodingError as error:
            verdict = self._commit(run, unreplayable(error.message), Returned(value))
            if isinstance(verdict, Returned) and not self.result_ignored():
                raise ResultEncodingError(error.message, run.claim.request.task, run.key) from None
            return verdict
        return self._commit(run, outcome, Returned(value))

    def _fail(self, run: ActiveRun, error: BaseException) -> Verdict:
        outcome = self._outcomes.of_failure(error, run.claim)
        return self._commit(run, outcome, Failed(error))

    def _commit(self, run: ActiveRun, outcome: Outcome, verdict: Returned | Failed) -> Verdict:
        """Store an outcome, and return the run's own verdict, or the one on the outcome that counts instead."""
        claim, run.ending = run.claim, True
        outcome = replace(outcome, continuation=self.changed_continuation())
        try:
            answer = self._until_stored(run, outcome)
        except Exception as error:
            if isinstance(error, self.interrupts):
                raise
            self._tell(events.Unrecorded, claim.request, reason=type(error).__name__)
            if isinstance(error, StoreError):
                return verdict
            raise
        if isinstance(answer, Superseded):
            if answer.record.free:
                # The effect is done, and nobody has the key whose outcome could be waited for.
                self._tell(events.Unrecorded, claim.request, reason=events.Released.__name__)
                return verdict
            self._tell(events.Superseded, claim.request, fence=claim.fence)
            return self._yield_to(claim, answer.record)
        self._tell(
            events.Committed,
            claim.request,
            fence=claim.fence,
            replayable=outcome.codec != NONE,
            seconds=round(self.store.clock.now() - run.began_at, 3),
        )
        if outcome.codec == NONE and not self.result_ignored():
            self._tell(events.Unreplayable, claim.request, reason=outcome.error or "")
        return verdict

    def _until_stored(self, run: ActiveRun, outcome: Outcome) -> CommitAnswer:
        """Try to store an outcome for as long as the claim lives, whatever the store's error.

        That may be long where the claim is renewed meanwhile, so not for ever: a store may take renewals and refuse
        the outcome.
        """
        clock, lease = self.store.clock, run.claim.request.lease_seconds
        begun = clock.monotonic()

        def left() -> float:
            lives = run.claim.expires_at - clock.now()
            tried = clock.monotonic() - begun
            # Past the claim's end too, since the owner alone decides: the effect is done, only the record is wanting.
            patience = max(min(lives, max(lease, COMMIT_PATIENCE) - tried), STORE_PATIENCE - tried)
            return max(self._seconds_left(patience), LAST_TRY - tried)

        return persistently(
            lambda: self._store_outcome(run.claim, outcome),
            clock=clock,
            seconds=left,
            # A pause must not sleep over what is left of the lease, after which another delivery runs the body again.
            longest_pause=lease * LEASE_PART,
            retried=StoreError,
        )

    def _store_outcome(self, claim: Claim, outcome: Outcome) -> CommitAnswer:
        retention = claim.request.retention_seconds
        for _ in range(MOST_ROUNDS):
            answer = self.store.commit(claim, outcome, retention)
            if not isinstance(answer, Vanished):
                return answer
            restored = committed_record(claim, outcome, retention, self.store.clock.now())
            try:
                self.store.restore(restored)
            except RecordExistsError:
                # Somebody claims it under our hands, or an old request of our own has: look again.
                continue
            if self.store.clock.now() - (restored.completed_at or 0) / 1000 <= CLOCK_TOLERANCE_SECONDS:
                return Committed()
            # So late that its retention would be too short: the commit finds it, and keeps it for longer.
        raise StoreUnavailableError("the record comes and goes", claim.request.task, claim.key)

    def _yield_to(self, claim: Claim, record: Record) -> Verdict:
        if record.status is Status.INPROGRESS:
            return Busy(record.held_until, record)
        return self._replay(claim.request, record)

    def _replay(self, request: ClaimRequest, record: Record) -> Verdict:
        dispatched = request.task_id in record.dispatched
        # Another task id has a continuation of its own, which its message says.
        continuation = record.continuation if request.task_id == record.task_id else None
        verdict: Replayed | Failed
        try:
            if record.status is Status.FAILED:
                verdict = Failed(self._outcomes.failure(record), dispatched, continuation, replayed=True)
            else:
                verdict = Replayed(self._result(record), dispatched, continuation)
        except StoreError as error:
            return Unreadable(error)
        except self.interrupts as error:
            return Interrupted(error)
        if isinstance(verdict, Replayed):
            verdict = replace(verdict, value=self._outcomes.as_wished(verdict.value, record))
        completed = record.completed_at
        age = None if completed is None else round(self.store.clock.now() - completed / 1000, 3)
        self._tell(events.Replayed, request, holder_task_id=record.task_id, age_seconds=age)
        return verdict

    def _result(self, record: Record) -> Any:
        try:
            return self._outcomes.result(record)
        except ResultUnavailableError:
            if self.result_ignored():
                return None
            raise

    def _release(self, claim: Claim, reason: str, *, crashed: bool = False, began: bool = True) -> None:
        """Free a key as well as the store allows; each end of a run is told, so that who counts claims misses none."""
        answer = self._despite_interrupts(lambda: self._until_released(claim, reason, crashed=crashed, began=began))
        # A claim without a fence is one that may never have been granted.
        if claim.fence or not isinstance(answer, Lost):
            self._tell(events.Released, claim.request, reason=_released(reason, answer, claim))

    def _until_released(self, claim: Claim, reason: str, *, crashed: bool, began: bool) -> Released | Lost | StoreError:
        """Try to free the key for as long as the claim lives; where the store takes nothing, it expires by itself."""
        clock = self.store.clock
        patience = max(claim.expires_at - clock.now(), STORE_PATIENCE)
        # A store of another's need not know of what never began.
        untried = {} if began else {"began": False}
        try:
            return persistently(
                lambda: self.store.release(claim, reason, crashed=crashed, **untried),
                clock=clock,
                seconds=max(self._seconds_left(patience), LAST_TRY),
                longest_pause=max(claim.request.lease_seconds, STORE_PATIENCE) * LEASE_PART,
                retried=StoreError,
            )
        except StoreError as error:
            return error

    def _despite_interrupts(self, step: Callable[[], T]) -> T:
        """Take a step that is safe to repeat, and take it again if an interrupt, which comes once, cuts it short."""
        try:
            return step()
        except self.interrupts:
            return step()

    def _seconds_left(self, patience: float) -> float:
        """Return for how long a call is tried: these seconds, or until this process is killed."""
        return min(patience, self.time_left())

    def _tell(self, kind: type[events.Event], request: ClaimRequest, **details: Any) -> None:
        self.observe(kind.about(request, **details))


def _released(reason: str, answer: Released | Lost | StoreError, claim: Claim) -> str:
    """Return why a claim has ended, as its event says it: the body's reason, and what became of the release."""
    match answer:
        case Released():
            return reason
        case Lost():
            return f"{reason}, then {events.Lost.__name__}: the claim was not held any more"
        case error:
            return f"{reason}, then {type(error).__name__}: free at {claim.expires_at:.0f}"
