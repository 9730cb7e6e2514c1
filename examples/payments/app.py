"""A payment service: however often an order is published or redelivered, its card is charged once."""

import argparse
import os
from pathlib import Path
from typing import Any

from celery import Celery

from idempotent_tasks import DynamoDBStore, Idempotency, IdempotentTask

#: Stands for the payment provider: a line for each charge.
LEDGER = Path(os.environ.get("LEDGER", "charges.txt"))
STORE = os.environ.get("STORE_URL", "dynamodb://local:local@localhost:8000/payments")

app = Celery(
    "payments",
    broker=os.environ.get("BROKER_URL", "redis://localhost:6379/0"),
    backend=os.environ.get("RESULT_URL", "redis://localhost:6379/1"),
)
app.conf.update(
    broker_connection_retry_on_startup=True,
    idempotency_store=STORE,
    task_default_queue="payments",
)


@app.task(
    name="payments.charge",
    base=IdempotentTask,
    bind=True,
    time_limit=30,
    idempotency=Idempotency(key="order_id", validate="amount_cents", expires=86_400),
)
def charge(self: Any, order_id: str, amount_cents: int) -> dict[str, Any]:
    """Charge the card of an order and return the receipt."""
    with LEDGER.open("a") as ledger:
        # A real provider takes the key along: it then refuses the second charge where a worker dies right here.
        ledger.write(f"{order_id} {amount_cents} {self.idempotency.key}\n")
    return {"order": order_id, "receipt": len(LEDGER.read_text().splitlines())}


def publish(order_id: str, amount_cents: int, times: int) -> None:
    """Publish the same charge several times and print what each message came to."""
    results = [charge.delay(order_id, amount_cents) for _ in range(times)]
    for number, result in enumerate(results, 1):
        print(f"message {number}: {result.get(timeout=60, propagate=False)!r}")
    print(f"charges made: {len(LEDGER.read_text().splitlines())}")


def main() -> None:
    """Run one of the commands of the README."""
    parser = argparse.ArgumentParser(description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("setup", help="create the table of the idempotency records")
    charging = commands.add_parser("charge", help="publish one charge")
    charging.add_argument("order_id")
    charging.add_argument("amount_cents", type=int)
    charging.add_argument("--times", type=int, default=1, help="how many messages to publish")
    options = parser.parse_args()
    if options.command == "setup":
        DynamoDBStore.from_url(STORE).create_table()
    else:
        publish(options.order_id, options.amount_cents, options.times)


if __name__ == "__main__":
    main()
