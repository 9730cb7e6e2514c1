"""``python -m simulation.exhaustive``: search every schedule of small scenarios, and print how many there are."""

import logging
import sys
import time
import traceback
from typing import Final

import click

from simulation.planted import BugName, plant

#: The most violations that are printed.
MOST_SHOWN: Final = 5


@click.command()
@click.option("--scenario", "names", multiple=True, help="Only the scenario of this name; a long one only if named.")
@click.option("--faults", default=1, show_default=True, help="How many may happen in a schedule.")
@click.option("--quick", is_flag=True, help="A smaller bound, of some seconds.")
@click.option("--planted", type=BugName(), help="Plant a bug of simulation/planted.toml, and stop when it is found.")
def explore(names: tuple[str, ...], faults: int, planted: str | None, *, quick: bool) -> None:
    """Play every schedule of two deliveries of one key with one fault, and check each against the promise.

    Exit code 0 if nothing was violated, 1 otherwise.
    """
    if planted is not None:
        plant(planted)
    from simulation.schedules import FAULTS, QUICK, SCENARIOS, Found, search  # noqa: PLC0415 - a planted bug comes first

    logging.getLogger("idempotent_tasks").setLevel(logging.CRITICAL + 1)
    usual = tuple(each for each in SCENARIOS if not each.long)
    scenarios, kinds = QUICK if quick else (usual, frozenset(FAULTS))
    total, began = Found(complete=True), time.process_time()
    by_name = {each.name: each for each in SCENARIOS}
    if unknown := [name for name in names if name not in by_name]:
        raise click.BadParameter(f"{unknown[0]!r} is none of {', '.join(by_name)}", param_hint="--scenario")
    for scenario in [by_name[name] for name in names] or scenarios:
        found = search(scenario, faults=faults, kinds=kinds, first_only=planted is not None)
        total.add(found)
        click.echo(f"{scenario.name:28} {found.describe()}")
        if planted is not None and total.is_broken:
            break
    click.echo(f"{'all':28} {total.describe()}, {time.process_time() - began:.1f} s of processor time")
    for violation, choices in total.violations[:MOST_SHOWN]:
        click.echo(f"{violation.invariant} at {violation.at:.3f}: {violation.what}; choices {list(choices)}")
    for failure in total.failures[:MOST_SHOWN]:
        click.echo("".join(traceback.format_exception(failure)))
    sys.exit(total.is_broken)


if __name__ == "__main__":
    explore()
