"""Repeating a store's call until it answers or a moment passes: the one authority for retries."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Final, TypeVar

from tenacity import RetryCallState, Retrying, retry_if_exception_type, wait_random_exponential

from idempotent_tasks.clock import Clock
from idempotent_tasks.errors import StoreUnavailableError

__all__ = ["LEASE_PART", "LONGEST_PAUSE", "limited", "persistently", "time_left"]

T = TypeVar("T")

#: Seconds: the first pause is random below FIRST, later ones double up to LONGEST.
FIRST_PAUSE: Final = 0.05
LONGEST_PAUSE: Final = 2.0
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


def persistently(call: Callable[[], T], *, clock: Clock, until: float, longest_pause: float = LONGEST_PAUSE) -> T:
    """Call until there is an answer, at least once, with growing random pauses.

    Args:
        call: one try; safe to repeat.
        clock: by which ``until`` is measured, and on which the pauses are spent.
        until: epoch seconds after which no further try starts.
        longest_pause: seconds to which the pauses grow, `LONGEST_PAUSE` at most.

    Raises:
        StoreUnavailableError: the last try's error.
    """
    try:
        # Nearly every call needs no more than this, and the machinery of repetition costs as much as the claim's key.
        return call()
    except StoreUnavailableError as error:
        return _repeated(call, error, clock, until, min(longest_pause, LONGEST_PAUSE))


def _repeated(
    call: Callable[[], T], first: StoreUnavailableError, clock: Clock, until: float, longest_pause: float
) -> T:
    failed = [first]

    def too_late(state: RetryCallState) -> bool:
        return clock.now() + state.upcoming_sleep > until

    def attempt() -> T:
        if failed:
            raise failed.pop()
        return call()

    retrying = Retrying(
        retry=retry_if_exception_type(StoreUnavailableError),
        wait=wait_random_exponential(multiplier=FIRST_PAUSE, max=longest_pause),
        stop=too_late,
        sleep=clock.sleep,
        reraise=True,
    )
    return retrying(attempt)
