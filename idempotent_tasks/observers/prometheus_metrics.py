"""Prometheus metrics; needs the extra ``prometheus``.

Labels are the task and the event, never a key or a task id.  Each child of a prefork worker counts separately: set
``PROMETHEUS_MULTIPROC_DIR`` to a folder for all processes of the worker, whose parent serves their sum with `serve`
(https://prometheus.github.io/client_python/multiprocess/).
"""

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from prometheus_client import REGISTRY, CollectorRegistry, Counter, Gauge, Histogram, Metric, start_http_server
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead

from idempotent_tasks import events
from idempotent_tasks.core.processes import pid_exists

__all__ = ["FOLDER_VARIABLE", "observe", "serve"]

#: The environment variable of the folder in which prometheus_client keeps the counts of a worker's processes.
FOLDER_VARIABLE: Final = "PROMETHEUS_MULTIPROC_DIR"
#: Histogram buckets in seconds.
BUCKETS: Final = (0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 10.0, 60.0, 300.0, 1800.0, 3600.0)
COUNT_BUCKETS: Final = (1.0, 2.0, 3.0, 5.0, 10.0, 20.0, 50.0)

_events = Counter("idempotent_tasks_events", "What happened to deliveries.", ["task", "event"])
_running = Gauge(
    "idempotent_tasks_claims_in_flight", "Bodies that run under a claim.", ["task"], multiprocess_mode="livesum"
)
_runs = Histogram(
    "idempotent_tasks_run_seconds", "From the claim of a key to the commit of its outcome.", ["task"], buckets=BUCKETS
)
_ages = Histogram("idempotent_tasks_replay_age_seconds", "How old replayed outcomes were.", ["task"], buckets=BUCKETS)
_attempts = Histogram(
    "idempotent_tasks_attempts", "1 for a run; each crash of the key before it adds 1.", ["task"], buckets=COUNT_BUCKETS
)
_deferrals = Histogram(
    "idempotent_tasks_deferrals", "How often a message had been deferred.", ["task"], buckets=COUNT_BUCKETS
)

#: By task, the counter of each kind of event, from 0: Prometheus sees no increase in a series that starts at 1.
_series: Final[dict[str, dict[type[events.Event], Counter]]] = {}
#: Events that end the run under a claim.
_ENDS: Final = (events.Committed, events.Released, events.Superseded, events.Unrecorded, events.Lost, events.Parked)
#: Key and task id of each claim under which this process runs a body.
_claimed: Final[set[tuple[str, str]]] = set()


def observe(event: events.Event) -> None:
    """Count the event, in memory or in the file of this process."""
    task = event.task
    if task not in _series:
        for metric in (_running, _runs, _ages, _attempts, _deferrals):
            metric.labels(task)
        _series[task] = {kind: _events.labels(task, kind.__name__.lower()) for kind in events.KINDS}
    _series[task][type(event)].inc()
    match event:
        case events.Claimed(attempt=attempt):
            _attempts.labels(task).observe(attempt)
        case events.Committed(seconds=seconds):
            _runs.labels(task).observe(seconds)
        case events.Replayed(age_seconds=age) if age is not None:
            _ages.labels(task).observe(age)
        case events.Deferred(deferrals=deferrals):
            _deferrals.labels(task).observe(deferrals)
    _count_claim(event)


def _count_claim(event: events.Event) -> None:
    claim = event.key, event.task_id
    if isinstance(event, events.Claimed) and claim not in _claimed:
        _claimed.add(claim)
        _running.labels(event.task).inc()
    elif isinstance(event, _ENDS) and claim in _claimed:
        _claimed.discard(claim)
        _running.labels(event.task).dec()


def serve(port: int, address: str = "127.0.0.1") -> int:
    """Serve the metrics of a worker and its pool over HTTP, in a thread; call it once, in the parent process.

    Args:
        port: the port, 0 for any free one.
        address: the address to listen on; ``0.0.0.0`` lets other machines scrape.

    Returns:
        The port that it listens on.

    Raises:
        OSError: the port is taken.
    """
    registry = REGISTRY
    if folder := os.environ.get(FOLDER_VARIABLE):
        Path(folder).mkdir(parents=True, exist_ok=True)
        registry = CollectorRegistry()
        registry.register(_PoolCollector(None))  # type: ignore[no-untyped-call]
    server, _ = start_http_server(port, address, registry)
    return int(server.server_port)


class _PoolCollector(MultiProcessCollector):
    """Sums the counts of a pool's processes, and drops the live gauges of those that have exited."""

    def collect(self) -> Iterable[Metric]:
        """Return the summed metrics."""
        for file in Path(os.environ[FOLDER_VARIABLE]).glob("gauge_live*.db"):
            pid = file.stem.rpartition("_")[2]
            if pid.isdecimal() and not pid_exists(int(pid)):
                mark_process_dead(pid)  # type: ignore[no-untyped-call]
        metrics: Iterable[Metric] = super().collect()  # type: ignore[no-untyped-call]
        return metrics
