"""Several chaos runs as the tables of `docs/chaos.md`: ``python -m benchmarks.summary run1.json run2.json ...``.

Runs of one broker, pool and kind of trouble are one row group: each count is shown run by run, recoveries are pooled.
"""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from benchmarks.chaos.recovery import Recovery, spread

__all__ = ["tables"]

#: The columns, by the tally's names.
COLUMNS: Final = {
    "duplicated": "duplicated",
    "lost": "lost",
    "overlap": "overlaps",
    "conflict": "conflicts",
    "unanswered": "no answer",
    "vanished": "(lost by the broker)",
    "limit": "(limit)",
    "zombie_run": "(zombie runs)",
    "zombie_effect": "(zombie effects)",
}
#: What only a storm with pauses shows.
PAUSED_ONLY: Final = ("zombie_run", "zombie_effect")

Run = dict[str, Any]


def tables(runs: list[Run]) -> Iterator[str]:
    """Yield a table for each broker, pool and kind of trouble, in the order of the runs."""
    for about in dict.fromkeys(map(_about, runs)):
        same = [run for run in runs if _about(run) == about]
        seeds = ", ".join(str(run["seed"]) for run in same)
        columns = {tally: name for tally, name in COLUMNS.items() if tally not in PAUSED_ONLY or "pause" in about}
        recovery = "recovery, s: median / p95 (n)"
        yield f"| {about}; seed {seeds} | " + " | ".join([*columns.values(), recovery]) + " |"
        yield "|---|" + "---:|" * (len(columns) + 1)
        for index, contender in enumerate(same[0]["contenders"]):
            each = [run["contenders"][index] for run in same]
            counts = [", ".join(str(one["tally"][tally]) for one in each) for tally in columns]
            yield f"| {contender['title']} | " + " | ".join([*counts, _recovery(each)]) + " |"
        yield ""


def _about(run: Run) -> str:
    return ", ".join([run["broker"], run["pool"], *run["extras"]])


def _recovery(contenders: list[Run]) -> str:
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
    for line in tables([json.loads(Path(name).read_text()) for name in sys.argv[1:]]):
        print(line)  # noqa: T201 - what it is for
