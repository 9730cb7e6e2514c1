"""The report of a run: one table for the documents, and everything as JSON."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any, Final

from benchmarks.day.fleet import SIZES, Load, Rules, Tally
from benchmarks.day.partition import Partition

__all__ = ["Played", "as_json", "markdown", "size_table"]

#: Each measure, and how it is written.
ROWS: Final = {
    "hot keys": ",.0f",
    "duplicates": ",.0f",
    "throttled tries of requests for hot keys": ".3%",
    "throttled first runs of other keys": ".3%",
    "deliveries a duplicate": ".2f",
    "requests a duplicate": ".2f",
    "median wait, s": ".2f",
    "99th of 100 waits, s": ".2f",
    "longest wait, s": ".1f",
    "longest commit, s": ".2f",
    "deferrals without a request": ",.0f",
    "claims without an answer": ",.0f",
    "copies let go": ",.0f",
    "bodies run again": ",.0f",
    "messages without a result": ",.0f",
    "write units of hot keys": ",.0f",
    "million write units a day, hot keys of the table": ",.1f",
    "million write units a day, the table": ",.1f",
    "USD a day, the table": ",.0f",
}

#: The same, of the keys with so many duplicates.
SIZE_COLUMNS: Final = {
    "hot keys": ",.0f",
    "throttled tries": ".2%",
    "requests a duplicate": ".2f",
    "median wait, s": ".2f",
    "longest wait, s": ".1f",
    "longest commit, s": ".2f",
}


@dataclass(frozen=True, kw_only=True)
class Played:
    """One run, and what it stands for."""

    rules: Rules
    load: Load
    #: By the number of duplicates; see `SIZES`.
    tallies: Sequence[Tally]
    partition: Partition
    #: How many such partitions the table has.
    partitions: int
    #: First runs of other keys in a whole day that was played; None for another time, whose costs are not a day's.
    others_a_day: float | None
    #: USD for a million write units.
    price: float

    @property
    def title(self) -> str:
        """The rules, in a word or two."""
        on = [name for name, value in asdict(self.rules).items() if value]
        return " and ".join(on) or "neither"

    def measures(self) -> dict[str, float]:
        """Return the measures of `ROWS`; those of a day only if a day was played."""
        tally = Tally.sum(self.tallies)
        duplicates, waits = max(tally.messages - tally.keys, 1), sorted(tally.waits) or [0.0]
        values = (
            tally.keys,
            tally.messages - tally.keys,
            tally.throttled / max(tally.requests, 1),
            self.partition.other_throttled / max(self.partition.other_writes, 1),
            (tally.deliveries - tally.keys) / duplicates,
            (tally.requests - 2 * tally.keys) / duplicates,
            waits[len(waits) // 2],
            waits[len(waits) * 99 // 100],
            waits[-1],
            max(tally.commits, default=0.0),
            tally.known,
            tally.unanswered,
            tally.woken,
            tally.bodies - tally.keys,
            tally.messages - tally.results,
            tally.units,
            *self._a_day(tally),
        )
        return dict(zip(ROWS, values, strict=False))

    def _a_day(self, tally: Tally) -> tuple[float, ...]:
        if self.others_a_day is None:
            return ()
        hot = tally.units * self.partitions / 1e6
        others = self.others_a_day * (1 + self.load.finished_units) * self.partitions / 1e6
        return hot, hot + others, (hot + others) * self.price

    def sizes(self) -> list[dict[str, float]]:
        """Return the measures of `SIZE_COLUMNS` of the keys of each size."""
        rows = []
        for tally in self.tallies:
            waits = sorted(tally.waits) or [0.0]
            values = (
                tally.keys,
                tally.throttled / max(tally.requests, 1),
                (tally.requests - 2 * tally.keys) / max(tally.messages - tally.keys, 1),
                waits[len(waits) // 2],
                waits[-1],
                max(tally.commits, default=0.0),
            )
            rows.append(dict(zip(SIZE_COLUMNS, values, strict=True)))
        return rows


def size_table(run: Played) -> str:
    """Return the table of a run with a row for the keys of each size."""
    names = (
        f"below {SIZES[0]:,}",
        *(f"{low:,} to {high - 1:,}" for low, high in pairwise(SIZES)),
        f"{SIZES[-1]:,} or more",
    )
    lines = [
        f"| {run.title}: duplicates of a key | {' | '.join(SIZE_COLUMNS)} |",
        f"|---|{'---:|' * len(SIZE_COLUMNS)}",
    ]
    for name, row in zip(names, run.sizes(), strict=True):
        lines.append(f"| {name} | {' | '.join(format(row[each], form) for each, form in SIZE_COLUMNS.items())} |")
    return "\n".join(lines)


def markdown(runs: Sequence[Played]) -> str:
    """Return the table, with a column for each run."""
    columns = [run.measures() for run in runs]
    lines = [f"| | {' | '.join(run.title for run in runs)} |", f"|---|{'---:|' * len(runs)}"]
    for name, form in ROWS.items():
        if name in columns[0]:
            lines.append(f"| {name} | {' | '.join(format(column[name], form) for column in columns)} |")
    return "\n".join(lines)


def as_json(options: Mapping[str, Any], runs: Sequence[Played]) -> str:
    """Return the options and each run's measures."""
    whole = {
        "options": options,
        "runs": [
            {"rules": asdict(run.rules), "load": asdict(run.load), "measures": run.measures(), "sizes": run.sizes()}
            for run in runs
        ],
    }
    return json.dumps(whole, indent=1) + "\n"
