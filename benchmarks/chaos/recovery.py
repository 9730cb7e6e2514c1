"""How long a key waits after a kill: from the kill to the next start of its body. Pure."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import ceil

from benchmarks.chaos.history import Event, History, Run, What

__all__ = ["Recovery", "Spread", "recoveries", "spread"]


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
    """Return the recovery from every kill that left a key with nobody at work on it and no outcome."""
    history = History(events)
    answered = {event.key for event in history.of(What.RESULT) if event.state == "SUCCESS"}
    found = []
    for key, runs in history.runs.items():
        for run in runs:
            blow = run.killed
            if blow is not None and blow.what is What.KILLED and _unattended(run, blow.at, runs):
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
