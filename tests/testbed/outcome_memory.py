"""A process's memory of outcomes that is full, and what it takes."""

import gc
import tracemalloc
from uuid import uuid4

from idempotent_tasks.core.clock import SystemClock
from idempotent_tasks.core.records import Record, Status
from idempotent_tasks.stores.cache import OutcomeCache

__all__ = ["remember_ten_thousand"]


def remember_ten_thousand() -> tuple[int, int]:
    """Fill a cache half as often again as it holds, and return how many it keeps and how many bytes they take."""
    clock = SystemClock()
    now = int(clock.now())
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    cache = OutcomeCache(clock, most=10_000, most_bytes=20_000_000)
    for number in range(15_000):
        cache.remember(full_record(number, now), 600)
    gc.collect()
    return len(cache), tracemalloc.get_traced_memory()[0] - before


def full_record(number: int, now: int) -> Record:
    """Return a record that has everything a record can have, and 1 KB of data of its own."""
    return Record(
        key=f"shop.charge#{number:064}",
        status=Status.COMPLETED,
        expiration=now + 3600,
        in_progress_expiration=now * 1000 + number,
        data=f"{number:01024}",
        validation=f"{number:064}",
        owner=uuid4().hex,
        fence=now * 1000 + number,
        task=b"shop.charge".decode(),
        task_id=str(uuid4()),
        worker=f"celery@host-{number}",
        claimed_at=now * 1000 + number,
        completed_at=now * 1000 + number,
        codec="json",
        process=f"host/{number:064}",
    )
