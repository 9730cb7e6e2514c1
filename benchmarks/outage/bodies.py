"""The body that an outage finds at work, and what it and the library say of it."""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from celery import Celery

from idempotent_tasks import Idempotency, IdempotentTask
from idempotent_tasks.events import Event
from tests.testbed.journal import append_line
from tests.testbed.workers import WorkerConfig

__all__ = ["BEGAN", "CHARGE", "Place", "build_app"]

CHARGE: Final = "charge"
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
    lease_seconds: float
    body_seconds: float


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
    policy = Idempotency(key="order", lease=place.lease_seconds)

    @app.task(name=CHARGE, shared=False, base=IdempotentTask, idempotency=policy)
    def charge(order: str) -> None:
        append_line(Path(place.journal), {"what": BEGAN, "key": order})
        time.sleep(place.body_seconds)

    return app
