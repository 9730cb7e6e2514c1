"""A body of five effects, each by a tool of its own; four of them are steps, whose outcomes later runs take."""

import time
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, Final
from uuid import uuid4

from benchmarks import provider
from benchmarks.chaos.arena import Arena
from benchmarks.chaos.charges import REQUEST_SECONDS, Effect, about
from benchmarks.chaos.checker import Kind
from benchmarks.chaos.history import What
from idempotent_tasks import Atomic, Done, NotDone, Record

__all__ = ["STEPS", "charge_in_steps"]

#: The effects, in order, with what the tool of each prevents: a provider that takes keys, one that is asked, a row
#: with a receipt, nothing, and an item that is put in the transaction of the record.
STEPS: Final[Mapping[str, tuple[Kind, ...]]] = MappingProxyType(
    {
        "key": (Kind.LIMIT, Kind.ZOMBIE_EFFECT),
        "ask": (Kind.LIMIT,),
        "row": (Kind.LIMIT, Kind.ZOMBIE_EFFECT),
        "plain": (),
        "item": (Kind.LIMIT, Kind.ZOMBIE_EFFECT),
    }
)


def charge_in_steps(arena: Arena) -> Callable[[Any, str, float, float], Atomic]:
    """Return the body; its effects are spread over its time, and its value is made of theirs.

    A run that is ended in a step tells that, too: it has no value.
    """

    def charge(task: Any, key: str, seconds: float, _: float) -> Atomic:
        run, value = about(task, key), ""
        arena.journal.append(What.STARTED, worker=task.request.hostname, **run)
        try:
            made = _Made(arena, task, run, seconds / len(STEPS))
            values = made.values()
            value = "-".join(values)
        finally:
            arena.journal.append(What.ENDED, value=value, **run)
        return Atomic(value, made.writes)

    return charge


class _Made:
    """The effects of one run."""

    def __init__(self, arena: Arena, task: Any, run: Effect, seconds: float) -> None:
        self.arena, self.task, self.run = arena, task, run
        #: What an effect takes.
        self.seconds = seconds
        self.writes: list[dict[str, Any]] = []

    def values(self) -> list[str]:
        """Have each effect, unless an earlier run has had it; return the value of each."""
        from benchmarks.chaos import rows
        from idempotent_tasks.receipts.sqlalchemy import SQLAlchemyReceipts

        idempotency = self.task.idempotency
        receipts = SQLAlchemyReceipts(rows.engine_of(self.arena.database_url))

        def find(_: Record) -> Done | NotDone:
            charges = provider.ask(self.arena.provider_url, self._order("ask"))
            return Done(charges[0]["value"]) if charges else NotDone()

        def write(effect: Effect) -> None:
            rows.write(idempotency.session, effect)

        step = idempotency.step
        return [
            step("key", lambda: self._have("key", lambda effect: self._charge(effect, idempotency.step_key("key")))),
            step.options(recover=find)("ask", lambda: self._have("ask", self._charge)),
            step.options(receipts=receipts)("row", lambda: self._have("row", write)),
            step("plain", lambda: self._have("plain", lambda effect: self.arena.journal.append(What.EFFECT, **effect))),
            self._have("item", lambda effect: self.writes.append(rows.item_of(self.arena.items, effect))),
        ]

    def _have(self, name: str, have_effect: Callable[[Effect], str | None]) -> str:
        """Have an effect in the middle of its time; return the value that counts."""
        value = uuid4().hex[:12]
        time.sleep(self.seconds / 2)
        value = have_effect({**self.run, "step": name, "value": value}) or value
        time.sleep(self.seconds / 2)
        return value

    def _charge(self, effect: Effect, key: str | None = None) -> str:
        order = self._order(effect["step"])
        url = self.arena.provider_url
        return str(provider.charge(url, order, effect, key=key, timeout_seconds=REQUEST_SECONDS)["value"])

    def _order(self, step: str) -> str:
        return f"{self.run['key']} {step}"
