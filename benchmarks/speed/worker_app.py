"""What ``celery -A benchmarks.speed.worker_app`` loads: the app of the place that the environment describes."""

import os
import time
from typing import Any

from celery import signals

from benchmarks.speed.bench import Place
from benchmarks.speed.contenders import build_app
from benchmarks.speed.worker import Marks

place = Place.of_this_process()
app = build_app(place)


@signals.worker_process_init.connect
def begin_marks(**_: Any) -> None:
    """Mark what this process of the pool does; the same for every contender."""
    marks = Marks.of_process(place.folder, os.getpid())

    # Not weakly, because nothing else refers to them.
    @signals.task_prerun.connect(weak=False)
    def mark_begin(**_: Any) -> None:
        marks.begun(time.monotonic())

    @signals.task_postrun.connect(weak=False)
    def mark_end(**_: Any) -> None:
        marks.ended(time.monotonic())


@signals.task_failure.connect
def say_failed(exception: BaseException, **_: Any) -> None:
    """Tell that a task did something else than what is measured."""
    place.failure.write_text(repr(exception), encoding="utf-8")


@signals.worker_ready.connect
def say_ready(**_: Any) -> None:
    """Tell that this worker consumes."""
    (place.folder / "ready").touch()
