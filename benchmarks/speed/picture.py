"""The contenders of each measure side by side, as an SVG picture. Needs matplotlib."""

from itertools import groupby
from pathlib import Path
from textwrap import fill
from typing import Any, Final

import matplotlib as mpl
from matplotlib.figure import Figure

from benchmarks.speed.report import Report
from benchmarks.speed.rows import Row, number

__all__ = ["draw"]

_OURS, _OTHERS, _SPREAD = "#4493e0", "#b3bcc5", "#1f2328"
_OUR_NAMES: Final = ("IdempotentTask", "guarded run")
#: Of a line, in a picture of this width.
_TITLE_CHARACTERS: Final = 110
_DRAWN: Final = ("throughput", "micro", "memory")
_NOT_DRAWN: Final = ("x", "%")
#: Of calls that take an argument of a size: beside a large one the other calls would have no bar to see.
_UNLIKE: Final = (" KB", " MB")
#: The same picture for the same report.
_SALT: Final = "speed"


def draw(report: Report, path: Path) -> None:
    """Write the picture: a panel for each measure, a bar at each median, a line from the least to the greatest."""
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
    return [row for row in rows if not any(size in row.subject for size in _UNLIKE)]


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
