"""The bank's Celery app: a deposit that is published or delivered again counts once."""

import os
import time
from pathlib import Path
from typing import Any

from celery import Celery
from celery.utils.log import get_task_logger
from database import receipts
from models import Account, Deposit
from sqlalchemy import update

from idempotent_tasks import Idempotency, IdempotentTask

#: Seconds for which a deposit's transaction stays open after its rows are written.
DEPOSIT_SECONDS = float(os.environ.get("DEPOSIT_SECONDS", "0"))
#: What customers are told, one line each.
NOTICES = Path(os.environ.get("NOTICES", "notices.txt"))

logger = get_task_logger(__name__)
app = Celery(
    "accounts",
    broker=os.environ.get("BROKER_URL", "redis://localhost:6379/0"),
    backend=os.environ.get("RESULT_URL", "redis://localhost:6379/1"),
    task_cls=IdempotentTask,
)
app.conf.update(
    broker_connection_retry_on_startup=True,
    # Twice the time limit: a prefetched message may wait for another to finish.
    broker_transport_options={"visibility_timeout": int(os.environ.get("VISIBILITY_TIMEOUT", "60"))},
    idempotency_store=os.environ.get("STORE_URL", "dynamodb://local:local@localhost:8000/accounts"),
    idempotency_expires=86_400,
    task_default_queue=os.environ.get("QUEUE", "accounts"),
    task_time_limit=30,
    worker_prefetch_multiplier=1,
)


@app.task(bind=True, idempotency=Idempotency(validate="[account, cents]", receipts=receipts))
def deposit(self: Any, account: str, cents: int) -> int:
    """Add to a balance; the client's request names the key. Returns the number of the deposit."""
    session = self.idempotency.session
    row = Deposit(account=account, cents=cents)
    session.add(row)
    session.execute(update(Account).filter_by(name=account).values(balance_cents=Account.balance_cents + cents))
    logger.info("deposits %d cents for %s", cents, account)
    time.sleep(DEPOSIT_SECONDS)
    self.idempotency.after_commit(notify.si(account, cents))
    return row.number


@app.task
def notify(account: str, cents: int) -> None:
    """Tell a customer that money has arrived."""
    with NOTICES.open("a") as notices:
        notices.write(f"{account}: {cents} cents have arrived\n")
