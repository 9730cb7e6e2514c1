"""How many of thousands of duplicates of a busy key lie in a worker, and what memory they take there, by broker."""

from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import Any, Final
from urllib.parse import urlsplit

from celery import Celery

from benchmarks.speed.bench import Bench, Place
from benchmarks.speed.flood import HOLD, POOLS, Flooded, flooded
from benchmarks.speed.rows import Row, interleaved, rows_of
from idempotent_tasks.messaging.queues import DELAYS

__all__ = ["measure"]

#: Seconds for which the body runs: until all is measured, when the worker is killed.
LONG: Final = 3_600.0
BROKERS: Final = ("Redis", "RabbitMQ, classic queue", "RabbitMQ, quorum queue", "SQS")
MEGABYTE: Final = 1 << 20
MEMORY, HELD = "memory of the worker, more than before", "duplicates that it holds unacknowledged"


def measure(bench: Bench) -> Iterator[Row]:
    """Yield what a worker holds once it has deferred as many messages as there are duplicates."""
    table = bench.table(bench.ministack_url)
    taken = interleaved(1, {broker: partial(_crowd, bench, broker, table) for broker in BROKERS})
    yield from rows_of("crowd", taken, {MEMORY: "MB", HELD: f"of {bench.size(10_000, 20):,}"})


def _crowd(bench: Bench, broker: str, table: str, _: int) -> Mapping[str, float]:
    duplicates = bench.size(10_000, 20)
    bench.say(f"crowd: {duplicates:,} duplicates, {broker}")
    with flooded(_place(bench, broker, table), "threads", POOLS["threads"]) as it:
        it.publish(HOLD, it.app.main, LONG)
        it.wait(lambda: it.counted.noted("begun"))
        before, delivered = _memory(it), it.counted.deliveries
        it.publish(HOLD, it.app.main, LONG, number=duplicates)
        it.wait(lambda: it.counted.deliveries - delivered >= duplicates)
        return {MEMORY: (_memory(it) - before) / MEGABYTE, HELD: _held(it.app, it.place, duplicates)}


def _place(bench: Bench, broker: str, table: str) -> Place:
    place = bench.place("crowd", bench.ministack_url, table)
    if broker == "Redis":
        return place
    if broker == "SQS":
        options = {"region": "us-east-1", "is_secure": False, "wait_time_seconds": 1, "polling_interval": 0.1}
        url = f"sqs://testing:testing@{urlsplit(bench.ministack_url).netloc}"
        # A name for a queue of SQS has no dots.
        return replace(place, broker_url=url, options=options)
    arguments = {"x-queue-type": "quorum"} if "quorum" in broker else {}
    return replace(place, broker_url=bench.amqp_url, queue_arguments=arguments)


def _held(app: Celery, place: Place, duplicates: int) -> int:
    """Return how many duplicates were delivered and not yet acknowledged."""
    with app.connection_for_read() as connection:
        channel = connection.default_channel
        match connection.transport.driver_type:
            case "redis":
                # One of them is the run's own message.
                return int(channel.client.hlen(place.unacknowledged)) - 1
            case "sqs":
                name = "ApproximateNumberOfMessagesNotVisible"
                client = channel.sqs(queue=channel.canonical_queue_name(place.queue))
                url = channel._new_queue(place.queue)  # noqa: SLF001 - kombu has no public way to it
                answer = client.get_queue_attributes(QueueUrl=url, AttributeNames=[name])
                return int(answer["Attributes"][name]) - 1
        delays = [f"{place.queue}.idempotency-delay-{delay}" for delay in DELAYS]
        return duplicates - sum(_ready(connection, each) for each in (place.queue, *delays))


def _ready(connection: Any, queue: str) -> int:
    """Return how many messages lie in a queue of RabbitMQ; 0 if there is none of this name."""
    with connection.channel() as channel, suppress(connection.channel_errors):
        return int(channel.queue_declare(queue, passive=True).message_count)
    return 0


def _memory(it: Flooded) -> float:
    import psutil

    return float(psutil.Process(it.worker.process.pid).memory_full_info().uss)
