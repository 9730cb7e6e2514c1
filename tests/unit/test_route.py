"""The queue that a deferred message goes back to, where the broker delays messages itself."""

from typing import Any

import pytest
from celery import Celery
from kombu import Exchange, Queue

from idempotent_tasks.route import DELIVERY_EXCHANGE, kept_route

QUORUM = {"x-queue-type": "quorum"}
#: Five seconds, as 28 words of one bit each (``kombu.transport.native_delayed_delivery.calculate_routing_key``).
DELAYED_ONCE = "0." * 25 + "1.0.1." + "orders"


def queue(name: str, **options: Any) -> Queue:
    """Return a queue of a topic exchange."""
    return Queue(name, Exchange(name, type="topic"), routing_key=name, **options)


@pytest.fixture
def shop() -> Celery:
    """An app whose second queue is not its default one."""
    app = Celery("shop", set_as_current=False)
    app.conf.task_queues = [queue("default", queue_arguments=QUORUM), queue("orders", queue_arguments=QUORUM)]
    app.conf.task_default_queue = "default"
    return app


@pytest.mark.parametrize(
    ("exchange", "routing_key"),
    [
        pytest.param("orders", "orders", id="not-delayed"),
        pytest.param(DELIVERY_EXCHANGE, DELAYED_ONCE, id="delayed-once"),
        # What kombu before 5.7 makes of the routing key of a message that was delayed once.
        pytest.param(DELIVERY_EXCHANGE, "0." * 27 + "1." + DELAYED_ONCE, id="delayed-twice"),
    ],
)
def test_a_message_goes_back_to_its_own_queue(shop: Celery, exchange: str, routing_key: str) -> None:
    """The queue is found by the routing key without its delays, whatever the app's default queue is."""
    assert kept_route(shop, {"exchange": exchange, "routing_key": routing_key})["queue"].name == "orders"


@pytest.mark.parametrize(
    "delivery_info",
    [{}, {"exchange": "", "routing_key": "orders"}, {"exchange": "elsewhere", "routing_key": "orders"}],
    ids=["eager", "default-exchange", "unknown-exchange"],
)
def test_an_unknown_origin_is_left_to_celery(shop: Celery, delivery_info: dict[str, str]) -> None:
    """Nothing is guessed about a message that came through no exchange of the app's queues."""
    assert kept_route(shop, delivery_info) == {}


def test_other_brokers_are_left_to_celery(shop: Celery) -> None:
    """Without a quorum queue, exchange and routing key are enough."""
    shop.conf.task_queues = [queue("default"), queue("orders")]
    assert kept_route(shop, {"exchange": "orders", "routing_key": "orders"}) == {}
