"""The one body of all contenders: it has one effect, in its own process or elsewhere, and says when."""

import os
import time
from collections.abc import Callable
from typing import Any, Final, Protocol
from uuid import uuid4

from benchmarks import provider
from benchmarks.chaos.arena import Arena, Journal, now
from benchmarks.chaos.history import What

__all__ = ["REQUEST_SECONDS", "Charge", "Effect", "about", "body_of", "charge_at_provider", "charge_by"]

#: How long a body waits for the provider: many times as long as a request takes, even on a busy machine.
REQUEST_SECONDS: Final = 5.0

#: The fields of an `Event` that say which run has it, and the value that is its own.
Effect = dict[str, Any]


class Charge(Protocol):
    """The body."""

    def __call__(self, task: Any, key: str, seconds: float, effect_seconds: float) -> str:
        """Have one effect after ``effect_seconds`` of about ``seconds``, and return a value that is the effect's own.

        Args:
            task: the bound task.
            key: its key.
            seconds: how long the body lasts; with a request to a provider up to that request longer.
            effect_seconds: from the start of the body to its effect.
        """


def body_of(arena: Arena) -> Charge:
    """Return the body whose effect is at the arena's provider, or a row in its database, or in its own process."""
    if arena.provider_url:
        return charge_at_provider(arena)
    if arena.database_url:
        from benchmarks.chaos import rows

        return charge_by(arena.journal, lambda _, effect: rows.write_at_once(arena.database_url, effect))
    return charge_by(arena.journal, lambda _, effect: arena.journal.append(What.EFFECT, **effect))


def charge_at_provider(arena: Arena, *, key_of: Callable[[Any], str | None] = lambda _: None) -> Charge:
    """Return the body that asks the arena's provider for its effect, which the provider writes down.

    Args:
        arena: has the provider.
        key_of: takes the bound task, and returns the key to pass to the provider.
    """

    def ask(task: Any, effect: Effect) -> str:
        key = key_of(task)
        made = provider.charge(arena.provider_url, effect["key"], effect, key=key, timeout_seconds=REQUEST_SECONDS)
        return str(made["value"])

    return charge_by(arena.journal, ask)


def charge_by(journal: Journal, have_effect: Callable[[Any, Effect], str | None]) -> Charge:
    """Return the body that has its effect by a function.

    Args:
        journal: tells when the body starts and ends; of the effect only the function tells.
        have_effect: takes the bound task and the effect; returns the value of an earlier one that counts instead, or
            None.
    """

    def charge(task: Any, key: str, seconds: float, effect_seconds: float) -> str:
        run, value = about(task, key), uuid4().hex[:12]
        journal.append(What.STARTED, worker=task.request.hostname, **run)
        over_at = now() + seconds
        time.sleep(effect_seconds)
        value = have_effect(task, {**run, "value": value}) or value
        time.sleep(max(over_at - now(), 0.0))
        journal.append(What.ENDED, value=value, **run)
        return value

    return charge


def about(task: Any, key: str) -> dict[str, Any]:
    """Return what names a run of a body, which begins now: the fields of its events."""
    return {"key": key, "run": uuid4().hex[:8], "task_id": task.request.id, "pid": os.getpid()}
