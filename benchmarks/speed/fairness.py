"""How long other tasks wait during a flood, by what a worker prefetches, how its pool grows, and by priorities."""

import os
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from statistics import median
from typing import Any, Final

from celery import Celery

from benchmarks.speed import flood
from benchmarks.speed.bench import Bench, Place
from benchmarks.speed.contenders import queue_named
from benchmarks.speed.flood import HOLD, NEIGHBOUR, Counted
from benchmarks.speed.rows import Row, interleaved, rows_of
from tests.testbed.servers import rabbitmq_server
from tests.testbed.waiting import wait_for
from tests.testbed.workers import CeleryWorker

__all__ = ["DELIVERIES", "LONGEST", "MEDIAN", "Case", "FairnessPlace", "Site", "build_app", "measure", "sample"]

#: Two workers of two processes each consume one queue, unless a case says otherwise.
WORKERS: Final = ("first", "second")
PROCESSES: Final = 2
#: Seconds until what is awaited has happened.
WAIT_SECONDS: Final = 120.0
#: Of a queue of RabbitMQ.
MOST_PRIORITY: Final = 9
#: As Celery's documentation sets Redis up for priorities.
REDIS_PRIORITIES: Final = {"priority_steps": list(range(MOST_PRIORITY + 1)), "queue_order_strategy": "priority"}

MEDIAN, LONGEST, DELIVERIES = "median wait of other tasks", "longest wait of other tasks", "deliveries by duplicates"


@dataclass(frozen=True, kw_only=True)
class Case:
    """How workers and queues are set up."""

    #: Options of ``celery worker``.
    options: tuple[str, ...] = ("--prefetch-multiplier", "1")
    #: Whether the other tasks go before those of the flood.
    priorities: bool = False
    #: Whether the flood has a queue, and the first of the workers, of its own.
    own_queue: bool = False
    #: Whether there is a flood.
    flooded: bool = True


ON_REDIS: Final = {
    "no flood": Case(flooded=False),
    "multiplier 1": Case(),
    "multiplier 4": Case(options=("--prefetch-multiplier", "4")),
    "multiplier 0": Case(options=("--prefetch-multiplier", "0")),
    "multiplier 1, --disable-prefetch": Case(options=("--prefetch-multiplier", "1", "--disable-prefetch")),
    "multiplier 1, --autoscale=4,1": Case(options=("--prefetch-multiplier", "1", "--autoscale", "4,1")),
    "multiplier 1, priorities": Case(priorities=True),
    "multiplier 1, a queue and a worker of its own": Case(own_queue=True),
}
ON_RABBITMQ: Final = {
    "no flood": Case(flooded=False),
    "multiplier 1": Case(),
    "multiplier 4": Case(options=("--prefetch-multiplier", "4")),
    "multiplier 1, priorities": Case(priorities=True),
}


@dataclass(frozen=True, kw_only=True)
class FairnessPlace(Place):
    """A place whose broker may be RabbitMQ; `broker_url` is a Redis in any case, which counts."""

    amqp_url: str
    priorities: bool
    own_queue: bool

    @property
    def flood_queue(self) -> str:
        """The queue of the flood."""
        return f"{self.queue}.flood" if self.own_queue else self.queue

    @property
    def transport_options(self) -> dict[str, Any]:
        """Kombu's options."""
        if self.amqp_url:
            return {}
        return {**super().transport_options, **(REDIS_PRIORITIES if self.priorities else {})}

    @property
    def message_priorities(self) -> dict[str, int | None]:
        """The priority of each task; Redis takes the least first, RabbitMQ the greatest."""
        if not self.priorities:
            return {HOLD: None, NEIGHBOUR: None}
        last, first = (0, MOST_PRIORITY) if self.amqp_url else (MOST_PRIORITY, 0)
        return {HOLD: last, NEIGHBOUR: first}


def build_app(place: FairnessPlace) -> Celery:
    """Return the app of a place; nothing global is touched."""
    app = flood.build_app(place)
    arguments = {"x-max-priority": MOST_PRIORITY} if place.amqp_url and place.priorities else None
    queues = [queue_named(name) for name in dict.fromkeys((place.queue, place.flood_queue))]
    for queue in queues:
        queue.queue_arguments = arguments
    app.conf.update(
        broker_url=place.amqp_url or place.broker_url,
        broker_transport_options=place.transport_options,
        task_queues=queues,
        task_routes={HOLD: {"queue": place.flood_queue}, NEIGHBOUR: {"queue": place.queue}},
    )
    return app


@dataclass(frozen=True, kw_only=True)
class _Running:
    """Two workers, what is published to them, and what they count."""

    place: FairnessPlace
    app: Celery
    counted: Counted
    workers: list[CeleryWorker]

    def publish(self, task: str, *args: Any, number: int = 1) -> list[str]:
        """Publish so many messages of a task; return their ids."""
        priority = self.place.message_priorities[task]
        with self.app.producer_pool.acquire() as producer:
            send = partial(self.app.tasks[task].apply_async, args, producer=producer, priority=priority)
            return [send().id for _ in range(number)]

    def wait(self, condition: Any) -> None:
        """Wait until something is the case."""
        wait_for(condition, WAIT_SECONDS, lambda: "\n".join(each.process.tail() for each in self.workers))


@dataclass(frozen=True, kw_only=True)
class Site:
    """A broker and a table."""

    broker: str
    #: Of RabbitMQ; empty for Redis.
    amqp_url: str = ""
    table: str


@contextmanager
def _running(bench: Bench, site: Site, case: Case) -> Iterator[_Running]:
    given = vars(bench.place("fairness", bench.ministack_url, site.table))
    place = FairnessPlace(**given, amqp_url=site.amqp_url, priorities=case.priorities, own_queue=case.own_queue)
    app = build_app(place)
    with ExitStack() as stack:
        if site.amqp_url:
            stack.callback(_delete_queues, app)
        workers = []
        for name, queue in zip(WORKERS, (place.flood_queue, place.queue), strict=True):
            worker = CeleryWorker(
                "benchmarks.speed.fairness_app",
                f"{name}@fairness",
                queue,
                place.folder,
                os.environ | place.environment(),
                *case.options,
                concurrency=PROCESSES,
                loglevel="WARNING",
            )
            stack.callback(worker.kill)
            workers.append(worker)
        for worker in workers:
            worker.wait_until_ready((place.folder / f"ready-{worker.name}").exists)
        yield _Running(place=place, app=app, counted=Counted(place), workers=workers)


def _delete_queues(app: Celery) -> None:
    """Leave nothing on a RabbitMQ that may be the user's own."""
    with app.connection_for_write() as connection:
        channel = connection.default_channel
        for name in app.amqp.queues:
            channel.queue_delete(name)
            channel.exchange_delete(name)


def measure(bench: Bench) -> Iterator[Row]:
    """Yield how long other tasks wait in each case, on Redis and on RabbitMQ.

    Raises:
        MissingServiceError: there is no RabbitMQ; the rows of Redis have been yielded.
    """
    table = bench.table(bench.ministack_url)
    yield from _rows(bench, Site(broker="Redis", table=table), ON_REDIS)
    with rabbitmq_server(bench.folder) as url:
        yield from _rows(bench, Site(broker="RabbitMQ", amqp_url=url, table=table), ON_RABBITMQ)


def _rows(bench: Bench, site: Site, cases: Mapping[str, Case]) -> Iterator[Row]:
    named = {f"{site.broker}, {name}": case for name, case in cases.items()}
    taken = interleaved(bench.rounds, {name: partial(sample, bench, site, name, case) for name, case in named.items()})
    yield from rows_of("fairness", taken, {MEDIAN: "s", LONGEST: "s"})
    flooded = {name: taken[name] for name, case in named.items() if case.flooded}
    yield from rows_of("fairness", flooded, {DELIVERIES: "x"})


def sample(bench: Bench, site: Site, name: str, case: Case, number: int) -> Mapping[str, float]:
    """Measure one round of a case, whose name is for the reader; times are in seconds."""
    bench.say(f"fairness: round {number + 1} of {bench.rounds}, {name}")
    seconds, duplicates = bench.size(20, 3), bench.size(500, 20) if case.flooded else 0
    with _running(bench, site, case) as it:
        played = flood.play(it, seconds, duplicates)
    return {
        MEDIAN: median(played.waits),
        LONGEST: max(played.waits),
        DELIVERIES: played.deliveries / max(duplicates, 1),
    }
