"""The Celery app of a test: a worker's process is killed where an effect is made, and nobody knows it yet."""

import os
import signal
from contextlib import suppress
from pathlib import Path
from typing import Any

from celery.signals import before_task_publish
from django.conf import settings
from shop.celery import app

from orders import processor

__all__ = ["app"]

charge = processor.charge


def die_once(point: str) -> None:
    """End this process without another word, the first time that one of them comes to this point."""
    with suppress(FileExistsError):
        Path(settings.EMAIL_FILE_PATH).with_name(f"died {point}").touch(exist_ok=False)
        os.kill(os.getpid(), signal.SIGKILL)


@before_task_publish.connect(sender="orders.tasks.thank")
def die_when_committed(**_: Any) -> None:
    """Die when a payment is committed: what follows a transaction is published after it, and before its record."""
    die_once("committed")


def charge_and_die(*args: Any, **kwargs: Any) -> int:
    """Die when the card is charged, and its step is not kept."""
    number = charge(*args, **kwargs)
    die_once("charged")
    return number


processor.charge = charge_and_die
