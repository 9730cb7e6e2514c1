"""One contender's history in numbers, for the table, the JSON file and the documents. Pure."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from benchmarks.chaos.checker import Finding, Kind, check
from benchmarks.chaos.history import Event, What
from benchmarks.chaos.recovery import Recovery, Spread, recoveries, spread

__all__ = ["PROMISES", "RECOVERY", "Figures", "figures_of"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Figures:
    """What became of one contender."""

    name: str
    title: str
    #: Whether it came to rest before the time was over; and after how many seconds.
    settled: bool
    seconds: float
    #: Blows that found no victim.
    missed: int
    counts: dict[str, int]
    findings: tuple[Finding, ...]
    recoveries: tuple[Recovery, ...]

    @property
    def broken(self) -> list[Finding]:
        """The findings that a guard could have prevented."""
        return [finding for finding in self.findings if finding.kind.breaks_promise]

    def count(self, kind: Kind) -> int:
        """Return how many findings of a kind there are."""
        return sum(finding.kind is kind for finding in self.findings)

    def spread(self, *, whole_worker: bool | None = None) -> Spread:
        """Return the recoveries from killed children, or whole workers, or both."""
        return spread(each for each in self.recoveries if whole_worker in (None, each.whole_worker))

    def promises(self) -> list[str]:
        """Return the cells under `PROMISES`."""
        kinds = (Kind.DUPLICATED, Kind.LOST, Kind.OVERLAP, Kind.CONFLICT, Kind.UNANSWERED)
        excused = (Kind.VANISHED, Kind.LIMIT, Kind.ZOMBIE_RUN, Kind.ZOMBIE_EFFECT)
        return [self.title, *(str(self.count(kind)) for kind in (*kinds, *excused)), str(self.counts["runs"])]

    def recovery(self) -> list[str]:
        """Return the cells under `RECOVERY`."""
        kills = f"{self.counts['children_killed']} + {self.counts['workers_killed']}"
        parts = (self.spread(whole_worker=False), self.spread(whole_worker=True), self.spread())
        return [self.title, kills, *(cell for part in parts for cell in _cells(part))]

    def as_json(self) -> dict[str, Any]:
        """Return everything, ready for JSON."""
        spreads = {
            "child": asdict(self.spread(whole_worker=False)),
            "worker": asdict(self.spread(whole_worker=True)),
            "all": asdict(self.spread()),
        }
        tally = {kind.name.lower(): self.count(kind) for kind in Kind}
        return {**asdict(self), "tally": tally, "recovery_seconds": spreads, "broken": len(self.broken)}


#: The heads of the two tables; the README says what each column holds.
PROMISES = (
    "contender",
    "duplicated",
    "lost",
    "overlaps",
    "conflicts",
    "no answer",
    "(lost by the broker)",
    "(limit)",
    "(zombie runs)",
    "(zombie effects)",
    "runs",
)
RECOVERY = (
    "from the kill to the next start, s",
    "kills",
    "child median",
    "p95",
    "n",
    "worker median",
    "p95",
    "n",
    "all median",
    "p95",
    "n",
)


def figures_of(
    name: str,
    title: str,
    events: Sequence[Event],
    keys: Sequence[str],
    *,
    forgetful: bool,
    settled: bool,
    seconds: float,
    missed: int,
) -> Figures:
    """Judge one contender's events; see `check` for ``forgetful``."""
    tally = Counter(event.what for event in events)
    blows = [event for event in events if event.what in (What.KILLED, What.PAUSED)]
    counts = {
        "published": tally[What.PUBLISHED],
        "dropped": tally[What.DROPPED],
        "runs": tally[What.STARTED],
        "effects": tally[What.EFFECT],
        "deferrals": tally[What.DEFERRED],
        "replays": tally[What.REPLAYED],
        "lost_claims": tally[What.LOST_CLAIM],
        "children_killed": sum(event.what is What.KILLED and bool(event.pid) for event in blows),
        "workers_killed": sum(event.what is What.KILLED and not event.pid for event in blows),
        "children_paused": sum(event.what is What.PAUSED and bool(event.pid) for event in blows),
        "workers_paused": sum(event.what is What.PAUSED and not event.pid for event in blows),
        "workers_exited": tally[What.EXITED],
    }
    return Figures(
        name=name,
        title=title,
        settled=settled,
        seconds=round(seconds, 1),
        missed=missed,
        counts=counts,
        findings=tuple(check(events, keys, forgetful=forgetful)),
        recoveries=tuple(recoveries(events)),
    )


def _cells(part: Spread) -> list[str]:
    never = f" + {part.never} never" if part.never else ""
    return [*("-" if each is None else f"{each:.1f}" for each in (part.median, part.p95)), f"{part.count}{never}"]
