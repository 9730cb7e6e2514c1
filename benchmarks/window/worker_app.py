"""What ``celery -A benchmarks.window.worker_app`` loads: the app of the place that the environment describes."""

from benchmarks.window.bodies import Place, build_app

app = build_app(Place.of_this_process())
