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
from idempotent_tasks.outcomes import Outcomes, Recalled
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
    Status,
    Superseded,
    Vanished,
)
from idempotent_tasks.retries import LEASE_PART, LONGEST_PAUSE, persistently
from idempotent_tasks.stores import ResultStore, Store
from idempotent_tasks.verdicts import Failed, Interrupted, Replayed, Returned, Sending, Unclaimed, Unreadable, Verdict

__all__ = ["Guard", "Keeping"]

T = TypeVar("T")
Keeping = Callable[[ActiveRun], AbstractContextManager[None]]

#: Seconds for which a claim, a release, and a commit after its claim's end, is tried again while the store is
#: unavailable.
STORE_PATIENCE: Final = 5.0
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
        try:
            answer = self._claim(request)
            if isinstance(answer, Granted):
                self._refuse_crash_loop(answer.claim)
                self._tell(events.Claimed, request, fence=answer.claim.fence, attempt=answer.claim.attempt)
        except StoreError as error:
            return Unclaimed(error)
        except self.interrupts as error:
            self._release(Claim.unseen(request), type(error).__name__)
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
        give_up_at = self._at_the_latest(clock.now() + patience)
        while True:
            answer = self._claim_once(request)
            if isinstance(answer, Busy) and self.holder_has_ended(answer.holder):
                self._release(Claim.shown_by(answer.holder), HOLDER_ENDED, crashed=True)
                answer = self._claim_once(request)
            left = give_up_at - clock.now()
            if not isinstance(answer, Busy) or left <= 0:
                return answer
            clock.sleep(min(WAIT_PAUSE, left))

    def _claim_once(self, request: ClaimRequest) -> ClaimAnswer:
        return self._patiently(lambda: self.store.claim(request))

    def _run_claimed(self, claim: Claim, body: Callable[[ActiveRun], Any]) -> Verdict:
        run = ActiveRun(claim, self._release)
        values: list[Any] = []
        try:
            with self.keeping(run):
                values.append(body(run))
        except BaseException as error:
            if not values and self._is_final(run, error):
                return self._despite_interrupts(partial(self._fail, run, error))
            # An interrupt after the body's return comes too late to mean anything.
            if not values or not isinstance(error, self.interrupts):
                self._let_go(run, error)
                raise
        if run.handed_over:
            return Returned(values[0])
        return self._despite_interrupts(lambda: self._finish(run, values[0]))

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
            at_the_latest=self._at_the_latest,
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
        claim, outcome = run.claim, replace(outcome, continuation=self.changed_continuation())
        # A pause must not sleep over what is left of the lease, after which another delivery runs the body again.
        pause = claim.request.lease_seconds * LEASE_PART
        try:
            # Past the claim's end too, since the owner alone decides: the effect is done, only the record is wanting.
            answer = self._patiently(lambda: self._store_outcome(claim, outcome), claim.expires_at, pause)
        except StoreError as error:
            self._tell(events.Unrecorded, claim.request, reason=type(error).__name__)
            return verdict
        if isinstance(answer, Superseded):
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

    def _store_outcome(self, claim: Claim, outcome: Outcome) -> CommitAnswer:
        retention = claim.request.retention_seconds
        answer = self.store.commit(claim, outcome, retention)
        if not isinstance(answer, Vanished):
            return answer
        try:
            self.store.restore(committed_record(claim, outcome, retention, self.store.clock.now()))
        except RecordExistsError as error:
            # Somebody claims and deletes it under our hands: look again.
            raise StoreUnavailableError(task=claim.request.task, key=claim.key) from error
        return Committed()

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

    def _release(self, claim: Claim, reason: str, *, crashed: bool = False) -> None:
        """Free the key as well as the store allows; where it does not, the claim expires by itself."""
        self._despite_interrupts(lambda: self._release_once(claim, reason, crashed=crashed))

    def _despite_interrupts(self, step: Callable[[], T]) -> T:
        """Take a step that is safe to repeat, and take it again if an interrupt, which comes once, cuts it short."""
        try:
            return step()
        except self.interrupts:
            return step()

    def _release_once(self, claim: Claim, reason: str, *, crashed: bool) -> None:
        try:
            answer: object = self._patiently(lambda: self.store.release(claim, reason, crashed=crashed))
        except StoreError as error:
            answer = error
            reason = f"{reason}, then {type(error).__name__}: free at {claim.expires_at:.0f}"
        if not isinstance(answer, Lost):
            self._tell(events.Released, claim.request, reason=reason)

    def _patiently(self, call: Callable[[], T], until: float = 0.0, longest_pause: float = LONGEST_PAUSE) -> T:
        """Call until there is an answer, for `STORE_PATIENCE` seconds, and until these epoch seconds at least."""
        until = self._at_the_latest(max(until, self.store.clock.now() + STORE_PATIENCE))
        return persistently(call, clock=self.store.clock, until=until, longest_pause=longest_pause)

    def _at_the_latest(self, until: float) -> float:
        """Return the epoch seconds after which no further try starts: these, or before this process is killed."""
        return min(until, self.store.clock.now() + self.time_left())

    def _tell(self, kind: type[events.Event], request: ClaimRequest, **details: Any) -> None:
        self.observe(kind.about(request, **details))
