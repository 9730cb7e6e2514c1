"""Bodies of the same length, each with one effect; they differ in where it is and in what prevents a second."""

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final
from uuid import uuid4

from celery import Celery

from benchmarks import provider
from idempotent_tasks import Done, Idempotency, IdempotentTask, NotDone, Record
from tests.testbed.journal import append_line
from tests.testbed.workers import WorkerConfig

__all__ = ["CLOSED", "GUARDED", "KEY", "LOCAL_LAST", "PARK", "PLAIN", "RECOVER", "WAYS", "Place", "build_app"]

PLAIN: Final = "plain"
GUARDED: Final = "guarded"
KEY: Final = "key"
RECOVER: Final = "recover"
PARK: Final = "park"
LOCAL_LAST: Final = "local"

#: The tasks, by name, with what the report calls each.
WAYS: Final = {
    PLAIN: "plain Celery, charge at a provider",
    GUARDED: "`IdempotentTask`, charge at a provider",
    KEY: "the same, the key passed to the provider",
    RECOVER: "the same, `recover` asks the provider",
    PARK: '`on_rerun="park"`',
    LOCAL_LAST: "`IdempotentTask`, a line written to a file, last in the body",
}
#: Those that must repeat no charge.
CLOSED: Final = (KEY, RECOVER, PARK)


@dataclass(frozen=True, kw_only=True)
class Place(WorkerConfig):
    """All that the worker process must know."""

    redis_url: str
    queue: str
    store_url: str
    provider_url: str
    #: Where bodies say that they begin and end.
    journal: str
    #: The file that a local effect is written to.
    ledger: str
    body_seconds: float
    #: For how long a body waits for the provider, and for how long ``recover`` lets its request arrive.
    timeout_seconds: float
    settle_seconds: float


@contextmanager
def _noted(place: Place) -> Iterator[None]:
    """Write into the journal when a body begins and ends, and whether it raised; a killed one does not end."""
    append_line(Path(place.journal), {"pid": os.getpid(), "runs": True})
    raised = True
    try:
        yield
        raised = False
    finally:
        append_line(Path(place.journal), {"pid": os.getpid(), "runs": False, "raised": raised})


def build_app(place: Place) -> Celery:
    """Return the app; the command publishes with it, the worker runs it."""
    app = Celery("window", broker=place.redis_url, backend=place.redis_url)
    app.conf.update(
        idempotency_store=place.store_url,
        task_time_limit=30,
        task_default_queue=place.queue,
        worker_prefetch_multiplier=1,
    )

    def charge(order: str, key: str | None = None) -> str:
        asked = {"value": uuid4().hex}
        with _noted(place):
            made = provider.charge(place.provider_url, order, asked, key=key, timeout_seconds=place.timeout_seconds)
        return str(made["value"])

    def find(_: Record, order: str) -> Done | NotDone:
        charges = provider.ask(place.provider_url, order)
        return Done(charges[0]["value"]) if charges else NotDone()

    # A time-out is an OSError, and the charge may be made.
    retried = partial(app.task, shared=False, autoretry_for=(OSError,), default_retry_delay=0)
    guarded = partial(retried, base=IdempotentTask)
    retried(name=PLAIN, acks_late=True, reject_on_worker_lost=True)(_named(charge))
    guarded(name=GUARDED, idempotency=Idempotency(key="order"))(_named(charge))
    recover = Idempotency(key="order", recover=find, settle=place.settle_seconds)
    guarded(name=RECOVER, idempotency=recover)(_named(charge))
    guarded(name=PARK, idempotency=Idempotency(key="order", on_rerun="park"))(_named(charge))

    @guarded(name=KEY, bind=True, idempotency=Idempotency(key="order", downstream="['charge', order]"))
    def with_key(self: Any, order: str) -> str:
        return charge(order, self.idempotency.downstream_key)

    @guarded(name=LOCAL_LAST, idempotency=Idempotency(key="order"))
    def local_last(order: str) -> None:
        with _noted(place):
            time.sleep(place.body_seconds)
            append_line(Path(place.ledger), {"order": order})

    return app


def _named(charge: Callable[[str], str]) -> Callable[[str], str]:
    """Return a body of its own around a charge: each task needs one."""

    def body(order: str) -> str:
        return charge(order)

    return body
