"""The payment service's Celery app: a charge that is published or delivered again has one receipt."""

import os
from typing import Any

import provider
from celery import Celery

from idempotent_tasks import Idempotency, IdempotentTask

app = Celery(
    "payments",
    broker=os.environ.get("BROKER_URL", "sqs://local:local@localhost:8000"),
    backend=os.environ.get("RESULT_URL", "redis://localhost:6379/1"),
)
app.conf.update(
    broker_connection_retry_on_startup=True,
    broker_transport_options={
        "region": "eu-west-1",
        "is_secure": False,  # a stand-in on this machine; drop it on AWS
        # Twice the time limit: a prefetched message may wait for another to finish.
        "visibility_timeout": int(os.environ.get("VISIBILITY_TIMEOUT", "60")),
    },
    idempotency_store=os.environ.get("STORE_URL", "dynamodb://local:local@localhost:8000/payments"),
    task_default_queue="payments",
    worker_enable_remote_control=False,  # SQS has no broadcast
    worker_prefetch_multiplier=1,
)


@app.task(
    base=IdempotentTask,
    bind=True,
    time_limit=30,
    idempotency=Idempotency(validate="[customer, amount_cents]", downstream="['charge', payment_key]", expires=86_400),
)
def charge(
    self: Any,
    payment_key: str,  # noqa: ARG001 - `downstream` reads it
    customer: str,
    amount_cents: int,
) -> dict[str, Any]:
    """Charge a card and return the receipt."""
    # If the worker dies after this line the task runs again, and the processor recognises the key, also if a version
    # with another name of the task runs it.
    receipt = provider.charge(self.idempotency.downstream_key, self.idempotency.fence, customer, amount_cents)
    return {"customer": customer, "amount_cents": amount_cents, "receipt": receipt}
