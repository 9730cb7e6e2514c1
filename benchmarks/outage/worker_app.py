"""What ``celery -A benchmarks.outage.worker_app`` loads: the app of the place that the environment describes."""

from benchmarks.outage.bodies import Place, build_app

app = build_app(Place.of_this_process())
