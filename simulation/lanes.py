"""A history for a person to read: one lane for each process, one line for each thing that happened."""

from typing import Any, Final

import click

from simulation.checker import check
from simulation.history import Entry, History

__all__ = ["print_history"]

#: Details that say where an entry belongs, or that its kind says already.
_HIDDEN: Final = frozenset({"item", "plan", "level", "worker", "task", "by", "process", "key", "lock", "owner"})
_WIDTH: Final = 44


def print_history(history: History) -> None:
    """Print what happened, with what it violates beside the moment at which that shows."""
    processes = list(dict.fromkeys(filter(None, map(_process, history.entries))))
    violations = check(history)
    click.echo(f"seed {history.seed}, task {history.task!r}, lanes: " + ", ".join(processes))
    for entry in history.entries:
        while violations and violations[0].at <= entry.at:
            click.echo(f"{'':9} >>> {violations[0].invariant}: {violations.pop(0).what}")
        lane = processes.index(found) if (found := _process(entry)) else 0
        click.echo(f"{entry.at:9.3f} " + " " * (lane * _WIDTH // 2) + _text(entry))
    for violation in violations:
        click.echo(f"{'':9} >>> {violation.invariant}: {violation.what}")


def _process(entry: Entry) -> str | None:
    found: Any = entry.details.get("process") or entry.details.get("by")
    return None if found is None else str(found)


def _text(entry: Entry) -> str:
    if entry.kind == "written":
        item = entry.details["item"] or {}
        shown = {name: next(iter(item[name].values())) for name in ("status", "owner", "fence") if name in item}
        return f"wrote {entry.details['key'][:24]} " + " ".join(
            f"{name}={str(each)[:13]}" for name, each in shown.items()
        )
    shown = {name: each for name, each in entry.details.items() if name not in _HIDDEN and each is not None}
    return f"{entry.kind} " + " ".join(f"{name}={each}" for name, each in shown.items())
