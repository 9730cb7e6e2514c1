"""One contender's journal on disk: every process appends lines to it, and what it says is what happened."""

import time
from dataclasses import asdict, dataclass, fields
from json import dumps, loads
from pathlib import Path
from typing import Any

from benchmarks.chaos.history import Event, What
from idempotent_tasks.demo.lines import LineReader, append_line

__all__ = ["Journal", "Reader", "now"]

_DEFAULTS = {field.name: field.default for field in fields(Event) if field.name not in ("what", "at")}


def now() -> float:
    """Return seconds on a clock that all processes of the machine share and that nobody sets."""
    return time.monotonic()


@dataclass(frozen=True, slots=True)
class Journal:
    """The writing end; safe to use from any number of processes at once."""

    path: Path

    def append(self, what: What, *, at: float | None = None, **details: Any) -> None:
        """Write one line in one write, so that a killed writer leaves no half of it behind.

        Args:
            what: what happened.
            at: when; now by default.
            details: fields of `Event`.
        """
        event = asdict(Event(what=what, at=now() if at is None else at, **details))
        line = {name: value for name, value in event.items() if value != _DEFAULTS.get(name)}
        append_line(self.path, dumps(line).encode())


class Reader:
    """The reading end: each call returns what was written since the one before."""

    def __init__(self, path: Path) -> None:
        self._reader = LineReader(path)
        self._lines = 0

    def news(self) -> list[Event]:
        """Return the lines that are complete and new, in their order, numbered from 1."""
        lines = self._reader.news()
        first = self._lines + 1
        self._lines += len(lines)
        return [_event(line, number) for number, line in enumerate(lines, start=first)]


def _event(line: bytes, number: int) -> Event:
    details = loads(line)
    return Event(**{**details, "what": What(details["what"]), "line": number})
