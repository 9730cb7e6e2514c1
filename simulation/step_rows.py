"""The whole world with tasks whose bodies have steps, of which some write a row that commits with a receipt."""

from typing import Final

from simulation.bodies import STEP_ROWS
from simulation.faults import DATABASE_FAULTS, Faults
from simulation.history import History
from simulation.receipts import RECEIPT_RATES, STRIKES, ReceiptWorld
from simulation.step_bodies import KEEP_FAULTS, NAMES
from simulation.steps import STEP_RATES, StepWorld
from simulation.tasks import LEASE_SECONDS
from simulation.world import RATES, play_in

__all__ = ["StepRowWorld", "play"]

#: The most kinds that befall the database, and steps while they are kept.
MOST_KINDS: Final = 3


class StepRowWorld(StepWorld, ReceiptWorld):
    """The world of one history of bodies with steps that write rows.

    Args:
        seed: of the history.
    """

    def _subject(self) -> tuple[str, frozenset[str], Faults]:
        task, features, faults = super()._subject()
        draw = self.draw
        names = draw.sample(NAMES, draw.randint(2, len(NAMES)))
        self.step_rows = {name: draw.choice(STEP_ROWS) for name in names}
        own = sorted({*DATABASE_FAULTS, *STRIKES, *KEEP_FAULTS})
        kinds = {*faults.kinds, *draw.sample(own, draw.choice([0, 1, 1, 2, MOST_KINDS]))}
        rates = RATES | RECEIPT_RATES | STEP_RATES
        return task, features, Faults(draw, {kind: rates[kind] for kind in sorted(kinds)}, LEASE_SECONDS)


def play(seed: int) -> History:
    """Play the history of a seed, and return what happened."""
    return play_in(StepRowWorld(seed))
