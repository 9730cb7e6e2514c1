"""Prometheus metrics; needs the extra ``prometheus``.

Labels are the task and the event, never a key or a task id.  In a prefork worker each child counts for itself: set
``PROMETHEUS_MULTIPROC_DIR`` to an empty folder for all of its processes, and let the parent `serve` their sum
(https://prometheus.github.io/client_python/multiprocess/).
"""

import os
from typing import Final

from prometheus_client import REGISTRY, CollectorRegistry, Counter, Histogram, start_http_server
from prometheus_client.multiprocess import MultiProcessCollector

from idempotent_tasks import events

__all__ = ["observe", "serve"]

#: Seconds.
BUCKETS: Final = (0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 10.0, 60.0, 300.0, 1800.0, 3600.0)

_events = Counter("idempotent_tasks_events", "What happened to deliveries.", ["task", "event"])
_runs = Histogram(
    "idempotent_tasks_run_seconds", "From the claim of a key to the commit of its outcome.", ["task"], buckets=BUCKETS
)
_ages = Histogram("idempotent_tasks_replay_age_seconds", "How old replayed outcomes were.", ["task"], buckets=BUCKETS)


def observe(event: events.Event) -> None:
    """Count the event, in memory or in this process's file."""
    _events.labels(event.task, type(event).__name__.lower()).inc()
    if isinstance(event, events.Committed):
        _runs.labels(event.task).observe(event.seconds)
    elif isinstance(event, events.Replayed) and event.age_seconds is not None:
        _ages.labels(event.task).observe(event.age_seconds)


def serve(port: int, address: str = "127.0.0.1") -> int:
    """Serve the metrics of this process and of its pool from a thread; call it once, in the worker's parent process.

    Args:
        port: 0 for any that is free.
        address: ``0.0.0.0`` lets other machines scrape.

    Returns:
        The port.

    Raises:
        OSError: the port is taken.
    """
    registry = REGISTRY
    if "PROMETHEUS_MULTIPROC_DIR" in os.environ:
        registry = CollectorRegistry()
        MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
    server, _ = start_http_server(port, address, registry)
    return int(server.server_port)
