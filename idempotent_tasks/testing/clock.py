"""A clock that only a test moves."""

__all__ = ["FakeClock"]


class FakeClock:
    """A clock that stands still until it is moved; sleeping moves it.

    Args:
        now: the time at which it stands first, in epoch seconds.
    """

    def __init__(self, now: float = 1_700_000_000.0) -> None:
        self._now = now

    def now(self) -> float:
        """Return the time in epoch seconds (UTC)."""
        return self._now

    def monotonic(self) -> float:
        """Return the same as `now`: time goes on only where a test moves it."""
        return self._now

    def sleep(self, seconds: float) -> None:
        """Move the clock by this many seconds and return at once."""
        self.advance(seconds)

    def advance(self, seconds: float) -> None:
        """Move the clock forward, or back where negative, by this many seconds."""
        self._now += seconds
