"""What ``celery -A benchmarks.speed.fairness_app`` loads: the app of the place that the environment describes."""

from benchmarks.speed.fairness import FairnessPlace, build_app
from benchmarks.speed.flood import report_from

place = FairnessPlace.of_this_process()
app = build_app(place)
report_from(place)
