"""Clocks: epoch seconds, sleeping, and the offset to the store's own clock.

Nothing else in the package reads a clock or sleeps, so a test moves time by passing another `Clock`.
"""

import math
import os
import threading
import time
from datetime import datetime
from email.utils import parsedate_to_datetime
from functools import lru_cache
from typing import Any, Protocol

__all__ = ["Clock", "ServerClock", "SystemClock"]

#: An HTTP ``Date`` header is truncated to whole seconds: the true time is up to this many seconds later.
DATE_RESOLUTION_SECONDS = 1.0
#: An answer may contradict earlier ones by this much without a confirmation: a service has many clocks, which drift.
DRIFT_SECONDS = 1.0


class Clock(Protocol):
    """A source of time that can also wait."""

    def now(self) -> float:
        """Return the time in epoch seconds (UTC)."""

    def monotonic(self) -> float:
        """Return monotonic seconds, for durations and deadlines."""

    def sleep(self, seconds: float) -> None:
        """Return after this many seconds."""


class SystemClock:
    """The machine's clock when this object was made, plus the time that has passed since.

    So setting the clock while a worker runs moves no expiry, and a machine that was suspended is not late.
    """

    def __init__(self) -> None:
        self._epoch_offset = time.time() - _seconds_since_boot()

    def now(self) -> float:
        """Return the time in epoch seconds (UTC)."""
        return self._epoch_offset + _seconds_since_boot()

    def monotonic(self) -> float:
        """Return the seconds since the machine was started."""
        return _seconds_since_boot()

    def sleep(self, seconds: float) -> None:
        """Block the calling thread (or greenlet) for this many seconds."""
        time.sleep(seconds)


class ServerClock:
    """A local clock corrected to the server's, by the ``Date`` of its answers.

    Every answer bounds the offset between the two clocks to an interval of one second plus the round trip;
    the intervals of successive answers are intersected.  While 0 lies within the bounds, nothing is corrected; else the
    middle of the bounds is added, which is wrong by half a second and half the round trip at most.

    An answer that contradicts the bounds (before the first answer: the local clock) by more than `DRIFT_SECONDS` is a
    jump: it changes nothing until the next answer confirms it.  Only a confirmed jump sets the time back.
    """

    def __init__(self, local: Clock) -> None:
        self._local = local
        self._bounds: tuple[float, float] | None = None
        self._offset = 0.0
        #: The bounds from an answer that contradicts `_bounds` and is not confirmed yet.
        self._jump: tuple[float, float] | None = None
        #: The latest time that `now` has returned since the last confirmed jump.
        self._latest = -math.inf
        #: By process id: a child that is forked while a thread holds the lock would never get it.
        #: Re-entrant, for a signal handler that interrupts its own thread here.
        self._locks: dict[int, threading.RLock] = {}

    def __getstate__(self) -> dict[str, Any]:
        """Leave out the locks, which belong to this process."""
        return {**vars(self), "_locks": {}}

    @property
    def offset_seconds(self) -> float:
        """The correction of the local time, in seconds; 0.0 before the first answer."""
        return self._offset

    @property
    def doubtful(self) -> bool:
        """Whether the last answer showed a jump, which the next answer confirms or refutes."""
        return self._jump is not None

    @property
    def unknown(self) -> bool:
        """Whether the only answer so far contradicts the local clock: one of the two is wrong."""
        return self._jump is not None and self._bounds is None

    def now(self) -> float:
        """Return the server's time in epoch seconds (UTC)."""
        with self._lock():
            self._latest = max(self._latest, self._local.now() + self._offset)
            return self._latest

    def last_shown(self) -> float:
        """Return the server's time as in its last answer, even in an unconfirmed jump, in epoch seconds (UTC).

        For signing a request again after the time that `now` returns was refused.
        """
        return self._local.now() + _middle(self._jump or self._bounds)

    def monotonic(self) -> float:
        """Return the local clock's monotonic time, which no answer corrects."""
        return self._local.monotonic()

    def local_now(self) -> float:
        """Return the uncorrected local time in epoch seconds (UTC)."""
        return self._local.now()

    def sleep(self, seconds: float) -> None:
        """Wait on the local clock for this many seconds."""
        self._local.sleep(seconds)

    def observe(self, date_header: str, sent_at: float) -> None:
        """Correct the clock by an answer of the server itself, not of a proxy.

        Args:
            date_header: the answer's HTTP ``Date`` (RFC 9110 section 5.6.7).
            sent_at: what `local_now` returned before the request was sent.
        """
        server = _epoch_seconds(date_header)
        if server is None:
            return
        shown = (server - self._local.now(), server + DATE_RESOLUTION_SECONDS - sent_at)
        with self._lock():
            if _gap(self._bounds or (0.0, 0.0), shown) <= DRIFT_SECONDS:
                self._set_bounds(shown if self._bounds is None else _narrowed(self._bounds, shown))
            elif self._jump is None or _gap(self._jump, shown) > DRIFT_SECONDS:
                self._jump = shown
            else:
                self._latest = -math.inf
                self._set_bounds(_narrowed(self._jump, shown))

    def _set_bounds(self, bounds: tuple[float, float]) -> None:
        self._bounds, self._jump, self._offset = bounds, None, _middle(bounds)

    def _lock(self) -> threading.RLock:
        pid = os.getpid()
        return self._locks.get(pid) or self._locks.setdefault(pid, threading.RLock())


def _middle(bounds: tuple[float, float] | None) -> float:
    """Return the offset to correct by: 0.0 if it lies within the bounds or there are none, else their middle."""
    low, high = bounds or (0.0, 0.0)
    return 0.0 if low <= 0.0 <= high else (low + high) / 2


def _gap(one: tuple[float, float], other: tuple[float, float]) -> float:
    """Return the gap between two intervals; negative where they overlap."""
    return max(one[0], other[0]) - min(one[1], other[1])


def _narrowed(bounds: tuple[float, float], shown: tuple[float, float]) -> tuple[float, float]:
    """Return the intersection of two intervals; the newer one if there is none, because a clock drifted."""
    low, high = max(bounds[0], shown[0]), min(bounds[1], shown[1])
    return (low, high) if low <= high else shown


def _seconds_since_boot() -> float:
    """Return a monotonic time; on Linux it includes the time that the machine was suspended."""
    boot_time = getattr(time, "CLOCK_BOOTTIME", None)
    return time.monotonic() if boot_time is None else time.clock_gettime(boot_time)


# All answers of one second have the same header.
@lru_cache(maxsize=2)
def _epoch_seconds(date_header: str) -> float | None:
    try:
        parsed: datetime = parsedate_to_datetime(date_header)
    except ValueError:
        return None
    return parsed.timestamp()
