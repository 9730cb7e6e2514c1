"""Tests with Django's test client and a real worker on the test database."""

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest.mock import patch
from uuid import uuid4

from django.conf import settings
from django.db import connection, transaction
from django.test import TransactionTestCase
from shop import app

from idempotent_tasks import ConfigurationError, DynamoDBStore, MemoryStore
from idempotent_tasks.testing import redeliver, temporary_settings
from orders import processor
from orders.models import Order, Payment
from orders.tasks import collect, confirm, record_payment

WAIT_SECONDS = 60.0


class OrdersTest(TransactionTestCase):
    """Orders, with a worker that runs during each test."""

    def setUp(self) -> None:
        """Make a table for the records of this test alone, because each test counts its orders from the same number."""
        folder = TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.mails = Path(folder.name, "mails")
        self.log = Path(folder.name, "worker.log")
        self.enterContext(self.settings(PROCESSOR_BOOKS=Path(folder.name, "processor.sqlite3")))
        self.store_url = f"{settings.CELERY_IDEMPOTENCY_STORE}-{uuid4().hex[:8]}"
        self.store = DynamoDBStore.from_url(self.store_url)
        self.store.create_table()

    def start_worker(self, app: str = "shop") -> None:
        """Start a worker on the test database; it ends with the test."""
        variable = "PGDATABASE" if connection.vendor == "postgresql" else "SQLITE"
        environment = os.environ | {
            variable: str(connection.settings_dict["NAME"]),
            "MAILS": str(self.mails),
            "PROCESSOR_BOOKS": str(settings.PROCESSOR_BOOKS),
            "STORE_URL": self.store_url,
        }
        command = [sys.executable, "-m", "celery", "-A", app, "worker", "--concurrency", "2"]
        with self.log.open("wb") as log:
            worker = subprocess.Popen(command, cwd=settings.BASE, env=environment, stdout=log, stderr=log)
        self.addCleanup(worker.wait)
        self.addCleanup(worker.terminate)

    def post(self, path: str, data: Any, **options: Any) -> None:
        """Post as a browser or the payment provider does."""
        self.assertEqual(self.client.post(path, data, **options).status_code, 202)

    def processor_has(self, table: str) -> list[Any]:
        """Return the rows of a table of the processor's books."""
        with processor.books() as books:
            return books.execute(f"SELECT * FROM {table}").fetchall()  # noqa: S608 - our own names

    def wait_until(self, condition: Callable[[], bool]) -> None:
        """Wait for a condition; fail if it does not hold in time."""
        deadline = time.monotonic() + WAIT_SECONDS
        while not condition():
            self.assertLess(time.monotonic(), deadline, f"the worker did not do it:\n{self.log.read_text()}")
            time.sleep(0.1)

    def test_order_that_is_posted_twice_is_fulfilled_once(self) -> None:
        """Both posts publish the same canvas; of each step one message has the effect, the other the stored result."""
        self.start_worker()
        form = {"reference": "ord-17", "email": "ann@example.com", "item": ["book", "lamp"]}
        self.post("/orders", form)
        self.post("/orders", form)
        self.wait_until(lambda: self.client.get("/orders/ord-17").json()["confirmed"])
        again = confirm.delay(Order.objects.get().pk)
        self.assertEqual(again.get(timeout=WAIT_SECONDS), "ord-17")
        done = {"reference": "ord-17", "parcels": 2, "shipped": True, "confirmed": True, "paid_cents": 0}
        self.assertEqual(self.client.get("/orders/ord-17").json(), done)
        self.assertEqual(len(list(self.mails.iterdir())), 1)

    def test_order_that_is_rolled_back_is_not_published(self) -> None:
        """A task that is published in a transaction that is rolled back reaches no worker."""
        with self.assertRaises(ZeroDivisionError), transaction.atomic():
            placed = Order.objects.create(reference="ord-18", email="ann@example.com")
            confirm.delay_on_commit(placed.pk)
            raise ZeroDivisionError
        self.start_worker()
        placed = Order.objects.create(reference="ord-19", email="ann@example.com")
        confirm.delay_on_commit(placed.pk)
        self.wait_until(lambda: self.client.get("/orders/ord-19").json()["confirmed"])
        (mail,) = self.mails.iterdir()
        self.assertIn("ord-19", mail.read_text())

    def test_payment_is_recorded_once(self) -> None:
        """The provider sends an event twice, and the process dies when the payment is committed, before its record.

        Before its mail is published, too.
        """
        self.start_worker("orders.dying")
        placed = Order.objects.create(reference="ord-20", email="ann@example.com")
        event = {"id": "evt-1", "order": "ord-20", "cents": 4200}
        self.post("/webhooks/payments", event, content_type="application/json")
        self.post("/webhooks/payments", event, content_type="application/json")
        again = record_payment.apply_async((placed.pk, 4200), idempotency_key="evt-1")
        self.assertEqual(again.get(timeout=WAIT_SECONDS), Payment.objects.get().pk)
        self.assertIn("exited with 'signal 9 (SIGKILL)'", self.log.read_text())
        placed.refresh_from_db()
        self.assertEqual(placed.paid_cents, 4200)
        self.wait_until(lambda: any("Thank you" in mail.read_text() for mail in self.mails.glob("*")))
        self.assertEqual(len(list(self.mails.iterdir())), 1)

    def test_payment_in_a_transaction_is_refused(self) -> None:
        """A rollback of the caller's would undo the payment under a record that says that it is there."""
        placed = Order.objects.create(reference="ord-21", email="ann@example.com")
        with transaction.atomic(), self.assertRaisesMessage(ConfigurationError, "inside a transaction"):
            record_payment.apply((placed.pk, 4200), idempotency_key="evt-2").get()
        self.assertFalse(Payment.objects.exists())

    def test_card_is_charged_once(self) -> None:
        """The process dies when the card is charged, and the next one when the payment is committed."""
        self.start_worker("orders.dying")
        placed = Order.objects.create(reference="ord-22", email="ann@example.com")
        self.post("/orders/ord-22/charges", {"cents": 4200})
        again = collect.delay("ord-22", 4200)
        self.assertEqual(again.get(timeout=WAIT_SECONDS), Payment.objects.get().pk)
        self.assertEqual(self.log.read_text().count("exited with 'signal 9 (SIGKILL)'"), 2)
        # Asked again by the second run, under the same key; not by the third, which has the step.
        (first, second) = self.processor_has("requests")
        self.assertEqual(first, second)
        self.assertEqual(len(self.processor_has("charges")), 1)
        placed.refresh_from_db()
        self.assertEqual(placed.paid_cents, 4200)
        self.wait_until(lambda: any("Thank you" in mail.read_text() for mail in self.mails.glob("*")))
        self.assertEqual(len(list(self.mails.iterdir())), 1)

    def test_no_transaction_is_open_while_the_card_is_charged(self) -> None:
        """A processor that takes long holds no lock, and a rerun whose steps are kept asks it for nothing."""
        self.enterContext(temporary_settings(app, store=MemoryStore()))
        app.conf.task_always_eager = True
        self.addCleanup(setattr, app.conf, "task_always_eager", False)
        Order.objects.create(reference="ord-23", email="ann@example.com")
        open_transactions = []

        def charge(*args: Any, charge: Callable[..., int] = processor.charge, **kwargs: Any) -> int:
            open_transactions.append(connection.in_atomic_block)
            return charge(*args, **kwargs)

        with patch.object(processor, "charge", charge):
            happened = redeliver(collect, ("ord-23", 4200), crashes=["in-body", "before-commit"])
        self.assertEqual((happened.runs, happened.get()), (3, Payment.objects.get().pk))
        self.assertEqual(open_transactions, [False])
