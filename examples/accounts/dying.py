"""The Celery app of a worker whose process is killed when a deposit is committed, and nobody knows it yet."""

import os
import signal
from contextlib import suppress
from pathlib import Path
from typing import Any

from celery.signals import before_task_publish
from tasks import app

__all__ = ["app"]

DIED = Path("died.txt")


@before_task_publish.connect(sender="tasks.notify")
def die_once(**_: Any) -> None:
    """End this process without another word, the first time: what follows a transaction is published after it."""
    with suppress(FileExistsError):
        DIED.touch(exist_ok=False)
        os.kill(os.getpid(), signal.SIGKILL)
