"""The whole world with tasks whose effect is a row in the user's database, which commits with a receipt."""

from typing import Any, Final

from simulation.bodies import RECEIPT_FEATURES, RERUN_FEATURES, Plan, new_receipt_plan
from simulation.faults import DATABASE_FAULTS, Faults
from simulation.history import History
from simulation.provider import PROVIDER_FAULTS
from simulation.reruns import RerunWorld
from simulation.tasks import ASKING, LEASE_SECONDS, PARKING, RECEIPT_TASKS
from simulation.world import FEATURES, RATES, ZOMBIE_KINDS, play_in

__all__ = ["RECEIPT_RATES", "STRIKES", "ReceiptWorld", "play"]

#: What befalls a process while one of its requests to the database is under way.
STRIKES: Final = ("killed-in-transaction", "stopped-in-transaction")
#: Rates of what goes wrong only here.
RECEIPT_RATES: Final = {
    **dict.fromkeys((*DATABASE_FAULTS, *STRIKES), 0.3),
    **dict.fromkeys(PROVIDER_FAULTS, 0.3),
    "resolved": 0.7,
    "resolve-aborted": 0.1,
}
#: The most kinds of one history, but for these.
MOST_KINDS: Final = 3
#: The most leases for which the database takes no connection.
AWAY_IN_LEASES: Final = 2


class ReceiptWorld(RerunWorld):
    """The world of one history of bodies with rows.

    Args:
        seed: of the history.
    """

    def _subject(self) -> tuple[str, frozenset[str], Faults]:
        draw = self.draw
        task, own = draw.choice(sorted(RECEIPT_TASKS)), sorted(RECEIPT_FEATURES)
        features = {*draw.sample(sorted(FEATURES), draw.choice([0, 0, 1, 2]))}
        features |= {*draw.sample(own, draw.choice([0, 1, 1, 2]))}
        others = sorted({*RATES} - {*ZOMBIE_KINDS})
        kinds = {*draw.sample(others, draw.randint(0, MOST_KINDS)), *draw.sample(ZOMBIE_KINDS, draw.choice([0, 0, 1]))}
        kinds |= {*draw.sample(sorted({*DATABASE_FAULTS, *STRIKES}), draw.choice([0, 1, 1, 2, 3]))}
        if task in ASKING | PARKING:
            features |= {*draw.sample(RERUN_FEATURES, draw.choice([0, 0, 1]))}
            kinds |= {*draw.sample(PROVIDER_FAULTS, draw.choice([0, 0, 1]))}
            kinds |= {"resolved", "resolve-aborted"} if draw.random() < 0.5 else set()
        rates = RATES | RECEIPT_RATES
        return task, frozenset(features), Faults(draw, {kind: rates[kind] for kind in sorted(kinds)}, LEASE_SECONDS)

    def new_plan(self) -> Plan:
        """Return the plan of one message."""
        return new_receipt_plan(self.draw, self.features, asks=self.history.task in ASKING | PARKING)

    def _disasters(self) -> dict[str, Any]:
        return {**super()._disasters(), "database-restarted": self._restart_database}

    def _restart_database(self) -> None:
        self.database.restart(self.draw.uniform(0, AWAY_IN_LEASES * LEASE_SECONDS))


def play(seed: int) -> History:
    """Play the history of a seed, and return what happened."""
    return play_in(ReceiptWorld(seed))
