"""Tests with Django's test client and a real worker on the test database."""

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from uuid import uuid4

from django.conf import settings
from django.db import connection, transaction
from django.test import TransactionTestCase

from idempotent_tasks import DynamoDBStore
from orders.models import Order
from orders.tasks import confirm

WORKER = [sys.executable, "-m", "celery", "-A", "shop", "worker", "--concurrency", "2"]
WAIT_SECONDS = 60.0


class OrdersTest(TransactionTestCase):
    """Orders, with a worker that runs during each test."""

    def setUp(self) -> None:
        """Start a worker with its own mails and records: a new test database repeats the ids of orders."""
        mails = TemporaryDirectory()
        self.addCleanup(mails.cleanup)
        self.mails = Path(mails.name)
        store = f"{settings.CELERY_IDEMPOTENCY_STORE}-{uuid4().hex[:8]}"
        DynamoDBStore.from_url(store).create_table()
        database = str(connection.settings_dict["NAME"])
        environment = os.environ | {"DATABASE": database, "MAILS": mails.name, "STORE_URL": store}
        worker = subprocess.Popen(WORKER, cwd=settings.BASE, env=environment)
        self.addCleanup(worker.wait)
        self.addCleanup(worker.terminate)

    def post(self, reference: str) -> None:
        """Post an order as a browser does."""
        answer = self.client.post("/orders", {"reference": reference, "email": "ann@example.com"})
        self.assertEqual(answer.status_code, 202)

    def is_confirmed(self, reference: str) -> bool:
        """Return whether the shop reports the order as confirmed."""
        return bool(self.client.get(f"/orders/{reference}").json()["confirmed"])

    def wait_until(self, condition: Callable[[], bool]) -> None:
        """Wait for a condition; fail if it does not hold in time."""
        deadline = time.monotonic() + WAIT_SECONDS
        while not condition():
            self.assertLess(time.monotonic(), deadline, "the worker did not do it")
            time.sleep(0.1)

    def test_order_that_is_posted_twice_has_one_mail(self) -> None:
        """Both posts publish the confirmation; one message sends the mail, the other returns the stored result."""
        self.post("ord-17")
        self.post("ord-17")
        again = confirm.delay(Order.objects.get().pk)
        self.assertEqual(again.get(timeout=WAIT_SECONDS), "ord-17")
        self.assertTrue(self.is_confirmed("ord-17"))
        self.assertEqual(len(list(self.mails.iterdir())), 1)

    def test_order_that_is_rolled_back_is_not_published(self) -> None:
        """A task that is published in a transaction that is rolled back reaches no worker."""
        with self.assertRaises(ZeroDivisionError), transaction.atomic():
            placed = Order.objects.create(reference="ord-18", email="ann@example.com")
            confirm.delay_on_commit(placed.pk)
            raise ZeroDivisionError
        self.post("ord-19")
        self.wait_until(lambda: self.is_confirmed("ord-19"))
        (mail,) = self.mails.iterdir()
        self.assertIn("ord-19", mail.read_text())
