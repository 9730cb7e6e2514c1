"""Retries, deadlines and interrupts: a store and a bucket that try again until they answer or time is up.

The only user of tenacity.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Final, Protocol, TypeVar

from tenacity import Retrying, retry_if_exception_type, stop_after_attempt, wait_exponential

from idempotent_tasks import events
from idempotent_tasks.core.atomic import Atomic
from idempotent_tasks.core.clock import Clock
from idempotent_tasks.core.processes import this_process
from idempotent_tasks.core.receipts import TransactionLost
from idempotent_tasks.core.records import (
    Claim,
    ClaimAnswer,
    ClaimRequest,
    Committed,
    Granted,
    KeptSteps,
    Lost,
    MessageKept,
    NoRoom,
    NotParked,
    Outcome,
    Parked,
    Record,
    Released,
    Renewed,
    Step,
    Superseded,
    Unanswered,
    Vanished,
    WritesRefused,
    committed_record,
)
from idempotent_tasks.core.store import (
    CLOCK_TOLERANCE_SECONDS,
    AtomicStore,
    ParkingStore,
    ResultStore,
    SteppingStore,
    Store,
)
from idempotent_tasks.errors import RecordExistsError, StoreError, StoreMisconfiguredError, StoreUnavailableError

__all__ = [
    "LEASE_PART",
    "LONGEST_PAUSE",
    "Deadline",
    "RetryingResults",
    "RetryingStore",
    "limited",
    "persistently",
    "time_left",
    "transacted",
    "uncounted",
    "while_lost",
]

T = TypeVar("T")

#: Seconds: pauses are random; the first is below FIRST, later bounds double up to LONGEST.
FIRST_PAUSE: Final = 0.05
#: Seconds: with less left before the last try, there is none.
SHORTEST_PAUSE: Final = 0.01
LONGEST_PAUSE: Final = 2.0
#: Seconds: the first try has at least so many, whatever is left; no other begins with fewer.
SHORTEST_TRY: Final = 0.1
#: The longest pause between two tries of a renewal or a commit, which decide whether a claim is kept, as a part of its
#: lease.
LEASE_PART: Final = 1 / 20
#: Seconds for which a claim, and a commit or release past its claim's expiry, is retried.
STORE_RETRY_SECONDS: Final = 5.0
#: Seconds for which a commit is retried while its claim is renewed, unless its lease is longer.
COMMIT_RETRY_SECONDS: Final = 60.0
#: The least seconds for a commit or release: nothing else is worth the last moment of a process.
LAST_TRY_SECONDS: Final = 0.5
#: Seconds for which a note is retried: it only saves others some work.
NOTE_RETRY_SECONDS: Final = 1.0
#: How often a transaction is tried that its database loses.
MOST_TRANSACTIONS: Final = 5
#: How often a key is claimed that is granted too late, or a record restored that is deleted again.
MOST_ROUNDS: Final = 5
#: Seconds for which a call of the bucket is retried.
BUCKET_RETRY_SECONDS: Final = 5.0
#: Seconds after which a try of an upload without progress has failed.
UPLOAD_SECONDS: Final = 8.0

#: By when the current store call must have ended, and the clock whose monotonic time that is.
_limit: Final[ContextVar[tuple[Clock, float] | None]] = ContextVar("idempotency_limit", default=None)


@contextmanager
def limited(clock: Clock, seconds: float) -> Iterator[None]:
    """Limit how long requests sent in the block are waited for, to these seconds and to an outer block's limit.

    A store limits the time-outs of each request to `time_left`.
    """
    end = clock.monotonic() + min(seconds, time_left())
    token = _limit.set((clock, end))
    try:
        yield
    finally:
        _limit.reset(token)


def time_left() -> float:
    """Return the seconds that the current store call may still take; ``math.inf`` without a limit."""
    limit = _limit.get()
    if limit is None:
        return math.inf
    clock, end = limit
    return end - clock.monotonic()


@contextmanager
def uncounted() -> Iterator[None]:
    """Do not count the time that the block takes against the limit of the requests that follow it.

    For work of this process alone, which is done once and takes as long as the machine is busy: a limit says how long
    somebody waits for an answer, not for what it takes to ask.  A limit outside the current one stays as it is.
    """
    limit = _limit.get()
    if limit is None:
        yield
        return
    clock, end = limit
    begun = clock.monotonic()
    try:
        yield
    finally:
        _limit.set((clock, end + clock.monotonic() - begun))


def persistently(
    call: Callable[[], T],
    *,
    clock: Clock,
    seconds: float | Callable[[], float],
    longest_pause: float = LONGEST_PAUSE,
    retried: type[StoreError] = StoreUnavailableError,
    overtime: float = 0.0,
) -> T:
    """Retry a call until it answers, at least once, with growing random pauses.

    Each try is `limited` to the seconds that are left plus the overtime.

    Args:
        call: one try; safe to repeat.
        clock: measures the seconds, by its monotonic time, and sleeps the pauses.
        seconds: for how long; or a function that returns the seconds left, where that may change.
        longest_pause: seconds to which the pauses grow, `LONGEST_PAUSE` at most.
        retried: the errors to retry after.
        overtime: seconds by which a try that began in time may outlast them.

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
        # No pause outlasts the last moment for another try.
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


def while_lost(transaction: Callable[[], T], clock: Clock) -> T:
    """Run a transaction again while its database loses it, `MOST_TRANSACTIONS` times at most.

    Raises:
        TransactionLost: the last try's.
    """
    grown = wait_exponential(multiplier=FIRST_PAUSE, max=LONGEST_PAUSE)
    retrying = Retrying(
        retry=retry_if_exception_type(TransactionLost),
        # What meets in a deadlock must not meet again at once.
        wait=lambda state: this_process().random.uniform(0, grown(state)),
        stop=stop_after_attempt(MOST_TRANSACTIONS),
        sleep=clock.sleep,
        reraise=True,
    )
    return retrying(transaction)


@dataclass(frozen=True, slots=True)
class Deadline:
    """The time by which a delivery must have ended, because its process is killed soon after."""

    #: None for no deadline.
    clock: Clock | None = None
    #: Seconds of its monotonic time.
    at: float = math.inf

    @property
    def seconds_left(self) -> float:
        """The seconds left; ``math.inf`` without a deadline."""
        return math.inf if self.clock is None else self.at - self.clock.monotonic()


class Run(Protocol):
    """A run to commit; its claim may be renewed meanwhile."""

    claim: Claim


@dataclass(frozen=True, kw_only=True, slots=True)
class RetryingStore:
    """A `Store` for one delivery: retries until its deadline, and returns `Unanswered` instead of raising."""

    store: Store
    #: Receives an `idempotent_tasks.events.Released` for each release.
    observe: Callable[[events.Event], None]
    deadline: Deadline = Deadline()
    #: Exceptions that are raised into this thread from outside at any moment, such as a soft time limit.
    interrupts: tuple[type[BaseException], ...] = ()

    @property
    def clock(self) -> Clock:
        """The store's clock."""
        return self.store.clock

    def claim(self, request: ClaimRequest, retry_seconds: float = STORE_RETRY_SECONDS) -> ClaimAnswer | Unanswered:
        """Claim a key; an interrupt is passed on, although the claim may have been granted."""
        seconds = min(retry_seconds, self.deadline.seconds_left)
        try:
            return persistently(lambda: self._timely_claim(request), clock=self.clock, seconds=seconds)
        except StoreError as error:
            return Unanswered(error)

    def _timely_claim(self, request: ClaimRequest) -> ClaimAnswer:
        """Claim, and renew at once a claim that has expired, or nearly, when its grant arrives.

        Raises:
            StoreUnavailableError: every grant arrived too late.
        """
        answer = self.store.claim(request)
        for _ in range(MOST_ROUNDS):
            if not isinstance(answer, Granted) or self._is_timely(answer.claim):
                return answer
            renewed = self.store.renew(answer.claim, request.lease_seconds, request.kept_seconds)
            answer = Granted(renewed.claim) if isinstance(renewed, Renewed) else self.store.claim(request)
        raise StoreUnavailableError("every grant came after its own end", request.task, request.key)

    def _is_timely(self, claim: Claim) -> bool:
        return claim.expires_at - self.clock.now() > claim.request.lease_seconds * LEASE_PART

    def commit(self, run: Run, outcome: Outcome) -> Committed | Superseded | Unanswered:
        """Store an outcome, retrying while the claim lives, whatever the store's error; restore a deleted record.

        At most `COMMIT_RETRY_SECONDS` or a lease where the claim is renewed meanwhile: a store may take renewals and
        refuse the outcome.
        """
        return self._while_claimed(run, lambda: self._commit_or_restore(run.claim, outcome))

    def keep_step(self, run: Run, name: str, step: Step, kept: KeptSteps) -> KeptSteps | Lost | Unanswered:
        """Keep a step's outcome, retrying as `commit` does; see `SteppingStore.keep_step`."""
        store = self.stepping
        return self._while_claimed(run, lambda: store.keep_step(run.claim, name, step, kept))

    def kept_step(self, claim: Claim, name: str) -> Step:
        """Return a step's outcome; see `SteppingStore.kept_step`.

        Raises:
            StoreError: there is no answer in time, or it is gone.
        """
        store = self.stepping
        return self._persistently(lambda: store.kept_step(claim, name))

    @property
    def stepping(self) -> SteppingStore:
        """The store as one that keeps steps.

        Raises:
            StoreMisconfiguredError: it is none.
        """
        if isinstance(self.store, SteppingStore):
            return self.store
        raise StoreMisconfiguredError(f"a {type(self.store).__name__} cannot keep steps: it has no keep_step()")

    def _while_claimed(self, run: Run, call: Callable[[], T]) -> T | Unanswered:
        """Return the answer to what an effect that is done has to be recorded by."""
        lease, begun = run.claim.request.lease_seconds, self.clock.monotonic()

        def left() -> float:
            lives = run.claim.expires_at - self.clock.now()
            tried = self.clock.monotonic() - begun
            # Past the claim's expiry too, since the owner alone decides: the effect is done, its record is missing.
            seconds = max(min(lives, max(lease, COMMIT_RETRY_SECONDS) - tried), STORE_RETRY_SECONDS - tried)
            return max(min(seconds, self.deadline.seconds_left), LAST_TRY_SECONDS - tried)

        try:
            return persistently(
                call,
                clock=self.clock,
                seconds=left,
                # A pause must not outlast the lease, after which another delivery runs the body.
                longest_pause=lease * LEASE_PART,
                retried=StoreError,
            )
        except StoreError as error:
            return Unanswered(error)

    def commit_with(
        self, store: AtomicStore, run: Run, outcome: Outcome, writes: Sequence[Mapping[str, Any]]
    ) -> Committed | Superseded | Vanished | WritesRefused | Unanswered:
        """Store an outcome and carry out a body's writes in one transaction, retrying while the claim lives.

        `Unanswered` says nothing of whether that was done; a release of the claim decides it.
        """
        retention, begun = run.claim.request.retention_seconds, self.clock.monotonic()

        def left() -> float:
            lives = run.claim.expires_at - self.clock.now()
            tried = self.clock.monotonic() - begun
            return max(min(lives, COMMIT_RETRY_SECONDS - tried, self.deadline.seconds_left), LAST_TRY_SECONDS - tried)

        try:
            return persistently(
                lambda: store.commit_with(run.claim, outcome, retention, writes),
                clock=self.clock,
                seconds=left,
                longest_pause=run.claim.request.lease_seconds * LEASE_PART,
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
                # Another delivery has claimed the key meanwhile, or an old request of ours has.
                continue
            if self.clock.now() - (restored.completed_at or 0) / 1000 <= CLOCK_TOLERANCE_SECONDS:
                return Committed()
            # So late that its retention would be too short: another commit prolongs it.
        raise StoreUnavailableError("the record comes and goes", claim.request.task, claim.key)

    def release(
        self, claim: Claim, reason: str, *, crashed: bool = False, began: bool = True, nothing_done: bool = False
    ) -> Released | Lost | Unanswered:
        """Release a key, retrying while its claim lives; if all tries fail, the claim expires.

        Emits `Released` for each end of a run, so that an observer who counts claims misses none.
        """
        longest_pause = max(claim.request.lease_seconds, STORE_RETRY_SECONDS) * LEASE_PART

        def release() -> Released | Lost | Unanswered:
            seconds = min(max(claim.expires_at - self.clock.now(), STORE_RETRY_SECONDS), self.deadline.seconds_left)
            seconds = max(seconds, LAST_TRY_SECONDS)
            how = {"crashed": crashed, "began": began, "nothing_done": nothing_done}
            return self._released(claim, reason, seconds, how, longest_pause=longest_pause)

        answer = self.despite_interrupts(release)
        # A claim without a fence may never have been granted.
        if claim.fence or not isinstance(answer, Lost):
            self.observe(events.Released.about(claim.request, reason=_described(reason, answer, claim)))
        return answer

    def park(self, claim: Claim, reason: str) -> Parked | Lost | Unanswered:
        """Park the key of a claim whose run has not begun; see `ParkingStore.park`."""
        return self._answered(lambda: self._parking.park(claim, reason))

    def keep_message(self, key: str, task_id: str, message: bytes) -> MessageKept | NoRoom | NotParked | Unanswered:
        """Keep a message with the record of its parked key; see `ParkingStore.keep_message`."""
        return self._answered(lambda: self._parking.keep_message(key, task_id, message))

    def get(self, key: str) -> Record:
        """Return the record of a key; see `Store.get`.

        Raises:
            StoreError: there is no answer in time, or an operator has deleted the record.
        """
        return self._persistently(lambda: self.store.get(key))

    @property
    def _parking(self) -> ParkingStore:
        if isinstance(self.store, ParkingStore):
            return self.store
        raise StoreMisconfiguredError(f"a {type(self.store).__name__} cannot park keys: it has no park()")

    def _answered(self, call: Callable[[], T]) -> T | Unanswered:
        """Return a call's answer; an interrupt is passed on."""
        try:
            return self._persistently(call)
        except StoreError as error:
            return Unanswered(error)

    def _persistently(self, call: Callable[[], T]) -> T:
        seconds = min(STORE_RETRY_SECONDS, self.deadline.seconds_left)
        return persistently(call, clock=self.clock, seconds=seconds)

    def withdraw(
        self, claim: Claim, reason: str, *, crashed: bool = False, began: bool = False, seconds: float = 0.0
    ) -> Released | Lost | Unanswered:
        """Release a key whose claim may have been granted without anybody's seeing the answer.

        Args:
            claim: the claim; `Claim.unseen` of a request whose answer was not seen.
            reason: for the record and the event.
            crashed, began: as for `Store.release`.
            seconds: for how long to retry; 0 for one try, which may take until the deadline.

        Returns:
            `Released`; `Lost` if another delivery holds the key, or nobody does and the request may still arrive and be
            granted; or `Unanswered`.
        """
        left = self.deadline.seconds_left
        if left <= 0:
            return Unanswered(StoreUnavailableError("no time is left", claim.request.task, claim.key))
        overtime = 0.0 if seconds else left
        how = {"crashed": crashed, "began": began}
        answer = self._released(claim, reason, min(seconds, left), how, overtime=overtime)
        if isinstance(answer, Released):
            self.observe(events.Released.about(claim.request, reason=reason))
        return answer

    def withdraw_parts(self, request: ClaimRequest, reason: str) -> Released | Lost | Unanswered:
        """Withdraw the claims of a request and of its lock, which may have been granted without anybody's seeing it.

        Returns:
            `Unanswered` if one of them may be left, else `Released` if there was one of them, else `Lost`.
        """
        answers = [self.withdraw(Claim.unseen(part), reason) for part in request.parts]
        kinds = (Unanswered, Released, Lost)
        return min(answers, key=lambda answer: kinds.index(type(answer)))

    def _released(
        self, claim: Claim, reason: str, seconds: float, how: Mapping[str, bool], **pauses: float
    ) -> Released | Lost | Unanswered:
        # A user's own store need not have the parameters that came later.
        given = {name: value for name, value in how.items() if value is not (name == "began")}
        try:
            return persistently(
                lambda: self.store.release(claim, reason, **given),
                clock=self.clock,
                seconds=seconds,
                retried=StoreError,
                **pauses,
            )
        except StoreError as error:
            return Unanswered(error)

    def note_deferral(self, key: str, owner: str, token: str, due: int, past: Sequence[str]) -> bool:
        """Call `Store.note_deferral`, and return whether the store answered."""
        return self._noted(lambda: self.store.note_deferral(key, owner, token, due, past))

    def note_dispatch(self, key: str, task_id: str) -> bool:
        """Call `Store.note_dispatch`, and return whether the store answered."""
        return self._noted(lambda: self.store.note_dispatch(key, task_id))

    def _noted(self, note: Callable[[], None]) -> bool:
        with suppress(StoreError, *self.interrupts):
            persistently(note, clock=self.clock, seconds=min(NOTE_RETRY_SECONDS, self.deadline.seconds_left))
            return True
        return False

    def despite_interrupts(self, step: Callable[[], T]) -> T:
        """Call a step that is safe to repeat, and once more after an interrupt: a delivery is interrupted only once."""
        try:
            return step()
        except self.interrupts:
            return step()


def transacted(store: AtomicStore, atomic: Atomic, token: str) -> WritesRefused | None:
    """Carry out the writes of a body that has no record, once; return why not, or None.

    Args:
        store: the app's.
        atomic: what the body has returned.
        token: names the transaction in each try.

    Raises:
        StoreError: there was no answer in time; it may have been carried out.
    """
    if not atomic.writes:
        return None
    return persistently(lambda: store.write(atomic.writes, token), clock=store.clock, seconds=STORE_RETRY_SECONDS)


@dataclass(frozen=True, kw_only=True, slots=True)
class RetryingResults:
    """A `ResultStore` for one delivery that retries until its deadline.

    Raises:
        StoreError: from either call, if there is no answer in time.
    """

    results: ResultStore
    clock: Clock
    deadline: Deadline = Deadline()

    def put(self, data: bytes, expires_at: float) -> str:
        """Store data, return its address; no try begins in the last `UPLOAD_SECONDS`, to leave time for the commit."""
        left = self.deadline.seconds_left - UPLOAD_SECONDS
        if left < 0:
            raise StoreUnavailableError("too little time is left before the hard time limit")
        return self._persistently(lambda: self.results.put(data, expires_at), left, overtime=UPLOAD_SECONDS)

    def get(self, address: str) -> bytes:
        """Return the data of an address; raises `ResultUnavailableError` if it is gone."""
        return self._persistently(lambda: self.results.get(address), self.deadline.seconds_left)

    def _persistently(self, call: Callable[[], T], left: float, overtime: float = 0.0) -> T:
        """Retry for `BUCKET_RETRY_SECONDS`, ``left`` at most; the last try may end ``overtime`` after ``left``."""
        seconds = min(BUCKET_RETRY_SECONDS, left)
        longest = math.inf if left == math.inf else left - seconds + overtime
        return persistently(call, clock=self.clock, seconds=seconds, overtime=longest)


def _described(reason: str, answer: Released | Lost | Unanswered, claim: Claim) -> str:
    """Return the reason of a `Released` event: the body's reason, and how the release failed."""
    match answer:
        case Released():
            return reason
        case Lost():
            return f"{reason}, then {events.Lost.__name__}: the claim was not held any more"
        case Unanswered(error):
            return f"{reason}, then {type(error).__name__}: free at {claim.expires_at:.0f}"
