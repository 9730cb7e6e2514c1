"""Where a deferred copy goes: to the queue that its message was consumed from, whatever its exchange leads to."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from celery import signals
from kombu import Exchange, Queue

from idempotent_tasks import InProgressError
from tests.integration.conftest import MakeRig
from tests.support.rig import Rig

BY_ORDER = {"time_limit": 120, "idempotency": {"key": "order"}}
QUORUM = {"x-queue-type": "quorum"}


@contextmanager
def listener(rig: Rig, kind: str) -> Iterator[Any]:
    """Bind a queue of another service to the exchange, for all that is published there; empty and count it."""
    name = f"{rig.config.queue}-audit"
    queue = Queue(name, Exchange(rig.config.queue, type=kind, auto_delete=True), routing_key="#")
    with rig.app.connection_for_read() as connection:
        bound = queue(connection.default_channel)
        bound.declare()
        try:
            yield bound.purge
        finally:
            bound.delete()


def wait_out(rig: Rig, **options: Any) -> None:
    """Have a duplicate deferred twice, and then get its result."""
    rig.journal.shut("before-effect")
    for _ in range(2):
        rig.start_worker()
    original = rig.send("charge", "ord-1", 17, **options)
    rig.journal.wait_for("at-gate")
    duplicate = rig.send("charge", "ord-1", 17, **options)
    rig.journal.wait_for("Deferred", times=2, id=duplicate.id)
    rig.journal.open("before-effect")
    assert [rig.result(original), rig.result(duplicate)] == [17, 17]
    assert rig.journal.count("effect") == 1


@pytest.mark.parametrize(
    ("broker", "arguments"),
    [("redis", {}), ("rabbitmq", {}), ("rabbitmq", QUORUM)],
    indirect=["broker"],
    ids=["redis", "rabbitmq", "rabbitmq-quorum"],
)
def test_another_service_sees_what_was_published_only(make_guarded: MakeRig, arguments: dict[str, Any]) -> None:
    """Two services on one topic exchange: the other's queue has the two publishes, and none of the copies."""
    rig = make_guarded(exchange_type="topic", queue_arguments=arguments, tasks={"charge": BY_ORDER})
    with listener(rig, "topic") as count:
        wait_out(rig, queue=rig.config.queue)
        assert count() == 2


@pytest.mark.parametrize("broker", ["redis", "rabbitmq", "sqs"], indirect=True)
def test_a_key_that_the_producer_chose(make_guarded: MakeRig) -> None:
    """A publish with a routing key of its own, which matches by a pattern only, comes back all the same."""
    rig = make_guarded(exchange_type="topic", tasks={"charge": BY_ORDER})
    with rig.app.connection_for_read() as connection:
        exchange = Exchange(f"{rig.config.queue}-orders", type="topic", auto_delete=True)
        queue = Queue(rig.config.queue, exchange, routing_key="order.#")
        rig.app.conf.task_queues = [queue]
        queue(connection.default_channel).declare()
    wait_out(rig, exchange=exchange.name, routing_key="order.placed.eu")


@pytest.mark.parametrize("broker", ["rabbitmq"], indirect=True)
def test_a_broadcast_waits_in_each_workers_own_queue(make_guarded: MakeRig) -> None:
    """On RabbitMQ each subscriber of a fanout exchange has a queue, and defers into that one."""
    rig = make_guarded(exchange_type="fanout", tasks={"charge": BY_ORDER})
    with listener(rig, "fanout") as count:
        wait_out(rig, queue=rig.config.queue)
        assert count() == 2


@pytest.mark.parametrize("broker", ["redis"], indirect=True)
def test_a_broadcast_on_redis_waits_in_its_slot(make_guarded: MakeRig) -> None:
    """Nothing can be published to one subscriber there: the delivery waits for the one that runs, and replays."""
    rig = make_guarded(exchange_type="fanout", tasks={"charge": BY_ORDER})
    rig.journal.shut("before-effect")
    for _ in range(2):
        rig.start_worker()
    published = rig.send("charge", "ord-1", 17, queue=rig.config.queue)
    rig.journal.wait_for("begun", times=2, id=published.id)
    rig.journal.open("before-effect")
    rig.journal.wait_for("Replayed", id=published.id)
    assert rig.result(published) == 17
    assert rig.journal.count("Deferred") == 0
    assert rig.journal.count("effect") == 1


@pytest.mark.parametrize("broker", ["redis"], indirect=True)
def test_a_broadcast_on_redis_fails_visibly_when_there_is_no_time_left(make_guarded: MakeRig) -> None:
    """A hard time limit would end the wait as a lost message: before that the delivery says what it waits for."""
    rig = make_guarded(exchange_type="fanout", tasks={"charge": {"time_limit": 6, "idempotency": {"key": "order"}}})
    rig.journal.shut("before-effect")
    rig.start_worker(1, tasks={"charge": BY_ORDER})
    # Or the run would end by that limit too, where the second worker is slow to start.
    published = rig.send("charge", "ord-1", 17, queue=rig.config.queue, time_limit=120)
    rig.journal.wait_for("at-gate")
    rig.start_worker(1)
    again = rig.send("charge", "ord-1", 17, queue=rig.config.queue)
    with pytest.raises(InProgressError):
        rig.result(again)
    rig.journal.open("before-effect")
    assert rig.result(published) == 17


@pytest.mark.parametrize("broker", ["redis", "rabbitmq", "sqs"], indirect=True)
def test_a_tracing_sdk_and_a_task_class_in_the_way(make_guarded: MakeRig) -> None:
    """Headers within headers, at each publish: every copy is counted, and the duplicate gets its result."""

    def trace(headers: Any = None, **_: Any) -> None:
        headers.setdefault("headers", {})["sentry-trace"] = "0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-1"

    rig = make_guarded(tasks={"charge": BY_ORDER})
    signals.before_task_publish.connect(trace)
    try:
        wait_out(rig)
    finally:
        signals.before_task_publish.disconnect(trace)
    assert {each["deferrals"] for each in rig.journal.entries("received")} >= {0, 1, 2}
