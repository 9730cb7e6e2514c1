"""The whole world with tasks that park their reruns, or ask a provider before them; and people who decide."""

from functools import partial
from typing import Any, Final

from simulation.bodies import RERUN_FEATURES, Plan, new_rerun_plan
from simulation.faults import Faults
from simulation.history import History
from simulation.person import Person
from simulation.provider import PROVIDER_FAULTS
from simulation.tasks import LEASE_SECONDS, PARKING_TASKS, RECOVERING_TASKS
from simulation.world import FAULTS_END, FEATURES, RATES, ZOMBIE_KINDS, World, play_in

__all__ = ["RERUN_RATES", "RerunWorld", "play"]

TASKS: Final = PARKING_TASKS | RECOVERING_TASKS
#: What has no part here: outcomes in the bucket, payloads, and bodies that say wrongly that they have done nothing.
_ELSEWHERE: Final = frozenset({"nothing-done", "large-result", "unwritable-result", "small-records", "other-amount"})
#: Rates of what goes wrong only here, and of a person's early decisions.
RERUN_RATES: Final = {**dict.fromkeys(PROVIDER_FAULTS, 0.3), "resolved": 0.7, "resolve-aborted": 0.1}
#: What has runs end without an outcome.
_ENDS: Final = ("child-killed", "worker-killed", "child-stopped", "machine-frozen", "store-away")
#: Seconds between a person's looks at what is left.
LOOK_SECONDS: Final = 5.0
#: The most kinds of one history, but for the provider's and `_ENDS`.
MOST_KINDS: Final = 3


class RerunWorld(World):
    """The world of one history of reruns.

    Args:
        seed: of the history.
    """

    def __init__(self, seed: int) -> None:
        super().__init__(seed)
        self.person = Person(self)
        self.history.person = self.person.name

    def _subject(self) -> tuple[str, frozenset[str], Faults]:
        draw = self.draw
        task = draw.choice(sorted(TASKS))
        usual = sorted({*FEATURES} - _ELSEWHERE)
        features = {*draw.sample(usual, draw.choice([0, 0, 1, 2])), *draw.sample(RERUN_FEATURES, draw.randint(0, 2))}
        others = sorted({*RATES} - set(_ENDS) - {"bucket-failed", "bucket-slow", "upload-lost"})
        kinds = {*draw.sample(others, draw.randint(0, MOST_KINDS)), *draw.sample(_ENDS, draw.randint(0, 2))}
        kinds |= {*draw.sample(ZOMBIE_KINDS, draw.choice([0, 0, 1])), *draw.sample(PROVIDER_FAULTS, draw.randint(0, 2))}
        kinds |= {"resolved", "resolve-aborted"} if draw.random() < 0.6 else set()
        rates = RATES | RERUN_RATES
        return task, frozenset(features), Faults(draw, {kind: rates[kind] for kind in sorted(kinds)}, LEASE_SECONDS)

    def new_plan(self) -> Plan:
        """Return the plan of one message."""
        return new_rerun_plan(self.draw, self.features)

    def set_up(self) -> None:
        """Do what every world does, and have a person look at what is left when nothing goes wrong any more."""
        super().set_up()
        self.scheduler.after(FAULTS_END, partial(self.person.look_again, LOOK_SECONDS))

    def _disasters(self) -> dict[str, Any]:
        return {**super()._disasters(), "resolved": self.person.act}

    def is_over(self) -> bool:
        """Return whether nothing goes wrong any more, and nothing is left to do, to a person neither."""
        return super().is_over() and not self.undecided and not self.person.busy


def play(seed: int) -> History:
    """Play the history of a seed, and return what happened."""
    return play_in(RerunWorld(seed))
