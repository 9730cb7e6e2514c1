"""The whole world with tasks whose effect is a write to DynamoDB, in one transaction with its record."""

from typing import Any, Final

from idempotent_tasks.core.processes import this_process
from simulation.bodies import ATOMIC_FEATURES, Plan, new_atomic_plan
from simulation.faults import TRANSACTION_FAULTS, Faults
from simulation.history import History
from simulation.network import TRANSACTION, SimulatedClient
from simulation.provider import Provider
from simulation.reruns import RerunWorld
from simulation.tasks import ATOMIC_TASKS, LEASE_SECONDS
from simulation.tills import RECORDS, TILLS, run_of
from simulation.world import FEATURES, RATES, ZOMBIE_KINDS, play_in

__all__ = ["ATOMIC_RATES", "AtomicWorld", "play"]

#: What befalls a process while its transaction is under way.
_STRIKES: Final = ("killed-in-transaction", "stopped-in-transaction")
#: Rates of what goes wrong only here; mostly a transaction without an answer stays without one.
ATOMIC_RATES: Final = {
    **dict.fromkeys((*TRANSACTION_FAULTS, *_STRIKES), 0.3),
    "transaction-unanswered": 0.8,
    "resolved": 0.7,
}
#: The most kinds of one history, but for these.
MOST_KINDS: Final = 3
#: Seconds within which a process is struck after it has sent a transaction: on the way there, or back.
STRIKE_SECONDS: Final = 0.06


class _Books(Provider):
    """The app's table as what ``recover`` and a person ask."""

    def look_up(self, key: str) -> int | None:
        """Return the run whose writes have taken effect since the key's record began; None for none."""
        service = self._world.service
        counter, record = service.tables[TILLS].items.get(key, {}), service.table_of(RECORDS).items.get(key, {})
        is_current = bool(counter) and counter["generation"] == record.get("generation")
        return run_of(counter) if is_current else None


class _Client(SimulatedClient):
    """A client whose process may be struck while a transaction is under way.

    Args:
        world: the history's.
    """

    def __init__(self, world: "AtomicWorld") -> None:
        super().__init__(world.service, world.scheduler, world.faults)
        self._world = world

    def _send(self, operation: str, parameters: dict[str, Any]) -> Any:
        if operation == TRANSACTION:
            self._strike(this_process())
        return super()._send(operation, parameters)

    def _strike(self, process: Any) -> None:
        world = self._world
        after = world.draw.uniform(0, STRIKE_SECONDS)
        if world.faults.happens("killed-in-transaction"):
            world.scheduler.after(after, process.kill)
        elif world.faults.happens("stopped-in-transaction"):
            world.scheduler.after(after, process.stop)
            world.scheduler.after(after + world.draw.uniform(0, 3 * LEASE_SECONDS), process.go_on)


class AtomicWorld(RerunWorld):
    """The world of one history of bodies with writes.

    Args:
        seed: of the history.
    """

    def __init__(self, seed: int) -> None:
        super().__init__(seed)
        self.provider = _Books(self)

    def _subject(self) -> tuple[str, frozenset[str], Faults]:
        draw = self.draw
        task, own = draw.choice(sorted(ATOMIC_TASKS)), sorted(ATOMIC_FEATURES)
        features = {*draw.sample(sorted(FEATURES), draw.choice([0, 0, 1, 2]))}
        features |= {*draw.sample(own, draw.choice([0, 0, 1, 2]))}
        others = sorted({*RATES} - {*ZOMBIE_KINDS})
        kinds = {*draw.sample(others, draw.randint(0, MOST_KINDS)), *draw.sample(ZOMBIE_KINDS, draw.choice([0, 0, 1]))}
        kinds |= {*draw.sample(sorted({*TRANSACTION_FAULTS, *_STRIKES}), draw.choice([0, 1, 1, 2]))}
        kinds |= {"resolved"} if draw.random() < 0.5 else set()
        rates = RATES | ATOMIC_RATES
        return task, frozenset(features), Faults(draw, {kind: rates[kind] for kind in sorted(kinds)}, LEASE_SECONDS)

    def new_plan(self) -> Plan:
        """Return the plan of one message."""
        return new_atomic_plan(self.draw, self.features)

    def _new_client(self) -> SimulatedClient:
        return _Client(self)


def play(seed: int) -> History:
    """Play the history of a seed, and return what happened."""
    return play_in(AtomicWorld(seed))
