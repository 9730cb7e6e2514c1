"""The body that an outage finds at work, and what it and the library say of it."""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from uuid import uuid4

from celery import Celery

from benchmarks import provider
from idempotent_tasks import Done, Idempotency, IdempotentTask, NotDone, Record
from idempotent_tasks.events import Event
from tests.testbed.journal import append_line
from tests.testbed.workers import WorkerConfig

__all__ = ["BEGAN", "GUARDED", "RECOVER", "WAYS", "Place", "build_app"]

#: The tasks: one runs its body again, one asks the provider before.
GUARDED: Final = "guarded"
RECOVER: Final = "recover"
WAYS: Final = (GUARDED, RECOVER)
#: Beside the names of events, what a body says when it begins.
BEGAN: Final = "began"


@dataclass(frozen=True, kw_only=True)
class Place(WorkerConfig):
    """All that the worker process must know."""

    redis_url: str
    queue: str
    store_url: str
    #: Where bodies say that they begin, and the library what becomes of their outcomes.
    journal: str
    provider_url: str
    lease_seconds: float
    body_seconds: float
    #: For how long a request of a run may still be on its way when ``recover`` is called.
    settle_seconds: float

    def claim_seconds(self, way: str) -> float:
        """Return how long a claim of a task lives that is not renewed."""
        return self.lease_seconds + (self.settle_seconds if way == RECOVER else 0.0)


def build_app(place: Place) -> Celery:
    """Return the app; the command publishes with it, the worker runs it."""
    app = Celery("outage", broker=place.redis_url, backend=place.redis_url)

    def observe(event: Event) -> None:
        kept = getattr(event, "kept", False)
        append_line(Path(place.journal), {"what": type(event).__name__, "key": event.key, "kept": kept})

    app.conf.update(
        idempotency_store=place.store_url,
        idempotency_observers=[observe],
        task_default_queue=place.queue,
        worker_prefetch_multiplier=1,
    )

    def charge(order: str) -> str:
        append_line(Path(place.journal), {"what": BEGAN, "key": order})
        over_at = time.monotonic() + place.body_seconds
        asked = {"value": uuid4().hex}
        made = provider.charge(place.provider_url, order, asked, timeout_seconds=place.settle_seconds)
        time.sleep(max(over_at - time.monotonic(), 0.0))
        return str(made["value"])

    def find(_: Record, order: str) -> Done | NotDone:
        charges = provider.ask(place.provider_url, order)
        return Done(charges[0]["value"]) if charges else NotDone()

    guarded = Idempotency(key="order", lease=place.lease_seconds)
    recovering = Idempotency(key="order", lease=place.lease_seconds, recover=find, settle=place.settle_seconds)

    @app.task(name=GUARDED, shared=False, base=IdempotentTask, idempotency=guarded)
    def run_again(order: str) -> str:
        return charge(order)

    @app.task(name=RECOVER, shared=False, base=IdempotentTask, idempotency=recovering)
    def ask_first(order: str) -> str:
        return charge(order)

    return app
