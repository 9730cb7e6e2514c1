"""What many messages of one busy key cost: the worker, its other tasks, and those that wait for the result."""

import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from statistics import median
from typing import Any, Final, Protocol

from celery import Celery, Task, signals
from redis import Redis

from benchmarks.chaos.contenders import REDELIVERED
from benchmarks.speed.bench import Bench, Place
from benchmarks.speed.calls import store_at
from benchmarks.speed.contenders import new_app
from benchmarks.speed.deliveries import cpu_seconds
from benchmarks.speed.rows import Reach, Row, interleaved, rows_of
from idempotent_tasks import Idempotency, IdempotentTask
from tests.testbed.waiting import wait_for
from tests.testbed.wire import wire_to
from tests.testbed.workers import CeleryWorker

__all__ = [
    "HOLD",
    "NEIGHBOUR",
    "Counted",
    "Flooded",
    "build_app",
    "deferrals",
    "flooded",
    "measure",
    "play",
    "report_from",
]

#: The task that holds a key; one with a key of its own; and a plain one that Celery's ``retry`` puts off.
HOLD: Final = "flood.hold"
NEIGHBOUR: Final = "flood.neighbour"
RETRIED: Final = "flood.retried"
#: For how long a worker that died would hold a key.
LIMIT_SECONDS: Final = 120
#: Each pool and how many tasks it runs at once.
POOLS: Final = {"threads": 4, "prefork": 2}
#: Seconds between two of the other tasks, and until what is awaited has happened.
BETWEEN: Final = 0.1
WAIT_SECONDS: Final = 120.0

DELIVERIES, WAIT, AFTER = "deliveries by duplicates", "median wait of other tasks", "until all have the result"
CPU, REQUESTS = "processor time a delivery", "requests to DynamoDB a delivery"


class Counted:
    """What the workers of a place count, in Redis; times are of the machine's monotonic clock.

    Args:
        place: where.
    """

    def __init__(self, place: Place) -> None:
        self._redis = Redis.from_url(place.result_backend, decode_responses=True)
        self._prefix = place.prefix

    def delivered(self) -> None:
        """Count a delivery of what is put off."""
        self._redis.incr(f"{self._prefix}.deliveries")

    @property
    def deliveries(self) -> int:
        """How many there were."""
        return int(self._redis.get(f"{self._prefix}.deliveries") or 0)

    def note(self, what: str, seconds: float) -> None:
        """Note a time."""
        self._redis.rpush(f"{self._prefix}.{what}", seconds)

    def noted(self, what: str) -> list[float]:
        """Return the times that were noted."""
        return [float(each) for each in self._redis.lrange(f"{self._prefix}.{what}", 0, -1)]

    def successes(self, ids: list[str]) -> int:
        """Return how many of some tasks have their result."""
        found = self._redis.mget([f"{self._prefix}.celery-task-meta-{each}" for each in ids]) if ids else []
        return sum('"SUCCESS"' in each for each in found if each)


def build_app(place: Place) -> Celery:
    """Return the app of a place; nothing global is touched."""
    app = new_app(place, LIMIT_SECONDS)
    app.conf.idempotency_store = store_at(place.endpoint, place.table)
    counted = Counted(place)

    def hold(order: str, seconds: float) -> str:
        counted.note("begun", time.monotonic())
        time.sleep(seconds)
        counted.note("ended", time.monotonic())
        return order

    def pass_by(sent: float) -> None:
        counted.note("waits", time.monotonic() - sent)

    def put_off(task: Task) -> None:
        raise task.retry(countdown=LIMIT_SECONDS)

    app.task(hold, name=HOLD, base=IdempotentTask, shared=False, idempotency=Idempotency(key="order"))
    app.task(pass_by, name=NEIGHBOUR, base=IdempotentTask, shared=False)
    app.task(put_off, name=RETRIED, bind=True, shared=False, max_retries=None, **REDELIVERED)
    return app


def report_from(place: Place) -> None:
    """Have this worker count the deliveries of what is put off, and tell with a file when it consumes."""
    counted = Counted(place)

    def count(sender: Any, **_: Any) -> None:
        if sender.name != NEIGHBOUR:
            counted.delivered()

    def say_ready(sender: Any, **_: Any) -> None:
        (place.folder / f"ready-{sender.hostname}").touch()

    signals.task_prerun.connect(count, weak=False)
    signals.worker_ready.connect(say_ready, weak=False)


class Workers(Protocol):
    """One or more workers of a place."""

    @property
    def app(self) -> Celery:
        """The app of the place."""

    @property
    def counted(self) -> Counted:
        """What they count."""

    def publish(self, task: str, *args: Any, number: int = 1) -> list[str]:
        """Publish so many messages of a task; return their ids."""

    def wait(self, condition: Any) -> None:
        """Wait until something is the case."""


@dataclass(frozen=True, kw_only=True)
class Played:
    """What a flood did."""

    #: Seconds for which each of the other tasks waited.
    waits: list[float]
    #: Seconds from the body's end until all had its result.
    after: float
    deliveries: int


def play(workers: Workers, seconds: int, duplicates: int) -> Played:
    """Publish so many duplicates while a body runs for so many seconds, and other tasks for half of that."""
    order, counted = workers.app.main, workers.counted
    ids = workers.publish(HOLD, order, seconds)
    workers.wait(lambda: counted.noted("begun"))
    ids += workers.publish(HOLD, order, seconds, number=duplicates)
    others = int(seconds / BETWEEN / 2)
    for _ in range(others):
        workers.publish(NEIGHBOUR, time.monotonic())
        time.sleep(BETWEEN)
    workers.wait(lambda: counted.successes(ids) == len(ids))
    after = time.monotonic() - counted.noted("ended")[0]
    workers.wait(lambda: len(counted.noted("waits")) == others)
    return Played(waits=counted.noted("waits"), after=after, deliveries=counted.deliveries)


@dataclass(frozen=True, kw_only=True)
class Flooded:
    """A worker, what is published to it, and what it counts."""

    place: Place
    app: Celery
    counted: Counted
    worker: CeleryWorker

    def publish(self, task: str, *args: Any, number: int = 1) -> list[str]:
        """Publish so many messages of a task; return their ids."""
        with self.app.producer_pool.acquire() as producer:
            return [self.app.tasks[task].apply_async(args, producer=producer).id for _ in range(number)]

    def wait(self, condition: Any) -> None:
        """Wait until something is the case."""
        wait_for(condition, WAIT_SECONDS, lambda: f"the worker stands still:\n{self.worker.process.tail()}")

    def cpu_seconds(self) -> float:
        """Return what the worker and its pool have spent."""
        return cpu_seconds(self.worker.process.pid)


@contextmanager
def flooded(place: Place, pool: str, concurrency: int) -> Iterator[Flooded]:
    """Have a worker of a place run until the end of a block.

    Args:
        place: where.
        pool: the kind of its pool.
        concurrency: how many tasks it runs at once.
    """
    worker = CeleryWorker(
        "benchmarks.speed.flood_app",
        f"{place.contender}@flood",
        place.queue,
        place.folder,
        os.environ | place.environment(),
        pool=pool,
        concurrency=concurrency,
        loglevel="WARNING",
    )
    try:
        worker.wait_until_ready((place.folder / f"ready-{worker.name}").exists)
        yield Flooded(place=place, app=build_app(place), counted=Counted(place), worker=worker)
    finally:
        worker.kill()


def measure(bench: Bench) -> Iterator[Row]:
    """Yield what duplicates of a busy key do to a worker, to its other tasks, and how long they wait."""
    table = bench.table(bench.ministack_url)
    for pool, size in POOLS.items():
        samplers = {name: partial(_flood, bench, pool, table, name) for name in ("no duplicates", "duplicates")}
        taken = interleaved(bench.rounds, samplers)
        subject = f"{bench.size(500, 20)} duplicates, {pool} {size}"
        for measure, unit, reach in ((DELIVERIES, "x", Reach(most=3)), (AFTER, "s", Reach(most=3, binding=False))):
            values = tuple(each[measure] for each in taken["duplicates"])
            yield Row(part="flood", measure=measure, subject=subject, unit=unit, values=values, reach=reach)
        waits = [tuple(each[WAIT] for each in taken[name]) for name in ("duplicates", "no duplicates")]
        ratios = tuple(one / other for one, other in zip(*waits, strict=True))
        yield Row(part="flood", measure=WAIT, subject=subject, unit="s", values=waits[0])
        measure = f"{WAIT}, by that without duplicates"
        yield Row(part="flood", measure=measure, subject=subject, unit="x", values=ratios, reach=Reach(most=2))


def _flood(bench: Bench, pool: str, table: str, name: str, number: int) -> Mapping[str, float]:
    bench.say(f"flood: round {number + 1} of {bench.rounds}, {pool}, {name}")
    seconds, duplicates = bench.size(30, 3), bench.size(500, 20) if name == "duplicates" else 0
    with flooded(bench.place(pool, bench.ministack_url, table), pool, POOLS[pool]) as it:
        played = play(it, seconds, duplicates)
    return {
        WAIT: median(played.waits),
        AFTER: played.after,
        DELIVERIES: played.deliveries / max(duplicates, 1),
    }


def deferrals(bench: Bench) -> Iterator[Row]:
    """Yield what one deferral costs beside Celery's ``retry``."""
    table = bench.table(bench.ministack_url)
    taken = interleaved(
        bench.rounds,
        {
            "a deferral": partial(_put_off, bench, table, HOLD),
            "self.retry() of a plain task": partial(_put_off, bench, table, RETRIED),
        },
    )
    yield from rows_of("deferrals", taken, {CPU: "ms"})
    ours, theirs = taken.values()
    ratios = tuple(one[CPU] / other[CPU] for one, other in zip(ours, theirs, strict=True))
    measure, subject = f"{CPU}, by that of self.retry()", "a deferral"
    yield Row(part="deferrals", measure=measure, subject=subject, unit="x", values=ratios, reach=Reach(most=1.5))
    values = tuple(one[REQUESTS] for one in ours)
    yield Row(part="deferrals", measure=REQUESTS, subject=subject, unit="", values=values, reach=Reach(most=1.1))


def _put_off(bench: Bench, table: str, task: str, number: int) -> Mapping[str, float]:
    bench.say(f"flood: round {number + 1} of {bench.rounds}, {task} put off")
    messages = bench.size(500, 20)
    with (
        wire_to(bench.ministack_url) as wire,
        flooded(bench.place("putoff", wire.endpoint, table), "threads", POOLS["threads"]) as it,
    ):
        args: tuple[Any, ...] = ()
        if task == HOLD:
            args = (it.app.main, LIMIT_SECONDS)
            it.publish(HOLD, *args)
            it.wait(lambda: it.counted.noted("begun"))
        wire.clear()
        before, delivered = it.cpu_seconds(), it.counted.deliveries
        it.publish(task, *args, number=messages)
        it.wait(lambda: it.counted.deliveries - delivered >= messages)
        spent, deliveries = it.cpu_seconds() - before, it.counted.deliveries - delivered
        requests = len(wire.operations())
    return {CPU: spent / deliveries * 1000, REQUESTS: requests / deliveries}
