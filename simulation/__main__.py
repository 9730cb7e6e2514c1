"""``python -m simulation``: play histories, check them, and print what they found."""

import sys
import time
import traceback
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from importlib import import_module
from typing import Final

import click

from simulation.planted import BugName, plant

#: By name: the module that plays its histories.
WORLDS: Final = {
    "whole": "simulation.world",
    "reruns": "simulation.reruns",
    "atomic": "simulation.atomic",
    "receipts": "simulation.receipts",
    "steps": "simulation.steps",
    "step-rows": "simulation.step_rows",
    "small": "simulation.small_random",
    "small-reruns": "simulation.small_reruns",
    "small-steps": "simulation.small_steps",
    "calls": "simulation.sequences",
    "directed": "simulation.directed",
}
#: Histories that one worker process plays before it reports.
BATCH = 200


@dataclass
class Report:
    """What a number of histories showed."""

    histories: int = 0
    faults: Counter[str] = field(default_factory=Counter)
    #: By invariant: how many histories met its precondition.
    met: Counter[str] = field(default_factory=Counter)
    #: What was violated, with its seed.
    violations: list[str] = field(default_factory=list)

    def add(self, other: "Report") -> None:
        """Add what others showed."""
        self.histories += other.histories
        self.faults += other.faults
        self.met += other.met
        self.violations += other.violations


def play_all(seeds: range, *, world: str = "whole", first_only: bool = False) -> Report:
    """Play and check the histories of some seeds in a world, all or up to the first violation."""
    from simulation.checker import check  # noqa: PLC0415 - a planted bug comes before its module

    play, report = import_module(WORLDS[world]).play, Report()
    for seed in seeds:
        history = play(seed)
        report.histories += 1
        report.faults.update(history.counts)
        failed = ["".join(traceback.format_exception_only(each)).strip() for each in history.failures]
        broken = [f"{each.invariant} at {each.at:.3f}: {each.what}" for each in check(history, report.met)]
        report.violations += [f"seed {seed} ({history.task}): {each}" for each in failed + broken]
        if report.violations and first_only:
            break
    return report


@click.command()
@click.option("--seed", default=0, show_default=True, help="The first history's.")
@click.option("--histories", default=1000, show_default=True, help="How many to play.")
@click.option("--processes", default=1, show_default=True, help="How many play at once.")
@click.option("--planted", type=BugName(), help="Plant a bug of simulation/planted.toml, and stop when it is found.")
@click.option("--world", type=click.Choice([*WORLDS]), default="whole", show_default=True, help="Which world plays.")
@click.option("--show", is_flag=True, help="Print the history of the seed, one lane for each delivery.")
def simulate(seed: int, histories: int, processes: int, planted: str | None, world: str, *, show: bool) -> None:
    """Play histories of the shipped code under virtual time and faults, and check each against the promise.

    Exit code 0 if nothing was violated, 1 otherwise.  A seed plays the same history again.
    """
    if planted is not None:
        plant(planted)
    if show:
        from simulation.lanes import print_history  # noqa: PLC0415 - a planted bug comes before its module

        print_history(import_module(WORLDS[world]).play(seed))
        return
    began, report = time.perf_counter(), Report()
    seeds = range(seed, seed + histories)
    if planted is not None or processes == 1:
        report = play_all(seeds, world=world, first_only=planted is not None)
    else:
        batches = [range(first, min(first + BATCH, seeds.stop)) for first in range(seeds.start, seeds.stop, BATCH)]
        with ProcessPoolExecutor(processes) as pool:
            for each in pool.map(partial(play_all, world=world), batches):
                report.add(each)
    _print(report, time.perf_counter() - began)
    sys.exit(bool(report.violations))


def _print(report: Report, seconds: float) -> None:
    click.echo(
        f"{report.histories} histories, {report.histories / seconds:.1f} a second, {len(report.violations)} violations"
    )
    click.echo("faults: " + ", ".join(f"{kind} {count}" for kind, count in sorted(report.faults.items())))
    click.echo("preconditions met: " + ", ".join(f"{name} {count}" for name, count in sorted(report.met.items())))
    for violation in report.violations[:20]:
        click.echo(violation)


if __name__ == "__main__":
    simulate()
