"""The one source of time: epoch seconds, sleeping, and the offset to the store's own clock.

Nothing else in the package reads a clock or sleeps, so a test moves time by passing another `Clock`.
"""

import time
from datetime import datetime
from email.utils import parsedate_to_datetime
from functools import lru_cache
from typing import Protocol

__all__ = ["Clock", "ServerClock", "SystemClock"]

#: An HTTP ``Date`` header names a whole second; the true time lies up to this many seconds after it.
DATE_RESOLUTION_SECONDS = 1.0


class Clock(Protocol):
    """A source of time that can also wait."""

    def now(self) -> float:
        """Return the time in epoch seconds (UTC)."""
        ...

    def monotonic(self) -> float:
        """Return seconds since some moment, by a clock that nobody sets: for durations and deadlines."""
        ...

    def sleep(self, seconds: float) -> None:
        """Return after this many seconds."""
        ...


class SystemClock:
    """The machine's own clock as it stood when this object was made, and the time that has passed since.

    A clock that is set while a worker runs therefore moves no expiry, and a machine that was suspended is not late.
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
    """A local clock corrected to the clock of the server whose answers it was shown.

    Every answer bounds the offset between the two clocks to an interval of one second plus the round trip;
    the intervals of successive answers are intersected.  A machine whose clock may be right is never corrected; any
    other by the middle of the bounds, which is wrong by half a second and half the round trip at most.  An answer
    that contradicts the bounds means that one of the clocks was set, and starts them anew.
    """

    def __init__(self, local: Clock) -> None:
        self._local = local
        self._bounds: tuple[float, float] | None = None

    @property
    def offset_seconds(self) -> float:
        """What is added to the local time, in seconds; 0.0 before the first answer."""
        if self._bounds is None:
            return 0.0
        low, high = self._bounds
        return 0.0 if low <= 0.0 <= high else (low + high) / 2

    def now(self) -> float:
        """Return the server's time in epoch seconds (UTC)."""
        return self._local.now() + self.offset_seconds

    def monotonic(self) -> float:
        """Return the local clock's monotonic time, which no answer of the server moves."""
        return self._local.monotonic()

    def local_now(self) -> float:
        """Return the uncorrected local time in epoch seconds (UTC)."""
        return self._local.now()

    def sleep(self, seconds: float) -> None:
        """Wait on the local clock for this many seconds."""
        self._local.sleep(seconds)

    def observe(self, date_header: str, sent_at: float) -> None:
        """Take in one answer of the server.

        Args:
            date_header: the answer's HTTP ``Date`` (RFC 9110 section 5.6.7).
            sent_at: what `local_now` returned before the request was sent.
        """
        server = _epoch_seconds(date_header)
        if server is None:
            return
        low = server - self._local.now()
        high = server + DATE_RESOLUTION_SECONDS - sent_at
        if self._bounds is not None and max(low, self._bounds[0]) <= min(high, self._bounds[1]):
            low, high = max(low, self._bounds[0]), min(high, self._bounds[1])
        self._bounds = (low, high)


def _seconds_since_boot() -> float:
    """Return a time that nobody sets; on Linux it goes on while the machine is suspended."""
    boot_time = getattr(time, "CLOCK_BOOTTIME", None)
    return time.monotonic() if boot_time is None else time.clock_gettime(boot_time)


# All answers of one second have the same.
@lru_cache(maxsize=2)
def _epoch_seconds(date_header: str) -> float | None:
    try:
        parsed: datetime = parsedate_to_datetime(date_header)
    except ValueError:
        return None
    return parsed.timestamp()
