"""The tasks that fulfil an order, each guarded by a key from its arguments."""

import os
import time
from pathlib import Path

from celery import Celery

from idempotent_tasks import Idempotency, IdempotentTask

#: The log of the warehouse, one line for each side effect.
LOG = Path(os.environ.get("LOG", "warehouse.txt"))
PACK_SECONDS = float(os.environ.get("PACK_SECONDS", "1"))

app = Celery(
    "warehouse",
    broker=os.environ.get("BROKER_URL", "amqp://guest:guest@localhost"),
    backend=os.environ.get("RESULT_URL", "redis://localhost:6379/1"),
    task_cls=IdempotentTask,
)
app.conf.update(
    broker_connection_retry_on_startup=True,
    idempotency_store=os.environ.get("STORE_URL", "dynamodb://local:local@localhost:8000/warehouse"),
    idempotency_expires=86_400,
    task_default_queue=os.environ.get("QUEUE", "warehouse"),
    task_time_limit=60,
    worker_prefetch_multiplier=1,
)


def note(effect: str) -> None:
    """Log a side effect, which stands for one that cannot be undone."""
    with LOG.open("a") as log:
        log.write(f"{effect}\n")


@app.task(idempotency=Idempotency(key="order"))
def reserve(order: str) -> str:
    """Reserve the items of an order."""
    note(f"reserved {order}")
    return order


@app.task(idempotency=Idempotency(key="[order, item]"))
def pack(order: str, item: str) -> str:
    """Pack one item; the sofa takes `PACK_SECONDS`."""
    time.sleep(PACK_SECONDS if item == "sofa" else 0)
    note(f"packed {item} of {order}")
    return f"parcel of {item}"


@app.task(idempotency=Idempotency(key="order"))
def ship(parcels: list[str], order: str) -> str:
    """Hand all parcels to the carrier together."""
    note(f"shipped {order}")
    return f"{order}: {', '.join(parcels)}"


@app.task(idempotency=Idempotency(key="shipment"))
def tell(shipment: str) -> str:
    """Notify the customer."""
    note(f"told the customer of {shipment}")
    return shipment
