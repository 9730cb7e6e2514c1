"""How the flood's neighbours get their priority: each broker counts the other way round."""

from typing import Any

import pytest

from benchmarks.speed.fairness import MOST_PRIORITY, FairnessPlace, build_app
from benchmarks.speed.flood import HOLD, NEIGHBOUR


def place(**given: Any) -> FairnessPlace:
    """Return a place at which nothing is started."""
    named = {
        "contender": "fairness",
        "prefix": "speed.1.fairness",
        "broker_url": "redis://localhost:1/0",
        "result_backend": "redis://localhost:1/1",
        "endpoint": "http://localhost:1",
        "table": "none",
        "directory": "/nowhere",
        "amqp_url": "",
        "priorities": False,
        "own_queue": False,
    }
    return FairnessPlace(**{**named, **given})


@pytest.mark.parametrize("amqp_url", ["", "amqp://localhost:1//"], ids=["redis", "rabbitmq"])
def test_the_flood_comes_last(amqp_url: str) -> None:
    """Redis takes the least priority first, RabbitMQ the greatest, from a queue that is declared with priorities."""
    at = place(amqp_url=amqp_url, priorities=True)
    flood, other = at.message_priorities[HOLD], at.message_priorities[NEIGHBOUR]
    assert (flood, other) == ((0, MOST_PRIORITY) if amqp_url else (MOST_PRIORITY, 0))
    app = build_app(at)
    (queue,) = app.conf.task_queues
    assert queue.queue_arguments == ({"x-max-priority": MOST_PRIORITY} if amqp_url else None)
    assert ("priority_steps" in app.conf.broker_transport_options) is not bool(amqp_url)
    assert app.conf.broker_url == (amqp_url or at.broker_url)


def test_without_priorities_nothing_is_set() -> None:
    """The other cases compare with what users have who set nothing."""
    at = place()
    assert set(at.message_priorities.values()) == {None}
    assert "priority_steps" not in build_app(at).conf.broker_transport_options
    assert at.flood_queue == at.queue


def test_the_flood_may_have_a_queue_of_its_own() -> None:
    """Its messages go there, and all others to the usual one."""
    at = place(own_queue=True)
    app = build_app(at)
    assert app.conf.task_routes == {HOLD: {"queue": at.flood_queue}, NEIGHBOUR: {"queue": at.queue}}
    assert [queue.name for queue in app.conf.task_queues] == [at.queue, at.flood_queue]
    assert at.flood_queue != at.queue
