"""An hour of tasks in fast motion: a keeper that is driven by hand, on a clock that nobody waits for."""

from contextlib import ExitStack
from dataclasses import dataclass, field

from idempotent_tasks.keeper import Term
from idempotent_tasks.testing import FakeClock, MemoryStore
from tests.support.guarding import ManualKeeper, start, unseen
from tests.support.stores import FaultyStore

__all__ = ["HOUR_SECONDS", "Hour"]

HOUR_SECONDS = 3600.0


@dataclass
class Hour:
    """Tasks of one length that start at equal distances within an hour, each under a claim that is renewed."""

    tasks: int
    body_seconds: float
    lease_seconds: float
    #: How often the keeper's thread woke up.
    wakes: int = 0
    _clock: FakeClock = field(default_factory=lambda: FakeClock(0.0))
    _keeper: ManualKeeper = field(default_factory=ManualKeeper)
    _wakes_at: float | None = None

    def __post_init__(self) -> None:
        """Make the store, whose calls are counted."""
        self._store = FaultyStore(MemoryStore(clock=self._clock))

    def run(self) -> int:
        """Run every task to its end, and return how many renewals the store was asked for."""
        blocks = [ExitStack() for _ in range(self.tasks)]
        starts = [number * HOUR_SECONDS / self.tasks for number in range(self.tasks)]
        events = [(at + self.body_seconds, number, True) for number, at in enumerate(starts)]
        events += [(at, number, False) for number, at in enumerate(starts)]
        for at, number, ends in sorted(events):
            self._let_pass(at)
            if ends:
                blocks[number].close()
            else:
                self._begin(number, blocks[number])
        self._let_pass(self._clock.now() + HOUR_SECONDS)
        return self._store.calls.count("renew")

    def _begin(self, number: int, block: ExitStack) -> None:
        term = Term(lease_seconds=self.lease_seconds, renewed=True, longest_seconds=None)
        run = start(self._store, str(number), key=str(number), lease=self.lease_seconds)
        block.enter_context(self._keeper.keep(run, self._store, term, unseen))
        self._wake()

    def _let_pass(self, until: float) -> None:
        """Move the clock, and wake the keeper whenever its thread would."""
        while self._wakes_at is not None and self._wakes_at < until:
            self._clock.advance(self._wakes_at - self._clock.now())
            self._wake()
        self._clock.advance(until - self._clock.now())

    def _wake(self) -> None:
        self.wakes += 1
        pause = self._keeper.renew_due()
        self._wakes_at = None if pause is None else self._clock.now() + pause
