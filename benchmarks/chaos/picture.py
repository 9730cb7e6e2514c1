"""The distribution of the recovery times of each contender, as an SVG picture. Needs matplotlib."""

import random
from pathlib import Path
from typing import Final

import matplotlib as mpl
from matplotlib import ticker
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from benchmarks.chaos.report import Report

__all__ = ["draw"]

_CHILD, _WORKER, _MEDIAN = "#4493e0", "#d4a72c", "#1f2328"
_TICKS: Final = (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100)
#: The same picture for the same report: ids and jitter are drawn from this.
_SALT: Final = "storm"


def draw(report: Report, path: Path) -> None:
    """Write the picture: a row for each contender, a dot for each recovery, a bar at the median."""
    mpl.rcParams["svg.hashsalt"] = _SALT
    figure = Figure(figsize=(9, 1.2 + 0.62 * len(report.figures)), layout="constrained")
    axes = figure.subplots()
    rng = random.Random(_SALT)
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
