"""A manual clock for tests."""

__all__ = ["FakeClock"]


class FakeClock:
    """A clock that stands still until `advance` or `sleep` moves it.

    Args:
        now: the initial time in epoch seconds.
    """

    def __init__(self, now: float = 1_700_000_000.0) -> None:
        self._now = now

    def now(self) -> float:
        """Return the time in epoch seconds (UTC)."""
        return self._now

    def monotonic(self) -> float:
        """Return the same as `now`."""
        return self._now

    def sleep(self, seconds: float) -> None:
        """Advance the clock by this many seconds and return at once."""
        self.advance(seconds)

    def advance(self, seconds: float) -> None:
        """Move the clock forward by this many seconds, or back if they are negative."""
        self._now += seconds
