"""Tests with Django's test client and a real worker on the test database."""

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from uuid import uuid4

from django.conf import settings
from django.db import connection, transaction
from django.test import TransactionTestCase

from idempotent_tasks import ConfigurationError, DynamoDBStore
from orders.models import Order, Payment
from orders.tasks import confirm, record_payment

WAIT_SECONDS = 60.0


class OrdersTest(TransactionTestCase):
    """Orders, with a worker that runs during each test."""

    def setUp(self) -> None:
        """Make a table for the records of this test alone, because each test counts its orders from the same number."""
        folder = TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.mails = Path(folder.name, "mails")
        self.log = Path(folder.name, "worker.log")
        self.store_url = f"{settings.CELERY_IDEMPOTENCY_STORE}-{uuid4().hex[:8]}"
        self.store = DynamoDBStore.from_url(self.store_url)
        self.store.create_table()

    def start_worker(self, app: str = "shop") -> None:
        """Start a worker on the test database; it ends with the test."""
        variable = "PGDATABASE" if connection.vendor == "postgresql" else "SQLITE"
        environment = os.environ | {
            variable: str(connection.settings_dict["NAME"]),
            "MAILS": str(self.mails),
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
