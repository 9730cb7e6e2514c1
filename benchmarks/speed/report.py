"""The report of one run: tables for the terminal and the documents, and everything as JSON."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

from rich.console import Console
from rich.table import Table

from benchmarks.speed.machine import summary
from benchmarks.speed.rows import Row, judge, number

__all__ = ["Report"]

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
