"""The Celery app of a test: a worker's process is killed when its payment is committed, and the record is not."""

import os
import signal
from contextlib import suppress
from pathlib import Path
from typing import Any

from celery.signals import before_task_publish
from django.conf import settings
from shop.celery import app

__all__ = ["app"]

#: What shows that it has happened.
DIED = Path(settings.EMAIL_FILE_PATH).with_name("died")


@before_task_publish.connect(sender="orders.tasks.thank")
def die_once(**_: Any) -> None:
    """End this process without another word, the first time: what follows a transaction is published after it."""
    with suppress(FileExistsError):
        DIED.touch(exist_ok=False)
        os.kill(os.getpid(), signal.SIGKILL)
