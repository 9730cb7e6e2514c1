"""What ``celery -A tests.support.worker_app`` loads: the app that the environment describes."""

import os
import socket
from typing import Any

from celery import signals

from tests.support.app import VARIABLE, AppConfig, build_app

config = AppConfig.from_json(os.environ[VARIABLE])
journal = config.journal
if config.host is not None:
    host = config.host
    socket.gethostname = lambda: host
app = build_app(config)


@signals.worker_ready.connect
def say_ready(sender: Any, **_: Any) -> None:
    """Tell the test that this worker consumes."""
    journal.write("worker-ready", worker=sender.hostname)


@signals.task_prerun.connect
def say_begun(task_id: str, **_: Any) -> None:
    """Tell that a delivery reached a process of the pool, whether or not its body will run."""
    journal.write("begun", id=task_id)


@signals.task_postrun.connect
def say_over(task_id: str, state: str, **_: Any) -> None:
    """Tell how a delivery ended, and hold it, if the test wants that, after everything but its acknowledgement."""
    journal.write("over", id=task_id, state=state)
    journal.pass_gate("before-ack")
