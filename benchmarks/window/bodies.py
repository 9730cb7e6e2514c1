"""Three bodies of the same length, each with one effect; they differ in where the effect is and who recognises it."""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final
from urllib.request import Request, urlopen

from celery import Celery

from benchmarks.window.provider import KEY_HEADER
from idempotent_tasks import Idempotency, IdempotentTask
from tests.testbed.journal import append_line
from tests.testbed.workers import WorkerConfig

__all__ = ["LOCAL_LAST", "REMOTE", "REMOTE_WITH_KEY", "Place", "build_app"]

REMOTE: Final = "charge at a provider"
REMOTE_WITH_KEY: Final = "the same, the key passed to the provider"
LOCAL_LAST: Final = "a line written to a file, last in the body"


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


@contextmanager
def _noted(place: Place) -> Iterator[None]:
    """Write into the journal when a body begins and ends; a killed one does not end."""
    append_line(Path(place.journal), {"pid": os.getpid(), "runs": True})
    yield
    append_line(Path(place.journal), {"pid": os.getpid(), "runs": False})


def build_app(place: Place) -> Celery:
    """Return the app; the command publishes with it, the worker runs it."""
    app = Celery("window", broker=place.redis_url, backend=place.redis_url)
    app.conf.update(
        idempotency_store=place.store_url,
        task_time_limit=30,
        task_default_queue=place.queue,
        worker_prefetch_multiplier=1,
    )
    task = partial(app.task, shared=False, base=IdempotentTask, idempotency=Idempotency(key="order"))

    def charge(order: str, headers: dict[str, str]) -> None:
        request = Request(f"{place.provider_url}/{order}", method="POST", headers=headers)  # noqa: S310 (our own URL)
        with _noted(place), urlopen(request):  # noqa: S310
            pass

    @task(name=REMOTE)
    def remote(order: str) -> None:
        charge(order, {})

    keyed = Idempotency(key="order", downstream="['charge', order]")

    @task(name=REMOTE_WITH_KEY, bind=True, idempotency=keyed)
    def remote_with_key(self: IdempotentTask, order: str) -> None:
        charge(order, {KEY_HEADER: str(self.idempotency.downstream_key)})

    @task(name=LOCAL_LAST)
    def local_last(order: str) -> None:
        with _noted(place):
            time.sleep(place.body_seconds)
            append_line(Path(place.ledger), {"order": order})

    return app
