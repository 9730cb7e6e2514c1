"""This library: ``base=IdempotentTask`` with the key from the arguments and a lease of a few seconds."""

import os
from functools import cache
from typing import Any, Final

from celery import Celery

from benchmarks.chaos.arena import VARIABLE, Arena
from benchmarks.chaos.contenders.contender import Charge, Contender
from benchmarks.chaos.history import What
from benchmarks.chaos.journal import Journal
from idempotent_tasks import Idempotency, IdempotentTask, Store, events

__all__ = ["CONTENDER", "declare_on", "observe", "store_url"]

#: Seconds. A whole worker that is killed cannot release what its children held, so a waiting delivery takes over when
#: the lease ends; it is renewed when a third of it is over, so it also says how long a body may be starved.
LEASE_SECONDS: Final = 4.0
#: No body is to blame for its crashes here, so none is given up: the default counts five in a row.
MAX_CRASHES: Final = 1000

_LINES: Final = {
    events.Committed: What.COMMITTED,
    events.Deferred: What.DEFERRED,
    events.Replayed: What.REPLAYED,
    events.Lost: What.LOST_CLAIM,
}


def store_url(arena: Arena) -> str:
    """Return the URL of the contender's table."""
    return f"dynamodb://{arena.region}/{arena.table}?endpoint_url={arena.endpoint}"


def declare(app: Celery, arena: Arena, charge: Charge) -> None:
    """Register the task over the contender's table."""
    declare_on(store_url(arena), app, arena, charge)


def declare_on(store: str | Store, app: Celery, arena: Arena, charge: Charge) -> None:
    """Register the task over a store; `IdempotentTask` brings the late acknowledgement itself."""
    app.conf.update(idempotency_store=store, idempotency_observers=[events.log_event, observe])

    @app.task(
        name=arena.task_name,
        bind=True,
        base=IdempotentTask,
        shared=False,
        idempotency=Idempotency(key="key", lease=LEASE_SECONDS, max_crashes=MAX_CRASHES),
    )
    def run(self: Any, key: str, seconds: float, effect_seconds: float) -> str:
        return charge(self, key, seconds, effect_seconds)


def observe(event: events.Event) -> None:
    """Write down what the checker, or a reader of the journal, wants to know of the library's events."""
    what = _LINES.get(type(event))
    if what is not None:
        _journal().append(what, task_id=event.task_id, pid=os.getpid())


@cache
def _journal() -> Journal:
    return Arena.from_json(os.environ[VARIABLE]).journal


CONTENDER = Contender(name="ours", title="IdempotentTask", declare=declare, has_table=True)
