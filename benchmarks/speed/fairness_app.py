"""What ``celery -A benchmarks.speed.fairness_app`` loads: the app of the place that the environment describes."""

from typing import Any

from celery import signals

from benchmarks.speed.fairness import FairnessPlace, build_app
from benchmarks.speed.flood import NEIGHBOUR, Counted

place = FairnessPlace.of_this_process()
app = build_app(place)
counted = Counted(place)


@signals.task_prerun.connect
def count(sender: Any, **_: Any) -> None:
    """Count the deliveries of the flood."""
    if sender.name != NEIGHBOUR:
        counted.delivered()


@signals.worker_ready.connect
def say_ready(sender: Any, **_: Any) -> None:
    """Tell that this worker consumes."""
    (place.folder / f"ready-{sender.hostname}").touch()
