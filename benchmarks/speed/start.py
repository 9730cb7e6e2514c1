"""When a worker is ready, by plain Celery: from the start of the interpreter to the first message, checks included."""

import json
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final
from uuid import uuid4

from celery import Celery

from benchmarks.speed.bench import BROKER, RESULTS, Bench
from benchmarks.speed.calls import REGION
from benchmarks.speed.imports import NO_BYTECODE
from benchmarks.speed.rows import Reach, Row, interleaved, rows_of
from tests.testbed.waiting import wait_for
from tests.testbed.workers import CeleryWorker

__all__ = ["measure"]

#: As in `benchmarks.speed.start_app`, which only the worker imports.
VARIABLE: Final = "IDEMPOTENT_TASKS_SPEED_START"
NOTE: Final = "start.note"
READY, ENDED = "ready", "ended"

READY_AFTER: Final = "until the worker is ready"
SPENT: Final = "processor time until the worker is ready"
FIRST_AFTER: Final = "until its first task has ended"
MILLISECONDS: Final = 1000
WAIT_SECONDS: Final = 120.0
PROCESSES: Final = 2
#: Times plain Celery's.
MOST: Final = 1.05


@dataclass(frozen=True, kw_only=True)
class _Starter:
    """One kind of worker."""

    #: A package besides Celery, or nothing.
    imports: str = ""
    #: The setting ``idempotency_checks``.
    checks: str = "warn"


PLAIN: Final = "plain Celery"
WITH_BOTO3: Final = "plain Celery that imports boto3"
OURS: Final = "IdempotentTask"
STARTERS: Final = {
    PLAIN: _Starter(),
    WITH_BOTO3: _Starter(imports="boto3"),
    OURS: _Starter(imports="idempotent_tasks"),
    'IdempotentTask, checks "error"': _Starter(imports="idempotent_tasks", checks="error"),
}


def measure(bench: Bench) -> Iterator[Row]:
    """Yield when workers are ready, and how much later ours is."""
    table = bench.table(bench.roto_url)
    samplers = {name: partial(_sample, bench, name, table) for name in STARTERS}
    # The first start of each compiles modules, as pip does when it installs them.
    interleaved(1, samplers)
    starts = bench.size(3, 1)
    taken = interleaved(bench.rounds * starts, samplers)
    yield from rows_of("start", taken, {READY_AFTER: "ms", SPENT: "ms", FIRST_AFTER: "ms"})
    for what in (READY_AFTER, SPENT, FIRST_AFTER):
        for name in (WITH_BOTO3, OURS):
            reach = Reach(most=MOST, binding=False) if (name, what) == (OURS, READY_AFTER) else None
            yield _ratio(what, name, PLAIN, taken, reach)
        yield _ratio(what, OURS, WITH_BOTO3, taken)


def _ratio(
    what: str, name: str, by: str, taken: Mapping[str, Sequence[Mapping[str, float]]], reach: Reach | None = None
) -> Row:
    values = tuple(its[what] / other[what] for its, other in zip(taken[name], taken[by], strict=True))
    return Row(part="start", measure=f"{what}, by {by}", subject=name, unit="x", values=values, reach=reach)


def _sample(bench: Bench, name: str, table: str, number: int) -> dict[str, float]:
    bench.say(f"start: {number + 1}, {name}")
    token = uuid4().hex[:8]
    # Forgotten with the run's other names.
    queue = f"{table}.{token}"
    folder = bench.folder / queue
    folder.mkdir()
    options = _options(bench, STARTERS[name], table, queue, folder)
    with Celery(broker=options["broker_url"], set_as_current=False) as app:
        app.send_task(NOTE, queue=queue, ignore_result=True)
    environment = {key: value for key, value in os.environ.items() if key != NO_BYTECODE}
    environment[VARIABLE] = json.dumps(options)
    began = time.monotonic()
    worker = CeleryWorker(
        "benchmarks.speed.start_app", f"{token}@speed", queue, folder, environment, concurrency=PROCESSES
    )
    try:
        for path in (folder / READY, folder / ENDED):
            wait_for(path.exists, WAIT_SECONDS, worker.process.tail)
    finally:
        worker.kill()
    (ready, spent), (ended, _) = (json.loads((folder / each).read_text("utf-8")) for each in (READY, ENDED))
    seconds = {READY_AFTER: ready - began, SPENT: spent, FIRST_AFTER: ended - began}
    return {what: value * MILLISECONDS for what, value in seconds.items()}


def _options(bench: Bench, starter: _Starter, table: str, queue: str, folder: Path) -> dict[str, Any]:
    return {
        "imports": starter.imports,
        "checks": starter.checks,
        "broker_url": f"{bench.redis_url}/{BROKER}",
        "result_backend": f"{bench.redis_url}/{RESULTS}",
        "queue": queue,
        "directory": str(folder),
        "endpoint": bench.roto_url,
        "table": table,
        "region": REGION,
    }
