"""``recover`` of the integration tests: the journal is the books of the provider that is asked."""

from functools import cache
from typing import Any

from idempotent_tasks import Done, NotDone, Record
from tests.support.app import AppConfig
from tests.testbed.journal import Journal

__all__ = ["ask", "find_step", "refuse"]


def ask(record: Record, order: str, value: Any = None) -> Done | NotDone:
    """Look whether the order's effect was made."""
    journal = _journal()
    journal.write("asked", key=order, runs=record.runs)
    journal.pass_gate("asking")
    return Done(value) if journal.count("effect", key=order) else NotDone()


def find_step(_: Record, name: str) -> Done | NotDone:
    """Look whether a step's effect was made, and by which process."""
    _journal().write("asked", step=name)
    made = _journal().entries(name)
    return Done(made[0]["pid"]) if made else NotDone()


def refuse(record: Record, order: str, value: Any = None) -> Done:
    """Get no answer."""
    _journal().write("asked", key=order, runs=record.runs)
    raise ConnectionError("the provider is away")


@cache
def _journal() -> Journal:
    return AppConfig.of_this_process().journal
