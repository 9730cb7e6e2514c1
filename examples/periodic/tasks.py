"""Periodic tasks for any number of beats and workers: one never overlaps itself, one runs once in a time slot."""

import os
import time
from datetime import UTC, datetime
from pathlib import Path

from celery import Celery
from celery.beat import BeatLazyFunc

from idempotent_tasks import Idempotency, IdempotentTask

#: The log of runs, one line for each start and end.
RUNS = Path(os.environ.get("RUNS", "runs.txt"))
TICK_SECONDS = float(os.environ.get("TICK_SECONDS", "10"))
SWEEP_SECONDS = float(os.environ.get("SWEEP_SECONDS", "15"))
SLOT_SECONDS = int(os.environ.get("SLOT_SECONDS", "60"))


def slot() -> str:
    """Return the start of the current time slot, which is as long as `SLOT_SECONDS`."""
    now = int(time.time())
    return datetime.fromtimestamp(now - now % SLOT_SECONDS, UTC).isoformat()


app = Celery("periodic", broker=os.environ.get("BROKER_URL", "redis://localhost:6379/0"), task_cls=IdempotentTask)
app.conf.update(
    # A tick that no worker takes before the next one is useless.
    beat_schedule={
        "sweep": {"task": "tasks.sweep", "schedule": TICK_SECONDS, "options": {"expires": TICK_SECONDS}},
        "report": {"task": "tasks.report", "schedule": TICK_SECONDS, "args": (BeatLazyFunc(slot),)},
    },
    broker_connection_retry_on_startup=True,
    idempotency_store=os.environ.get("STORE_URL", "dynamodb://local:local@localhost:8000/periodic"),
    task_default_queue=os.environ.get("QUEUE", "periodic"),
    task_ignore_result=True,
    worker_prefetch_multiplier=1,
)


def note(event: str) -> None:
    """Log an event with its process."""
    with RUNS.open("a") as runs:
        runs.write(f"{event} (process {os.getpid()})\n")


@app.task(idempotency=Idempotency.exclusive(lease=5))
def sweep() -> None:
    """Run longer than a tick."""
    note("sweep begins")
    time.sleep(SWEEP_SECONDS)
    note("sweep ends")


@app.task(idempotency=Idempotency(key="slot", on_busy="skip", expires=2 * SLOT_SECONDS))
def report(slot: str) -> None:
    """Report on a slot, once."""
    note(f"report of {slot}")
