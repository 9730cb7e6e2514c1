"""What ``celery -A benchmarks.speed.flood_app`` loads: the app of the place that the environment describes."""

from benchmarks.speed.bench import Place
from benchmarks.speed.flood import build_app, report_from

place = Place.of_this_process()
app = build_app(place)
report_from(place)
