"""One contender's history in numbers, for the table, the JSON file and the documents. Pure."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from math import ceil
from types import MappingProxyType
from typing import Any, Final

from benchmarks.chaos.checker import ONE_EFFECT, Finding, Kind, check
from benchmarks.chaos.history import Event, History, Run, What

__all__ = ["PROMISES", "RECOVERY", "Figures", "Recovery", "Spread", "figures_of", "recoveries", "spread"]


#: Of a body with one effect.
_NO_STEPS: Final[Mapping[str, tuple[Kind, ...]]] = MappingProxyType({})


@dataclass(frozen=True, kw_only=True, slots=True)
class Recovery:
    """One run that was killed, and the next start of its key."""

    key: str
    #: The journal's line of the kill.
    line: int
    whole_worker: bool
    #: From the kill to the next start; None where the key was never started again, though it had no outcome.
    seconds: float | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Spread:
    """Recoveries in numbers; seconds, or None where there are none."""

    count: int
    #: How many keys were never started again.
    never: int
    median: float | None
    p95: float | None


def recoveries(events: Iterable[Event]) -> list[Recovery]:
    """Return the recovery from every kill that left a key with nobody at work on it and no outcome.

    Keys that an operator resolved are left out.
    """
    history = History(events)
    answered = {event.key for event in history.of(What.RESULT) if event.state == "SUCCESS"}
    resolved = {event.key for event in history.of(What.RESOLVED)}
    found = []
    for key, runs in history.runs.items():
        for run in runs if key not in resolved else ():
            blow = run.killed
            if blow is not None and blow.what is not What.EXITED and _unattended(run, blow.at, runs):
                recovery = _recovery(key, blow, runs)
                # Without a next start it was killed in the instant after its outcome was stored.
                if recovery.seconds is not None or key not in answered:
                    found.append(recovery)
    return sorted(found, key=lambda recovery: recovery.line)


def _unattended(run: Run, at: float, runs: Sequence[Run]) -> bool:
    """Return whether at this time nobody but this run was at work on the key, and the key had no outcome."""
    others = [other for other in runs if other is not run]
    done = any(other.settled is not None and other.settled.at <= at for other in others)
    return not done and not any(other.alive_at(at) for other in others)


def _recovery(key: str, blow: Event, runs: Sequence[Run]) -> Recovery:
    next_start = min((run.started.at for run in runs if run.started.at > blow.at), default=None)
    seconds = None if next_start is None else next_start - blow.at
    return Recovery(key=key, line=blow.line, whole_worker=not blow.pid, seconds=seconds)


def spread(found: Iterable[Recovery]) -> Spread:
    """Return recoveries in numbers."""
    found = list(found)
    seconds = sorted(each.seconds for each in found if each.seconds is not None)
    return Spread(
        count=len(seconds),
        never=len(found) - len(seconds),
        median=_quantile(seconds, 0.5),
        p95=_quantile(seconds, 0.95),
    )


def _quantile(ordered: Sequence[float], part: float) -> float | None:
    """Return the nearest-rank quantile."""
    return ordered[max(0, ceil(part * len(ordered)) - 1)] if ordered else None


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
    #: What it must prevent beyond what a guard could.
    prevents: tuple[Kind, ...]
    #: Of several effects of a body, by name: what it must prevent of each.
    steps: Mapping[str, tuple[Kind, ...]]
    counts: dict[str, int]
    findings: tuple[Finding, ...]
    recoveries: tuple[Recovery, ...]

    @property
    def broken(self) -> list[Finding]:
        """The findings that a guard could have prevented, or this one has a tool against."""
        return [
            each
            for each in self.findings
            if each.kind.breaks_promise or each.kind in self.steps.get(each.step, self.prevents)
        ]

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
        counts = (
            self.counts[name] for name in ("by_plain_steps", "by_zombies", "recovered", "parked", "resolved", "runs")
        )
        return [self.title, *(str(self.count(kind)) for kind in (*kinds, *excused)), *map(str, counts)]

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
        return {
            **asdict(self),
            "tally": tally,
            "recovery_seconds": spreads,
            "broken": len(self.broken),
        }


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
    "(of these: plain steps)",
    "by zombies",
    "recovered",
    "parked",
    "resolved",
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
    prevents: tuple[Kind, ...],
    steps: Mapping[str, tuple[Kind, ...]] = _NO_STEPS,
    forgetful: bool,
    settled: bool,
    seconds: float,
    missed: int,
) -> Figures:
    """Judge one contender's events; see `check` for ``forgetful``."""
    findings = check(events, keys, forgetful=forgetful, steps=tuple(steps) or ONE_EFFECT)
    return Figures(
        name=name,
        title=title,
        settled=settled,
        seconds=round(seconds, 1),
        missed=missed,
        prevents=prevents,
        steps=dict(steps),
        counts=_counts(events) | {"by_plain_steps": sum(steps.get(each.step) == () for each in findings)},
        findings=tuple(findings),
        recoveries=tuple(recoveries(events)),
    )


def _counts(events: Sequence[Event]) -> dict[str, int]:
    tally = Counter(event.what for event in events)
    key_of = {event.task_id: event.key for event in events if event.what is What.PUBLISHED}
    blows = [event for event in events if event.what in (What.KILLED, What.PAUSED)]
    return {
        "published": tally[What.PUBLISHED],
        "dropped": tally[What.DROPPED],
        "runs": tally[What.STARTED],
        "effects": tally[What.EFFECT] + tally[What.CHARGED],
        "by_zombies": _by_zombies(History(events), key_of),
        "parked": len({key_of.get(event.task_id) for event in events if event.what is What.PARKED}),
        "resolved": len({event.key for event in events if event.what is What.RESOLVED}),
        "resolved_done": sum(event.what is What.RESOLVED and event.state == "done" for event in events),
        "recovered": sum(event.what is What.RECOVERED and event.state == "done" for event in events),
        "claims": tally[What.CLAIMED],
        "deferrals": tally[What.DEFERRED],
        "replays": tally[What.REPLAYED],
        "lost_claims": tally[What.LOST_CLAIM],
        "children_killed": sum(event.what is What.KILLED and bool(event.pid) for event in blows),
        "workers_killed": sum(event.what is What.KILLED and not event.pid for event in blows),
        "children_paused": sum(event.what is What.PAUSED and bool(event.pid) for event in blows),
        "workers_paused": sum(event.what is What.PAUSED and not event.pid for event in blows),
        "workers_exited": tally[What.EXITED],
    }


def _by_zombies(history: History, key_of: Mapping[str, str]) -> int:
    """Return how many effects are of runs whose key another delivery claimed before their outcome was safe."""
    claims = [(key_of.get(event.task_id), event) for event in history.of(What.CLAIMED)]
    return sum(
        any(
            key == run.key
            and (event.pid, event.task_id) != (run.started.pid, run.started.task_id)
            and run.started.at <= event.at < run.unsafe_until
            for key, event in claims
        )
        for run in history.all_runs()
        if run.effects
    )


def _cells(part: Spread) -> list[str]:
    never = f" + {part.never} never" if part.never else ""
    return [*("-" if each is None else f"{each:.1f}" for each in (part.median, part.p95)), f"{part.count}{never}"]
