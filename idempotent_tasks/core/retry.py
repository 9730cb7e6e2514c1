"""Retrying: a store, and a bucket of results, that try again until they answer or a moment has passed.

The one home of tenacity, and the one place that knows retries, deadlines and interrupts.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Final, Protocol, TypeVar

from tenacity import Retrying, retry_if_exception_type, wait_exponential

from idempotent_tasks import events
from idempotent_tasks.core.clock import Clock
from idempotent_tasks.core.processes import this_process
from idempotent_tasks.core.records import (
    Claim,
    ClaimAnswer,
    ClaimRequest,
    Committed,
    Granted,
    Lost,
    Outcome,
    Released,
    Renewed,
    Superseded,
    Unanswered,
    Vanished,
    committed_record,
)
from idempotent_tasks.core.store import CLOCK_TOLERANCE_SECONDS, ResultStore, Store
from idempotent_tasks.errors import RecordExistsError, StoreError, StoreUnavailableError

__all__ = [
    "LEASE_PART",
    "LONGEST_PAUSE",
    "Deadline",
    "RetryingResults",
    "RetryingStore",
    "limited",
    "persistently",
    "time_left",
]

T = TypeVar("T")

#: Seconds: the first pause is random below FIRST, later ones double up to LONGEST.
FIRST_PAUSE: Final = 0.05
#: Seconds: where less is left before the last try, there is none.
SHORTEST_PAUSE: Final = 0.01
LONGEST_PAUSE: Final = 2.0
#: Seconds: the first try has at least so many, whatever is left; no other begins that would have fewer.
SHORTEST_TRY: Final = 0.1
#: The longest pause between two tries of what decides whether a claim is kept, its renewal or its commit, as a part of
#: the lease.
LEASE_PART: Final = 1 / 20
#: Seconds for which a claim, and a commit or a release after its claim's end, is tried again while the store fails.
STORE_RETRY_SECONDS: Final = 5.0
#: Seconds for which a commit is tried at most where the claim is renewed meanwhile, if that is more than its lease.
COMMIT_RETRY_SECONDS: Final = 60.0
#: Seconds that a commit or a release is given where less is left: nothing else is worth the last moment of a process.
LAST_TRY_SECONDS: Final = 0.5
#: Seconds for which a note is tried again that spares others some work.
NOTE_RETRY_SECONDS: Final = 1.0
#: How often a key is asked for that is granted too late, or a record put back that comes and goes.
MOST_ROUNDS: Final = 5
#: Seconds for which a bucket is asked again while it is unavailable.
BUCKET_RETRY_SECONDS: Final = 5.0
#: Seconds after which one try of an upload has failed, if nothing moves.
UPLOAD_SECONDS: Final = 8.0

#: When the store call under way must have ended, and the clock whose monotonic time that is.
_limit: Final[ContextVar[tuple[Clock, float] | None]] = ContextVar("idempotency_limit", default=None)


@contextmanager
def limited(clock: Clock, seconds: float) -> Iterator[None]:
    """Let no request that is sent in the block be waited for longer than these seconds, nor than an outer block allows.

    A store asks `time_left` before each request and limits its time-outs to it.
    """
    end = clock.monotonic() + min(seconds, time_left())
    token = _limit.set((clock, end))
    try:
        yield
    finally:
        _limit.reset(token)


def time_left() -> float:
    """Return the seconds that the store call under way may still take: ``math.inf`` where nothing limits it."""
    limit = _limit.get()
    if limit is None:
        return math.inf
    clock, end = limit
    return end - clock.monotonic()


def persistently(
    call: Callable[[], T],
    *,
    clock: Clock,
    seconds: float | Callable[[], float],
    longest_pause: float = LONGEST_PAUSE,
    retried: type[StoreError] = StoreUnavailableError,
    overtime: float = 0.0,
) -> T:
    """Call until there is an answer, at least once, with growing random pauses.

    Each try is `limited` to the seconds that are left, and the overtime, so that no request outlives them.

    Args:
        call: one try; safe to repeat.
        clock: on whose monotonic time the seconds are measured, and on which the pauses are spent.
        seconds: for how long; or what returns the seconds that are left, where that may change meanwhile.
        longest_pause: seconds to which the pauses grow, `LONGEST_PAUSE` at most.
        retried: the errors after which another try may help.
        overtime: seconds by which a try that has begun in time may outlast them.

    Raises:
        StoreError: the last try's error.
    """
    end = math.inf if callable(seconds) else clock.monotonic() + seconds
    longest_pause = min(longest_pause, LONGEST_PAUSE)

    def left() -> float:
        return seconds() if callable(seconds) else end - clock.monotonic()

    def attempt() -> T:
        with limited(clock, max(left(), SHORTEST_TRY) + overtime):
            return call()

    def is_too_late() -> bool:
        return left() - SHORTEST_TRY < SHORTEST_PAUSE

    def pause(most: float) -> float:
        # None sleeps over the last moment in which a try may still help.
        return min(this_process().random.uniform(0, most), left() - SHORTEST_TRY)

    try:
        # Nearly every call needs one try, and tenacity takes a tenth of a whole guarded run to make it.
        return attempt()
    except retried:
        if is_too_late():
            raise
    clock.sleep(pause(min(FIRST_PAUSE, longest_pause)))
    grown = wait_exponential(multiplier=2 * FIRST_PAUSE, max=longest_pause)
    retrying = Retrying(
        retry=retry_if_exception_type(retried),
        wait=lambda state: pause(grown(state)),
        stop=lambda _: is_too_late(),
        sleep=clock.sleep,
        reraise=True,
    )
    return retrying(attempt)


@dataclass(frozen=True, slots=True)
class Deadline:
    """The moment by which a delivery must have come to an end, because its process is killed soon after."""

    #: On whose monotonic time the moment is; None for no deadline.
    clock: Clock | None = None
    #: Seconds.
    at: float = math.inf

    @property
    def seconds_left(self) -> float:
        """How many seconds are left; ``math.inf`` without a deadline."""
        return math.inf if self.clock is None else self.at - self.clock.monotonic()


class Run(Protocol):
    """What a commit asks of a run: its claim, which is renewed meanwhile."""

    claim: Claim


@dataclass(frozen=True, kw_only=True, slots=True)
class RetryingStore:
    """A `Store` for one delivery that tries again, heeds the delivery's deadline, and answers instead of raising.

    Where the store gives no answer in time, that is the answer `Unanswered`: the step may have been taken.
    """

    store: Store
    #: Takes `idempotent_tasks.events.Released`, which each release emits.
    observe: Callable[[events.Event], None]
    deadline: Deadline = Deadline()
    #: Exceptions that something outside raises into this thread at any moment, such as a soft time limit.
    interrupts: tuple[type[BaseException], ...] = ()

    @property
    def clock(self) -> Clock:
        """The store's clock."""
        return self.store.clock

    def claim(self, request: ClaimRequest, retry_seconds: float = STORE_RETRY_SECONDS) -> ClaimAnswer | Unanswered:
        """Claim a key; an interrupt comes out, and the claim may have been granted then."""
        seconds = min(retry_seconds, self.deadline.seconds_left)
        try:
            return persistently(lambda: self._timely_claim(request), clock=self.clock, seconds=seconds)
        except StoreError as error:
            return Unanswered(error)

    def _timely_claim(self, request: ClaimRequest) -> ClaimAnswer:
        """Claim, and renew at once a claim that is over, or nearly, when its grant arrives.

        Raises:
            StoreUnavailableError: each grant came too late.
        """
        answer = self.store.claim(request)
        for _ in range(MOST_ROUNDS):
            if not isinstance(answer, Granted) or self._is_timely(answer.claim):
                return answer
            renewed = self.store.renew(answer.claim, request.lease_seconds, request.retention_seconds)
            answer = Granted(renewed.claim) if isinstance(renewed, Renewed) else self.store.claim(request)
        raise StoreUnavailableError("every grant came after its own end", request.task, request.key)

    def _is_timely(self, claim: Claim) -> bool:
        return claim.expires_at - self.clock.now() > claim.request.lease_seconds * LEASE_PART

    def commit(self, run: Run, outcome: Outcome) -> Committed | Superseded | Unanswered:
        """Store an outcome, trying for as long as the claim lives, whatever the store's error.

        That may be long where the claim is renewed meanwhile, so not indefinitely: a store may take renewals and refuse
        the outcome.  A record that was deleted meanwhile is put back with the outcome.
        """
        lease, begun = run.claim.request.lease_seconds, self.clock.monotonic()

        def left() -> float:
            lives = run.claim.expires_at - self.clock.now()
            tried = self.clock.monotonic() - begun
            # Past the claim's end too, since the owner alone decides: the effect is done, only the record is wanting.
            seconds = max(min(lives, max(lease, COMMIT_RETRY_SECONDS) - tried), STORE_RETRY_SECONDS - tried)
            return max(min(seconds, self.deadline.seconds_left), LAST_TRY_SECONDS - tried)

        try:
            return persistently(
                lambda: self._commit_or_restore(run.claim, outcome),
                clock=self.clock,
                seconds=left,
                # A pause must not sleep over what is left of the lease, after which another delivery runs the body.
                longest_pause=lease * LEASE_PART,
                retried=StoreError,
            )
        except StoreError as error:
            return Unanswered(error)

    def _commit_or_restore(self, claim: Claim, outcome: Outcome) -> Committed | Superseded:
        retention = claim.request.retention_seconds
        for _ in range(MOST_ROUNDS):
            answer = self.store.commit(claim, outcome, retention)
            if not isinstance(answer, Vanished):
                return answer
            restored = committed_record(claim, outcome, retention, self.clock.now())
            try:
                self.store.restore(restored)
            except RecordExistsError:
                # Somebody claims it under our hands, or an old request of our own has: look again.
                continue
            if self.clock.now() - (restored.completed_at or 0) / 1000 <= CLOCK_TOLERANCE_SECONDS:
                return Committed()
            # So late that its retention would be too short: the commit finds it, and keeps it for longer.
        raise StoreUnavailableError("the record comes and goes", claim.request.task, claim.key)

    def release(self, claim: Claim, reason: str, *, crashed: bool = False, began: bool = True) -> None:
        """Free a key, trying for as long as its claim lives; where the store takes nothing, it expires by itself.

        Each end of a run is emitted, so that an observer who counts claims misses none.
        """
        longest_pause = max(claim.request.lease_seconds, STORE_RETRY_SECONDS) * LEASE_PART

        def release() -> Released | Lost | Unanswered:
            seconds = min(max(claim.expires_at - self.clock.now(), STORE_RETRY_SECONDS), self.deadline.seconds_left)
            seconds = max(seconds, LAST_TRY_SECONDS)
            return self._released(claim, reason, seconds, crashed=crashed, began=began, longest_pause=longest_pause)

        answer = self.despite_interrupts(release)
        # A claim without a fence is one that may never have been granted.
        if claim.fence or not isinstance(answer, Lost):
            self.observe(events.Released.about(claim.request, reason=_described(reason, answer, claim)))

    def withdraw(
        self, claim: Claim, reason: str, *, crashed: bool = False, began: bool = False, seconds: float = 0.0
    ) -> Released | Lost | Unanswered:
        """Free a key whose claim may have been granted without anybody's seeing the answer.

        Args:
            claim: the claim; `Claim.unseen` of a request whose answer was not seen.
            reason: for the record.
            crashed, began: as for `Store.release`.
            seconds: for how long to try; 0 for one try, which may take until the deadline.

        Returns:
            `Released`; `Lost` where another has the key, or nobody, though a request that is still on its way may yet
            take it; or `Unanswered`.
        """
        left = self.deadline.seconds_left
        if left <= 0:
            return Unanswered(StoreUnavailableError("no time is left", claim.request.task, claim.key))
        overtime = 0.0 if seconds else left
        answer = self._released(claim, reason, min(seconds, left), crashed=crashed, began=began, overtime=overtime)
        if isinstance(answer, Released):
            self.observe(events.Released.about(claim.request, reason=reason))
        return answer

    def _released(
        self, claim: Claim, reason: str, seconds: float, *, crashed: bool, began: bool, **pauses: float
    ) -> Released | Lost | Unanswered:
        # A store of another's need not know of what never began.
        untried = {} if began else {"began": False}
        try:
            return persistently(
                lambda: self.store.release(claim, reason, crashed=crashed, **untried),
                clock=self.clock,
                seconds=seconds,
                retried=StoreError,
                **pauses,
            )
        except StoreError as error:
            return Unanswered(error)

    def note_deferral(self, key: str, owner: str, token: str, due: int, past: Sequence[str]) -> bool:
        """Note a deferral as `Store.note_deferral` does, and return whether the store took it."""
        return self._noted(lambda: self.store.note_deferral(key, owner, token, due, past))

    def note_dispatch(self, key: str, task_id: str) -> bool:
        """Note a dispatch as `Store.note_dispatch` does, and return whether the store took it."""
        return self._noted(lambda: self.store.note_dispatch(key, task_id))

    def _noted(self, note: Callable[[], None]) -> bool:
        seconds = min(NOTE_RETRY_SECONDS, self.deadline.seconds_left)
        try:
            persistently(note, clock=self.clock, seconds=seconds)
        except StoreError:
            return False
        except self.interrupts:
            return False
        return True

    def despite_interrupts(self, step: Callable[[], T]) -> T:
        """Take a step that is safe to repeat, and take it again if an interrupt, which comes once, cuts it short."""
        try:
            return step()
        except self.interrupts:
            return step()


@dataclass(frozen=True, kw_only=True, slots=True)
class RetryingResults:
    """A `ResultStore` for one delivery that is asked again while it is unavailable, and heeds the deadline.

    Raises:
        StoreError: from either call, where there is no answer in time.
    """

    results: ResultStore
    clock: Clock
    deadline: Deadline = Deadline()

    def put(self, data: bytes, expires_at: float) -> str:
        """Keep data, leaving time for the commit, and return its address."""
        # A try without an answer must leave time for the commit.
        left = self.deadline.seconds_left - UPLOAD_SECONDS
        if left < 0:
            raise StoreUnavailableError("too little time is left before the hard time limit")
        return self._persistently(lambda: self.results.put(data, expires_at), left, overtime=UPLOAD_SECONDS)

    def get(self, address: str) -> bytes:
        """Return the data of an address; raises ``ResultUnavailableError`` where it is gone."""
        return self._persistently(lambda: self.results.get(address), self.deadline.seconds_left)

    def _persistently(self, call: Callable[[], T], left: float, overtime: float = 0.0) -> T:
        """Call for a while; a call that has begun may go on for the seconds that are left, and overtime."""
        seconds = min(BUCKET_RETRY_SECONDS, left)
        longest = math.inf if left == math.inf else left - seconds + overtime
        return persistently(call, clock=self.clock, seconds=seconds, overtime=longest)


def _described(reason: str, answer: Released | Lost | Unanswered, claim: Claim) -> str:
    """Return why a claim has ended, as its event says it: the body's reason, and what became of the release."""
    match answer:
        case Released():
            return reason
        case Lost():
            return f"{reason}, then {events.Lost.__name__}: the claim was not held any more"
        case Unanswered(error):
            return f"{reason}, then {type(error).__name__}: free at {claim.expires_at:.0f}"
