"""A history for a person to read: one lane for each delivery, one line for each thing that happened."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

from rich.console import Console
from rich.text import Text

from simulation.checker import Violation, check
from simulation.history import Entry, History

__all__ = ["print_history"]

#: Details that the lane or the line says already.
_HIDDEN: Final = frozenset(
    {"item", "plan", "level", "worker", "task", "by", "process", "lock", "owner", "order", "grant", "downstream"}
    | {"value", "transaction"}
)
#: What is shown of a record.
_SHOWN: Final = ("status", "owner", "fence")
_COLOURS: Final = ("cyan", "magenta", "green", "yellow", "blue", "bright_cyan", "bright_magenta", "bright_green")
#: By kind of entry: its mark in the lane.
_MARKS: Final = {"delivered": "┬", "ended": "┴", "began": "▶", "over": "■", "fault": "!", "effect": "$"}
_LONGEST_VALUE: Final = 20


@dataclass(eq=False)
class _Lane:
    """The column of one delivery while it lasts."""

    place: int
    number: int
    process: str


class _Lanes:
    """The lanes that are open; a free column is used again."""

    def __init__(self) -> None:
        self._open: dict[int, _Lane] = {}
        self._numbers = 0

    def of(self, entry: Entry) -> _Lane | None:
        """Return the lane of an entry; a delivery's first entry opens one."""
        process = entry.details.get("process") or entry.details.get("by")
        lane = next((each for each in self._open.values() if each.process == process), None)
        if entry.kind == "delivered" and process is not None:
            if lane is not None:
                self.close(lane)
            place = next(place for place in range(len(self._open) + 1) if place not in self._open)
            self._numbers += 1
            lane = self._open[place] = _Lane(place, self._numbers, str(process))
        return lane

    def close(self, lane: _Lane) -> None:
        """Free a lane's column."""
        del self._open[lane.place]

    def drawn(self, lane: _Lane | None, kind: str) -> Text:
        """Return the columns, with a mark in that of the entry."""
        columns = Text()
        for place in range(max(self._open, default=-1) + 1):
            mark = "│" if place in self._open else " "
            if lane is not None and lane.place == place:
                mark = _MARKS.get(kind, "●")
            columns.append(f"{mark} ", style=_COLOURS[place % len(_COLOURS)])
        return columns


def print_history(history: History) -> None:
    """Print what happened, with each violation at the moment at which it shows."""
    console = Console(highlight=False, soft_wrap=True)
    console.print(f"seed {history.seed}, {history.task}; faults: {_joined(history.counts) or 'none'}")
    for line in _lines(history, check(history)):
        console.print(line)


def _lines(history: History, violations: list[Violation]) -> Iterator[Text]:
    lanes, left = _Lanes(), list(violations)
    for entry in history.entries:
        yield from _violated(left, entry.at)
        lane = lanes.of(entry)
        line = Text(f"{entry.at:9.3f}  ").append(lanes.drawn(lane, entry.kind))
        style = "" if lane is None else _COLOURS[lane.place % len(_COLOURS)]
        yield line.append(f" {_said(entry)}", style=style)
        if lane is not None and entry.kind == "ended":
            lanes.close(lane)
    yield from _violated(left, float("inf"))


def _violated(left: list[Violation], until: float) -> Iterator[Text]:
    while left and left[0].at <= until:
        violation = left.pop(0)
        yield Text(f"{violation.at:9.3f}  VIOLATED  {violation.invariant}: {violation.what}", style="bold red")


def _said(entry: Entry) -> str:
    if entry.kind == "written":
        item = entry.item
        shown: dict[str, Any] = {name: next(iter(item[name].values())) for name in _SHOWN if name in item}
        return f"wrote {_short(entry.details['key'])} {_joined(shown) or 'nothing'}"
    if entry.kind == "fault":
        return f"fault: {entry.details['fault']}"
    details = {name: each for name, each in entry.details.items() if name not in _HIDDEN and each is not None}
    return f"{entry.kind} {_joined(details)}".rstrip()


def _joined(details: dict[str, Any]) -> str:
    return " ".join(f"{name}={_short(each)}" for name, each in details.items())


def _short(value: Any) -> str:
    text = f"{value:.3f}" if isinstance(value, float) else str(value)
    return text if len(text) <= _LONGEST_VALUE else f"{text[: _LONGEST_VALUE - 1]}…"
