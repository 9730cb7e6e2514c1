"""The Celery app of one contender."""

from celery import Celery
from kombu import Exchange, Queue

from benchmarks.speed import contenders
from benchmarks.speed.contenders import NOTE
from benchmarks.speed.guards import IN_PROGRESS_SECONDS
from benchmarks.speed.place import Place

__all__ = ["build_app", "queue_named"]


def build_app(place: Place) -> Celery:
    """Return the app with the contender's tasks registered; nothing global is touched."""
    app = Celery(place.prefix, set_as_current=False)
    app.conf.update(
        broker_url=place.broker_url,
        broker_transport_options=place.transport_options,
        broker_connection_retry_on_startup=True,
        result_backend=place.result_backend,
        result_backend_transport_options={"global_keyprefix": f"{place.prefix}."},
        result_expires=3600,
        task_queues=[queue_named(place.queue)],
        task_default_queue=place.queue,
        task_default_exchange=place.queue,
        task_default_routing_key=place.queue,
        # Its announcements and questions would be counted with the tasks.
        worker_enable_remote_control=False,
        # The usual way to bound how long a worker that died holds a key.
        task_time_limit=IN_PROGRESS_SECONDS,
    )
    contenders.load(place.contender).declare(app, place)
    app.task(note, name=NOTE, shared=False)
    return app


def queue_named(name: str) -> Queue:
    """Return a queue with an exchange of its own."""
    return Queue(name, Exchange(name), routing_key=name)


def note() -> None:
    """Follow another task."""
