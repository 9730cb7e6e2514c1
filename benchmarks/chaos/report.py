"""The report of one run: tables for the terminal and the documents, everything as JSON, and a picture.

``python -m benchmarks.chaos.report run1.json run2.json ...`` makes the tables of `docs/explanation/chaos.md`.
"""

import json
import os
import platform
import random
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any, Final

from rich.console import Console
from rich.table import Table

from benchmarks.chaos.contenders import CONTENDERS
from benchmarks.chaos.figures import PROMISES, RECOVERY, Figures, Recovery, spread
from benchmarks.chaos.plan import Plan

__all__ = ["Report", "draw_picture", "summary"]

_PACKAGES: Final = (
    "celery",
    "kombu",
    "billiard",
    "boto3",
    "celery-once",
    "celery-singleton",
    "aws-lambda-powertools",
    "sqlalchemy",
    "psycopg",
    "idempotent-tasks",
)
#: So many findings of a contender are shown; the JSON file has all.
_SHOWN: Final = 5
_CHILD, _WORKER, _MEDIAN = "#4493e0", "#d4a72c", "#1f2328"
_TICKS: Final = (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100)
#: The columns, by the names of the tally and of the counts.
_COLUMNS: Final = {
    "duplicated": "duplicated",
    "lost": "lost",
    "overlap": "overlaps",
    "conflict": "conflicts",
    "unanswered": "no answer",
    "vanished": "(lost by the broker)",
    "limit": "(limit)",
    "zombie_run": "(zombie runs)",
    "zombie_effect": "(zombie effects)",
    "by_plain_steps": "(of these: plain steps)",
    "by_zombies": "by zombies",
    "recovered": "recovered",
    "parked": "parked",
    "resolved": "resolved",
}
#: What only a run with this option, or these, shows.
_ONLY: Final = {
    "zombie_run": "pause",
    "zombie_effect": "pause",
    "by_plain_steps": "rows",
    "by_zombies": "rows, pause",
    "recovered": "provider",
    "parked": "provider",
    "resolved": "provider",
}


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
        """The contenders and faults of which the run was to have one, and had none."""
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
            console.print(f'{name} never met the fault "{kind}": the run was too short', style="yellow")

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


def draw_picture(report: Report, path: Path) -> None:
    """Write the recovery times as an SVG picture: a row for each contender, a dot for each, a bar at the median."""
    import matplotlib as mpl
    from matplotlib import ticker
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    mpl.rcParams["svg.hashsalt"] = "chaos"
    figure = Figure(figsize=(9, 1.2 + 0.62 * len(report.figures)), layout="constrained")
    axes = figure.subplots()
    rng = random.Random("chaos")
    for row, figures in enumerate(reversed(report.figures)):
        for whole_worker, color in ((False, _CHILD), (True, _WORKER)):
            found = [each.seconds for each in figures.recoveries if each.whole_worker is whole_worker]
            seconds = [each for each in found if each is not None]
            shift = -0.16 if whole_worker else 0.16
            heights = [row + shift + rng.uniform(-0.1, 0.1) for _ in seconds]
            axes.scatter(seconds, heights, s=13, color=color, alpha=0.65, linewidths=0)
            median = figures.spread(whole_worker=whole_worker).median
            if median is not None:
                axes.vlines(median, row + shift - 0.15, row + shift + 0.15, color=_MEDIAN, linewidth=2.2)
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(ticker.FixedLocator(_TICKS))
    axes.xaxis.set_major_formatter(ticker.FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_locator(ticker.NullLocator())
    axes.set_yticks(range(len(report.figures)), [figures.title for figures in reversed(report.figures)])
    axes.set_xlabel("seconds from the kill to the next start of the key (logarithmic)")
    axes.grid(axis="x", color="#d1d9e0", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "left"]].set_visible(False)
    figure.suptitle(report.title, fontsize=9)
    dot = {"marker": "o", "linestyle": "", "markersize": 5}
    keys = [
        Line2D([], [], color=_CHILD, label="one pool process killed", **dot),
        Line2D([], [], color=_WORKER, label="whole worker killed", **dot),
        Line2D([], [], color=_MEDIAN, label="median", linewidth=2.2),
    ]
    figure.legend(handles=keys, loc="outside lower center", ncols=len(keys), frameon=False, fontsize=9)
    figure.savefig(path, format="svg", metadata={"Date": None})


def summary(runs: list[dict[str, Any]]) -> Iterator[str]:
    """Yield the lines of a table for each broker, pool and kind of trouble, from the JSON reports of several runs.

    Each count is shown run by run, recoveries are pooled.
    """
    for about in dict.fromkeys(map(_about, runs)):
        same = [run for run in runs if _about(run) == about]
        seeds = ", ".join(dict.fromkeys(str(run["seed"]) for run in same))
        columns = {column: name for column, name in _COLUMNS.items() if _ONLY.get(column, "") in about}
        recovery = "recovery, s: median / p95 (n)"
        yield f"| {about}; seed {seeds} | " + " | ".join([*columns.values(), recovery]) + " |"
        yield "|---|" + "---:|" * (len(columns) + 1)
        # Not all of them may have played in each run.
        played = [contender for run in same for contender in run["contenders"]]
        for name in sorted({one["name"] for one in played}, key=list(CONTENDERS).index):
            each = [one for one in played if one["name"] == name]
            numbers = [{**one["counts"], **one["tally"]} for one in each]
            counts = [", ".join(str(one[column]) for one in numbers) for column in columns]
            yield f"| {each[0]['title']} | " + " | ".join([*counts, _recovery(each)]) + " |"
        yield ""


def _about(run: dict[str, Any]) -> str:
    return ", ".join([run["broker"], run["pool"], *run["extras"]])


def _recovery(contenders: list[dict[str, Any]]) -> str:
    found = [
        Recovery(key="", line=0, whole_worker=each["whole_worker"], seconds=each["seconds"])
        for contender in contenders
        for each in contender["recoveries"]
    ]
    pooled = spread(found)
    if pooled.median is None or pooled.p95 is None:
        return "-"
    never = f" + {pooled.never} never" if pooled.never else ""
    return f"{pooled.median:.1f} / {pooled.p95:.1f} ({pooled.count}{never})"


if __name__ == "__main__":
    for line in summary([json.loads(Path(name).read_text()) for name in sys.argv[1:]]):
        print(line)  # noqa: T201 - what it is for
