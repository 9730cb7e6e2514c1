"""``python -m simulation.agreement``: whether the two checkers say the same of a world's histories."""

import logging
import sys
import time
from dataclasses import dataclass, field
from importlib import import_module
from typing import TYPE_CHECKING, Final

import click

from simulation.__main__ import WORLDS
from simulation.planted import PLANTED, plant
from simulation.scheduler import CLOCK_SECONDS, START

if TYPE_CHECKING:
    # It imports the library, which a planted bug must come before.
    from simulation.history import Entry, History

__all__ = ["Agreement", "judge"]

#: The most histories of which the seeds are printed.
MOST_SHOWN: Final = 5


@dataclass
class Agreement:
    """What the two checkers say of a number of histories."""

    histories: int = 0
    calls: int = 0
    #: The seeds of the histories in which they find something.
    first: list[int] = field(default_factory=list)
    second: list[int] = field(default_factory=list)
    #: Seconds of processor time that the second took.
    seconds: float = 0.0


def judge(world: str, seeds: range) -> Agreement:
    """Play the histories of some seeds, and have both checkers judge each."""
    from simulation.checker import check  # noqa: PLC0415 - a planted bug comes before its module
    from simulation.linear import unexplained  # noqa: PLC0415

    play, agreement = import_module(WORLDS[world]).play, Agreement()
    for seed in seeds:
        history = play(seed)
        agreement.histories += 1
        agreement.calls += len(history.calls)
        began = time.process_time()
        # An operator's commands, and the end of a record's retention, are no calls.
        others = {entry.details["key"] for entry in history.of("written") if _begins_anew(history, entry)}
        if unexplained([call for call in history.calls if call.key not in others]):
            agreement.second.append(seed)
        agreement.seconds += time.process_time() - began
        if history.failures or check(history):
            agreement.first.append(seed)
    return agreement


def _begins_anew(history: "History", written: "Entry") -> bool:
    """Return whether a write is an operator's, or leaves a record that is kept for less than the whole history."""
    item = written.details["item"]
    if item is None or written.details["by"] in (history.operator, history.person):
        return True
    return float(item["expiration"]["N"]) - START < history.entries[-1].at + CLOCK_SECONDS


@click.command()
@click.option("--world", type=click.Choice([*WORLDS]), default="small", show_default=True, help="Which world plays.")
@click.option("--seed", default=0, show_default=True, help="The first history's.")
@click.option("--histories", default=1000, show_default=True, help="How many to play.")
@click.option("--planted", type=click.Choice([bug.name for bug in PLANTED]), help="Plant a bug.")
def compare(world: str, seed: int, histories: int, planted: str | None) -> None:
    """Judge histories by the invariants, and by the order in which store calls can have taken effect.

    Exit code 0 if neither finds anything, 1 otherwise.
    """
    if planted is not None:
        plant(planted)
    logging.getLogger("idempotent_tasks").setLevel(logging.CRITICAL + 1)
    found = judge(world, range(seed, seed + histories))
    click.echo(f"{found.histories} histories, {found.calls} calls, {found.seconds:.1f} s for the second checker")
    for name, seeds in (("first", found.first), ("second", found.second)):
        click.echo(f"the {name} checker finds something in {len(seeds)}: {seeds[:MOST_SHOWN]}")
    sys.exit(bool(found.first or found.second))


if __name__ == "__main__":
    compare()
