"""The whole world with tasks whose bodies have steps."""

from collections.abc import Mapping
from typing import Any, Final

from simulation.bodies import STEP_FEATURES, Plan, new_step_plan
from simulation.faults import Faults
from simulation.history import History
from simulation.network import SimulatedClient
from simulation.reruns import RerunWorld
from simulation.step_bodies import KEEP_FAULTS, StepClient
from simulation.tasks import LEASE_SECONDS, SETTLING_STEPS, STEP_TASKS
from simulation.world import FEATURES, RATES, ZOMBIE_KINDS, play_in

__all__ = ["STEP_RATES", "StepWorld", "play"]

#: Rates of what goes wrong only here.
STEP_RATES: Final = {**dict.fromkeys(KEEP_FAULTS, 0.2), "resolved": 0.7}
#: What has no part here: a result that does not fit into the record.
_ELSEWHERE: Final = frozenset({"small-records"})
#: What has runs end without an outcome.
_ENDS: Final = ("child-killed", "worker-killed", "child-stopped", "machine-frozen", "store-away")
#: The most kinds of one history, but for these.
MOST_KINDS: Final = 3


class StepWorld(RerunWorld):
    """The world of one history of bodies with steps.

    Args:
        seed: of the history.
    """

    #: By the names of the steps that write a row: what they do in their transaction.
    step_rows: Mapping[str, str] = {}

    def _subject(self) -> tuple[str, frozenset[str], Faults]:
        draw = self.draw
        task = draw.choice(sorted(STEP_TASKS))
        features = {*draw.sample(sorted({*FEATURES} - _ELSEWHERE), draw.choice([0, 0, 1, 2]))}
        features |= {*draw.sample(STEP_FEATURES, draw.choice([0, 1, 1]))}
        if task in SETTLING_STEPS:
            # A body that says wrongly that it has done nothing has its steps not asked about.
            features.discard("nothing-done")
        others = sorted({*RATES} - {*ZOMBIE_KINDS} - {*_ENDS})
        kinds = {*draw.sample(others, draw.randint(0, MOST_KINDS)), *draw.sample(_ENDS, draw.randint(0, 2))}
        kinds |= {*draw.sample(ZOMBIE_KINDS, draw.choice([0, 0, 1])), *draw.sample(KEEP_FAULTS, draw.choice([0, 1, 2]))}
        kinds |= {"resolved"} if draw.random() < 0.5 else set()
        rates = RATES | STEP_RATES
        return task, frozenset(features), Faults(draw, {kind: rates[kind] for kind in sorted(kinds)}, LEASE_SECONDS)

    def new_plan(self) -> Plan:
        """Return the plan of one message."""
        return new_step_plan(self.draw, self.features, self.step_rows, asks=self.history.task in SETTLING_STEPS)

    def _new_client(self) -> SimulatedClient:
        return StepClient(self.service, self, self._interrupt, 3 * LEASE_SECONDS)

    def _interrupt(self, process: Any) -> None:
        for worker in self.workers:
            worker.interrupt(process)


def play(seed: int) -> History:
    """Play the history of a seed, and return what happened."""
    return play_in(StepWorld(seed))
