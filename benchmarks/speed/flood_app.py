"""What ``celery -A benchmarks.speed.flood_app`` loads: the app of the place that the environment describes."""

from typing import Any

from celery import signals

from benchmarks.speed.bench import Place
from benchmarks.speed.flood import NEIGHBOUR, Counted, build_app

place = Place.of_this_process()
app = build_app(place)
counted = Counted(place)


@signals.task_prerun.connect
def count(sender: Any, **_: Any) -> None:
    """Count the deliveries of what is put off."""
    if sender.name != NEIGHBOUR:
        counted.delivered()


@signals.worker_ready.connect
def say_ready(**_: Any) -> None:
    """Tell that this worker consumes."""
    (place.folder / "ready").touch()
