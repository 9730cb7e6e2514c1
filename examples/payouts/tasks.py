"""Payouts by a bank that takes no idempotency keys: before a payout runs again, the bank is asked for its reference."""

import os
from http.client import HTTPException
from typing import Any

import bank
from celery import Celery

from idempotent_tasks import Done, Idempotency, IdempotentTask, NotDone, Record

app = Celery(
    "payouts",
    broker=os.environ.get("BROKER_URL", "amqp://guest:guest@localhost"),
    backend=os.environ.get("RESULT_URL", "redis://localhost:6379/1"),
)
app.conf.update(
    broker_connection_retry_on_startup=True,
    idempotency_store=os.environ.get("STORE_URL", "dynamodb://local:local@localhost:8000/payouts"),
    task_default_queue=os.environ.get("QUEUE", "payouts"),
    worker_prefetch_multiplier=1,
)


def find_payout(record: Record, payout_id: str, cents: int) -> Done | NotDone:  # noqa: ARG001 - a body's arguments
    """Ask the bank whether an earlier run of this payout has paid it."""
    transfer = bank.find(payout_id)
    return NotDone() if transfer is None else Done(transfer)


@app.task(
    base=IdempotentTask,
    bind=True,
    time_limit=30,
    autoretry_for=(OSError, HTTPException),
    retry_backoff=True,
    idempotency=Idempotency(
        key="payout_id",
        expires=86_400,
        recover=find_payout,
        # Above the client's time-out and what the bank takes until it finds the transfer.
        settle=float(os.environ.get("SETTLE_SECONDS", "20")),
    ),
)
def pay_out(self: Any, payout_id: str, cents: int) -> dict[str, Any]:
    """Pay out an amount."""
    try:
        return bank.transfer(payout_id, cents)
    except ConnectionRefusedError:
        # The request did not leave, so the next run is the first that matters, and need not wait for `settle`.
        self.idempotency.nothing_done()
        raise
