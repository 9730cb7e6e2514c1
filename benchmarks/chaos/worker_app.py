"""What ``celery -A benchmarks.chaos.worker_app`` loads: the app of the arena that the environment describes."""

import os
from typing import Any

from celery import signals

from benchmarks.chaos.arena import Arena
from benchmarks.chaos.contenders import add_tracing_headers, build_app
from benchmarks.chaos.history import What

arena = Arena.of_this_process()
app = build_app(arena)
if arena.traced:
    signals.before_task_publish.connect(add_tracing_headers)


@signals.worker_ready.connect
def say_ready(sender: Any, **_: Any) -> None:
    """Write down that this worker consumes."""
    arena.journal.append(What.READY, worker=sender.hostname, pid=os.getpid())


@signals.task_received.connect
def say_received(request: Any, **_: Any) -> None:
    """Write down that a delivery came from the broker."""
    arena.journal.append(What.RECEIVED, task_id=request.id, worker=request.hostname, pid=os.getpid())


@signals.task_postrun.connect
def say_over(task_id: str, state: str | None, **_: Any) -> None:
    """Write down that a delivery is done but for its acknowledgement."""
    arena.journal.append(What.OVER, task_id=task_id, state=state or "", pid=os.getpid())
