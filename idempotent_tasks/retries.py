"""Repeating a store's call until it answers or a moment passes: the one authority for retries."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Final, TypeVar

from tenacity import RetryCallState, Retrying, retry_if_exception_type, wait_random_exponential

from idempotent_tasks.clock import Clock
from idempotent_tasks.errors import StoreError, StoreUnavailableError

__all__ = ["LEASE_PART", "LONGEST_PAUSE", "limited", "persistently", "time_left"]

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


#: When the store call under way must have ended, and the clock whose monotonic time that is.
_deadline: ContextVar[tuple[Clock, float] | None] = ContextVar("idempotency_deadline", default=None)


@contextmanager
def limited(clock: Clock, seconds: float) -> Iterator[None]:
    """Let no request that is sent in the block be waited for longer than these seconds, nor than an outer block allows.

    A store asks `time_left` before each request and limits its time-outs to it.
    """
    end = clock.monotonic() + min(seconds, time_left())
    token = _deadline.set((clock, end))
    try:
        yield
    finally:
        _deadline.reset(token)


def time_left() -> float:
    """Return the seconds that the store call under way may still take: ``math.inf`` where nothing limits it."""
    deadline = _deadline.get()
    if deadline is None:
        return math.inf
    clock, end = deadline
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

    def left() -> float:
        return seconds() if callable(seconds) else end - clock.monotonic()

    def attempt() -> T:
        with limited(clock, max(left(), SHORTEST_TRY) + overtime):
            return call()

    try:
        # Nearly every call needs no more than this, and the machinery of repetition costs as much as the claim's key.
        return attempt()
    except retried as error:
        pauses = wait_random_exponential(multiplier=FIRST_PAUSE, max=min(longest_pause, LONGEST_PAUSE))
        return _repeated(attempt, error, left, pauses=pauses, sleep=clock.sleep, retried=retried)


def _repeated(
    call: Callable[[], T],
    first: StoreError,
    left: Callable[[], float],
    *,
    pauses: wait_random_exponential,
    sleep: Callable[[float], None],
    retried: type[StoreError],
) -> T:
    failed = [first]

    def too_late(_: RetryCallState) -> bool:
        return left() - SHORTEST_TRY < SHORTEST_PAUSE

    def pause(state: RetryCallState) -> float:
        # None sleeps over the last moment in which a try may still help.
        return min(pauses(state), left() - SHORTEST_TRY)

    def attempt() -> T:
        if failed:
            raise failed.pop()
        return call()

    retrying = Retrying(
        retry=retry_if_exception_type(retried),
        wait=pause,
        stop=too_late,
        sleep=sleep,
        reraise=True,
    )
    return retrying(attempt)
