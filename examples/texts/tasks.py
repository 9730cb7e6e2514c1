"""Reminders by text message, each sent at most once: what may have been sent is not sent again, a person decides."""

import os
from pathlib import Path
from typing import Any

import gateway
from celery import Celery

from idempotent_tasks import Idempotency, IdempotentTask

#: What was noted in the customer's file.
NOTES = Path(os.environ.get("NOTES", "notes.txt"))

app = Celery(
    "texts",
    broker=os.environ.get("BROKER_URL", "amqp://guest:guest@localhost"),
    backend=os.environ.get("RESULT_URL", "redis://localhost:6379/1"),
    task_cls=IdempotentTask,
)
app.conf.update(
    broker_connection_retry_on_startup=True,
    idempotency_store=os.environ.get("STORE_URL", "dynamodb://local:local@localhost:8000/texts"),
    idempotency_expires=86_400,
    task_default_queue=os.environ.get("QUEUE", "texts"),
    task_time_limit=60,
    worker_prefetch_multiplier=1,
)


@app.task(bind=True, max_retries=10, idempotency=Idempotency(key="reminder_id", on_rerun="park"))
def remind(self: Any, reminder_id: str, number: str, text: str) -> str:  # noqa: ARG001 - the key reads it
    """Send a reminder."""
    try:
        return gateway.send(number, text)
    except (gateway.Refused, ConnectionRefusedError) as refusal:
        # Nothing was sent: the retry is no rerun.
        self.idempotency.nothing_done()
        raise self.retry(exc=refusal, countdown=1) from refusal


@app.task(idempotency=Idempotency(key="reminder_id"))
def note(receipt: str, reminder_id: str) -> str:
    """Note in the customer's file what was sent."""
    with NOTES.open("a") as notes:
        notes.write(f"{reminder_id}: {receipt}\n")
    return f"{reminder_id}: {receipt}"
