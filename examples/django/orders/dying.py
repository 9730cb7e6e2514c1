"""The Celery app of a test: a worker's process is killed when its payment is committed, and the record is not."""

import os
import signal
from typing import Any

from django.db import transaction
from django.db.models.signals import post_save
from shop.celery import app

__all__ = ["app"]


def die(**_: Any) -> None:
    """End this process without another word."""
    os.kill(os.getpid(), signal.SIGKILL)


def die_after_commit(*, created: bool, **_: Any) -> None:
    """Die when the transaction of a new payment has committed."""
    if created:
        transaction.on_commit(die)


post_save.connect(die_after_commit, sender="orders.Payment")
