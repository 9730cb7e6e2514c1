"""``python -m simulation.search``: look for the first history that finds each planted bug, and keep what was found."""

import csv
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, fields
from functools import partial
from typing import Final

import click

from simulation.planted import FOUND, PLANTED, BugName, Found, PlantedBug, found

#: The worlds in the order in which they are searched.
SEARCHED: Final = (
    "small",
    "small-steps",
    "calls",
    "directed",
    "reruns",
    "atomic",
    "receipts",
    "steps",
    "step-rows",
    "whole",
)
_VIOLATION: Final = re.compile(r"^seed (\d+) \(.*?\): (.*?) at ", re.MULTILINE)


def search(bug: PlantedBug, bounds: dict[str, int]) -> Found | None:
    """Return the first history that finds a bug, in the first world where there is one; None if there is none.

    Args:
        bug: to be planted.
        bounds: by world: how many histories are played at most.
    """
    for world in SEARCHED:
        options = ("--planted", bug.name, "--world", world, "--histories", str(bounds[world.replace("-", "_")]))
        played = subprocess.run(  # noqa: S603 - the names of our own planted bugs
            [sys.executable, "-m", "simulation", *options], capture_output=True, text=True, check=False
        )
        # A command that broke down has reported nothing.
        if played.returncode not in (0, 1) or not played.stdout:
            raise click.ClickException(f"{bug.name}: {played.stderr}")
        violation = _VIOLATION.search(played.stdout)
        if violation is not None:
            return Found(bug.name, world, int(violation[1]), violation[2])
    return None


@click.command()
@click.option(
    "--bug", "names", type=BugName(), multiple=True, help="Search this bug of simulation/planted.toml only; repeatable."
)
@click.option("--small", default=5_000, show_default=True, help="How many histories of the small world to play.")
@click.option("--small-steps", default=5_000, show_default=True, help="How many of it with steps to play then.")
@click.option("--calls", default=200, show_default=True, help="How many sequences of calls to play then.")
@click.option("--directed", default=300, show_default=True, help="How many directed histories to play then.")
@click.option("--reruns", default=500, show_default=True, help="How many histories of reruns to play then.")
@click.option("--atomic", default=500, show_default=True, help="How many histories with writes to play then.")
@click.option("--receipts", default=500, show_default=True, help="How many histories with receipts to play then.")
@click.option("--steps", default=500, show_default=True, help="How many histories with steps to play then.")
@click.option("--step-rows", default=500, show_default=True, help="How many with rows in steps to play then.")
@click.option("--whole", default=2_000, show_default=True, help="How many histories of the whole world to play then.")
@click.option("--processes", default=1, show_default=True, help="How many bugs to search at once.")
def main(names: tuple[str, ...], processes: int, **bounds: int) -> None:
    """Search the planted bugs, and write down the histories that find them.

    Exit code 0 if each is found, 1 otherwise.
    """
    known = {each.bug: each for each in found()} if FOUND.exists() else {}
    bugs = [bug for bug in PLANTED if not names or bug.name in names]
    with ThreadPoolExecutor(processes) as pool:
        for bug, result in zip(bugs, pool.map(partial(search, bounds=bounds), bugs), strict=True):
            known.pop(bug.name, None)
            if result is not None:
                known[bug.name] = result
            click.echo(f"{bug.name}: {'not found' if result is None else result}")
    _write([known[bug.name] for bug in PLANTED if bug.name in known])
    sys.exit(any(bug.name not in known for bug in bugs))


def _write(results: list[Found]) -> None:
    with FOUND.open("w", newline="") as file:
        writer = csv.DictWriter(file, [field.name for field in fields(Found)], lineterminator="\n")
        writer.writeheader()
        writer.writerows(map(asdict, results))


if __name__ == "__main__":
    main()
