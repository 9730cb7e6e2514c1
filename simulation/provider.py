"""The other system: bodies send it requests, and ``recover`` or a person asks it what came of them."""

from collections import defaultdict
from typing import TYPE_CHECKING, Final

from idempotent_tasks.core.processes import this_process
from simulation.process import check_alive
from simulation.scheduler import CLOCK_SECONDS, Event

if TYPE_CHECKING:
    from simulation.world import World

__all__ = ["CLIENT_SECONDS", "PROVIDER_FAULTS", "SETTLE_SECONDS", "Provider"]

#: Seconds for which a body's client waits for an answer.
CLIENT_SECONDS: Final = 2.0
#: Seconds within which a request arrives, or never, as ``settle`` says.
SETTLE_SECONDS: Final = 8.0
#: The ways of a request to go wrong: the answer comes too late, or never because the request does not arrive.
PROVIDER_FAULTS: Final = ("provider-late", "provider-deaf")
#: Seconds of a request's way, and of its answer's.
_WAY_SECONDS: Final = (0.01, 0.5)


class Provider:
    """Carries out each request that arrives, as often as it arrives, and keeps books.

    Args:
        world: the history's.
    """

    def __init__(self, world: "World") -> None:
        self._world = world
        #: By key: the numbers of the runs whose requests have arrived.
        self.books: dict[str, list[int]] = defaultdict(list)

    def request(self, key: str, run: int) -> None:
        """Send a run's request, and wait for its answer, in the running strand.

        Raises:
            TimeoutError: there is none in time; the request may arrive all the same, within `SETTLE_SECONDS`.
        """
        world, scheduler = self._world, self._world.scheduler
        check_alive()
        world.note("requested", key=key, run=run)
        answered = Event(scheduler)

        def arrive() -> None:
            self.books[key].append(run)
            world.note("charged", key=key, run=run)
            scheduler.after(world.draw.uniform(*_WAY_SECONDS), answered.set)

        seconds = world.draw.uniform(*_WAY_SECONDS)
        if world.faults.happens("provider-late"):
            # Two processes' ideas of the time differ.
            seconds = world.draw.uniform(CLIENT_SECONDS, SETTLE_SECONDS - CLOCK_SECONDS)
        if not world.faults.happens("provider-deaf"):
            scheduler.after(seconds, arrive)
        if not answered.wait(CLIENT_SECONDS):
            raise TimeoutError("simulated: the provider does not answer")

    def ask(self, key: str) -> int | None:
        """Return the run whose request was carried out first, after a question's way; None for none."""
        self._world.scheduler.sleep(self._world.draw.uniform(*_WAY_SECONDS))
        check_alive()
        found = self.look_up(key)
        self._world.note("looked-up", key=key, found=found, process=this_process().name())
        self._world.scheduler.sleep(self._world.draw.uniform(*_WAY_SECONDS))
        return found

    def look_up(self, key: str) -> int | None:
        """Return what `ask` does, at once."""
        return next(iter(self.books[key]), None)
