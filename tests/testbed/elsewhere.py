"""Workers on other machines: their clocks are wrong, and nobody here can tell whether their processes have ended."""

from dataclasses import dataclass, field, replace

from idempotent_tasks import DynamoDBStore
from idempotent_tasks.core.clock import SystemClock
from idempotent_tasks.core.records import ClaimAnswer, ClaimRequest

__all__ = ["StoreElsewhere", "store_elsewhere"]


@dataclass(frozen=True)
class SkewedClock:
    """The machine's clock, wrong by a constant."""

    skew_seconds: float
    _clock: SystemClock = field(default_factory=SystemClock)

    def now(self) -> float:
        """Return the wrong time in epoch seconds."""
        return self._clock.now() + self.skew_seconds

    def monotonic(self) -> float:
        """Return what nobody can set wrong."""
        return self._clock.monotonic()

    def sleep(self, seconds: float) -> None:
        """Wait for as long as anybody else."""
        self._clock.sleep(seconds)


class StoreElsewhere(DynamoDBStore):
    """The store as a worker on another machine uses it: its claims name no process of this one."""

    def claim(self, request: ClaimRequest) -> ClaimAnswer:
        """Claim as a stranger."""
        return super().claim(replace(request, process=None))


def store_elsewhere(url: str, skew_seconds: float) -> StoreElsewhere:
    """Return the store of a machine whose clock is ahead by so many seconds, or behind where negative."""
    return StoreElsewhere.from_url(url, clock=SkewedClock(skew_seconds))
