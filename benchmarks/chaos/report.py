"""The report of one run: a table for the terminal, one for the documents, and everything as JSON."""

import json
import os
import platform
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from typing import Any, Final

from rich.console import Console
from rich.table import Table

from benchmarks.chaos.figures import PROMISES, RECOVERY, Figures
from benchmarks.chaos.plan import Plan

__all__ = ["Report"]

_PACKAGES: Final = (
    "celery",
    "kombu",
    "billiard",
    "boto3",
    "celery-once",
    "celery-singleton",
    "aws-lambda-powertools",
    "idempotent-tasks",
)
#: So many findings of a contender are shown; the JSON file has all.
_SHOWN: Final = 5


@dataclass(frozen=True, kw_only=True, slots=True)
class Report:
    """What the run was, and what became of each contender."""

    plan: Plan
    broker: str
    pool: str
    #: The options that bring more than kills.
    extras: tuple[str, ...]
    figures: tuple[Figures, ...]
    #: For each contender that met faults on the way to its table: how often it met which.
    faults: Mapping[str, Mapping[str, int]] = field(default_factory=dict)

    @property
    def title(self) -> str:
        """What was played, in a line."""
        plan, extras = self.plan, "".join(f", {extra}" for extra in self.extras)
        kills = sum(strike.kind.kills for strike in plan.strikes)
        pauses = len(plan.strikes) - kills
        blows = f"{kills} kills" + (f", {pauses} pauses" if pauses else "")
        work = f"{len(plan.jobs)} keys, {len(plan.messages)} messages, {blows}"
        traced = ", messages with tracing headers" if plan.traced else ""
        return f"seed {plan.seed}, plan {plan.digest}: {work}{traced}; {self.broker}, {self.pool}{extras}"

    @property
    def unplayed(self) -> list[tuple[str, str]]:
        """The contenders and faults of which the storm was to have one, and had none."""
        return [(name, kind) for name, counts in self.faults.items() for kind, count in counts.items() if not count]

    def show(self, console: Console) -> None:
        """Print the tables, and the findings that break a promise."""
        console.print(self.title, style="bold", highlight=False)
        for heads, rows in self._tables():
            table = Table()
            for number, head in enumerate(heads):
                table.add_column(head, justify="right" if number else "left")
            for row in rows:
                table.add_row(*row)
            console.print(table)
        for figures in self.figures:
            self._show_findings(console, figures)
        for name, kind in self.unplayed:
            console.print(f'{name} never met the fault "{kind}": the storm was too short', style="yellow")

    def markdown(self) -> str:
        """Return the tables for the documents."""
        lines = [self.title]
        for heads, rows in self._tables():
            lines += ["", f"| {' | '.join(heads)} |", f"|---|{'---:|' * (len(heads) - 1)}"]
            lines += [f"| {' | '.join(row)} |" for row in rows]
        return "\n".join((*lines, ""))

    def _tables(self) -> Iterator[tuple[Sequence[str], list[list[str]]]]:
        yield PROMISES, [figures.promises() for figures in self.figures]
        yield RECOVERY, [figures.recovery() for figures in self.figures]
        if self.faults:
            kinds = next(iter(self.faults.values()))
            rows = [[kind, *(str(counts[kind]) for counts in self.faults.values())] for kind in kinds]
            yield ("faults played", *self.faults), rows

    def as_json(self) -> str:
        """Return everything that was planned and found."""
        whole: dict[str, Any] = {
            "title": self.title,
            "seed": self.plan.seed,
            "plan": self.plan.digest,
            "broker": self.broker,
            "pool": self.pool,
            "extras": self.extras,
            "machine": {"cores": os.cpu_count(), "python": platform.python_version(), "versions": _versions()},
            "traced": self.plan.traced,
            "faults": {name: dict(counts) for name, counts in self.faults.items()},
            "unplayed": self.unplayed,
            "contenders": [figures.as_json() for figures in self.figures],
        }
        return json.dumps(whole, indent=2) + "\n"

    def _show_findings(self, console: Console, figures: Figures) -> None:
        if not figures.settled:
            console.print(f"{figures.title}: did not come to rest within {figures.seconds:.0f} s", style="yellow")
        for finding in figures.broken[:_SHOWN]:
            pids = f" pids {', '.join(map(str, finding.pids))}" if finding.pids else ""
            where = f"line {finding.line}, {finding.at:.3f} s,{pids}" if finding.line else "the whole history"
            console.print(f"{figures.title}: {finding.kind} ({where}): {finding.text}", highlight=False)
        if len(figures.broken) > _SHOWN:
            console.print(f"{figures.title}: … and {len(figures.broken) - _SHOWN} more")


def _versions() -> dict[str, str]:
    versions = {}
    for package in _PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return versions
