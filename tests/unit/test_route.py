"""The queue that a message was consumed from, and how its copy waits there."""

import pickle
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from celery import Celery
from kombu import Connection, Consumer, Exchange, Producer, Queue, binding
from kombu.common import Broadcast
from kombu.message import Message

from idempotent_tasks.core.delivery import ReceivedMessage
from idempotent_tasks.messaging.queues import (
    DELAYS,
    DELIVERY_EXCHANGE,
    LONGEST_NAME,
    consumed_queue,
    delay_queue,
    name_queues,
    received_message,
    subscribed_queues,
)

QUORUM = {"x-queue-type": "quorum"}
TOPIC = Exchange("route-shop", type="topic")
#: Five seconds, as 28 words of one bit each (``kombu.transport.native_delayed_delivery.calculate_routing_key``).
DELAYED_ONCE = "0." * 25 + "1.0.1." + "orders"


@pytest.fixture
def connection() -> Iterator[Connection]:
    """A connection of kombu's virtual transport, whose exchanges and queues end with the test."""
    with Connection("memory://") as connection:
        yield connection
        for name in ("billing", "audit"):
            Queue(name).bind(connection.default_channel).delete()


class TestConsuming:
    """The queue is known where a message is received, whatever its exchange leads to."""

    def test_each_queue_has_its_own_copy_of_a_message(self, connection: Connection) -> None:
        """One publish, two queues that are bound to the same key: each delivery names its own."""
        queues = [Queue(name, TOPIC, routing_key="order.#") for name in ("billing", "audit")]
        seen: list[str | None] = []
        channel = connection.default_channel
        name_queues(channel)
        with Consumer(channel, queues, on_message=lambda message: seen.append(received_message(message).queue)):
            Producer(connection.channel(), TOPIC, "order.placed").publish({})
            for _ in queues:
                connection.drain_events(timeout=5)
        assert sorted(map(str, seen)) == ["audit", "billing"]

    def test_nothing_is_known_outside(self, connection: Connection) -> None:
        """What is fetched in another way says nothing, also after a message that was consumed."""
        queue = Queue("billing", TOPIC, routing_key="order.#").bind(connection.default_channel)
        queue.declare()
        Producer(connection.default_channel, TOPIC, "order.placed").publish({})
        message = queue.get()
        assert message is not None
        assert received_message(message).queue is None

    def test_a_callback_that_fails_leaves_nothing_behind(self) -> None:
        """The next message is not taken for one of its queue."""
        channel = SimpleNamespace(basic_consume=lambda **options: options["callback"])
        name_queues(channel)

        def fails(_: Message) -> None:
            raise KeyError

        receive = channel.basic_consume(queue="billing", callback=fails)
        message = Message(b"", channel=channel)
        with pytest.raises(KeyError):
            receive(message)
        assert received_message(message).queue is None

    def test_other_calls_pass(self) -> None:
        """What is no consumer as kombu makes it is left alone."""
        channel = SimpleNamespace(basic_consume=lambda *args, **options: (args, options))
        name_queues(channel)
        assert channel.basic_consume("billing", no_ack=True) == (("billing",), {"no_ack": True})

    def test_fanout_of_redis_has_subscribers(self) -> None:
        """A queue that is bound to such an exchange cannot be published to."""
        channel = SimpleNamespace(basic_consume=lambda **options: options["callback"], _fanout_queues={"news": "x"})
        name_queues(channel)
        seen: list[ReceivedMessage] = []
        for name in ("news", "orders"):
            receive = channel.basic_consume(queue=name, callback=lambda each: seen.append(received_message(each)))
            receive(Message(b"", channel=channel))
        assert [each.is_addressable for each in seen] == [False, True]

    def test_a_large_body_goes_to_the_pool_once(self) -> None:
        """The pool's process is given the body with its task already, and pickle writes one object once."""
        message = Message(b"x" * 100_000, channel=SimpleNamespace())
        assert len(pickle.dumps((message.body, received_message(message)))) < 101_000


@pytest.fixture
def shop() -> Celery:
    """An app whose second queue is not its default one."""
    app = Celery("shop", set_as_current=False)
    app.conf.task_queues = [
        Queue("default", Exchange("default", type="topic"), routing_key="default"),
        Queue("orders", Exchange("orders", type="topic"), routing_key="orders"),
        Queue("billing", TOPIC, routing_key="order.#"),
        Queue("eu", TOPIC, routing_key="*.eu"),
        Queue("plain", Exchange("plain"), routing_key="plain"),
        Queue("news", Exchange("news", type="fanout")),
        Queue("many", bindings=[binding(Exchange("plain"), routing_key=key) for key in ("one", "two")]),
    ]
    app.conf.task_default_queue = "default"
    return app


@pytest.mark.parametrize(
    ("exchange", "routing_key", "queue"),
    [
        pytest.param("", "anything", "anything", id="default-exchange"),
        pytest.param("orders", "orders", "orders", id="topic"),
        pytest.param("route-shop", "order.placed", "billing", id="pattern"),
        pytest.param("route-shop", "order", "billing", id="no-word-for-a-hash"),
        pytest.param("route-shop", "cart.eu", "eu", id="star"),
        pytest.param("plain", "plain", "plain", id="direct"),
        pytest.param("plain", "two", "many", id="one-of-many-bindings"),
        pytest.param("news", "", "news", id="fanout"),
        pytest.param(DELIVERY_EXCHANGE, DELAYED_ONCE, "orders", id="delayed-once"),
        # What kombu before 5.7 makes of the routing key of a message that was delayed once.
        pytest.param(DELIVERY_EXCHANGE, "0." * 27 + "1." + DELAYED_ONCE, "orders", id="delayed-twice"),
    ],
)
def test_one_queue_is_left(shop: Celery, exchange: str, routing_key: str, queue: str) -> None:
    """Where only one queue of the worker can be meant, it is."""
    assert consumed_queue(shop, {"exchange": exchange, "routing_key": routing_key}) == queue


@pytest.mark.parametrize(
    "delivery_info",
    [
        {},
        {"exchange": "elsewhere", "routing_key": "orders"},
        {"exchange": "plain", "routing_key": "plainer"},
        {"exchange": "route-shop", "routing_key": "cart.us"},
        {"exchange": "route-shop", "routing_key": "order.eu"},
        {"exchange": "", "routing_key": ""},
    ],
    ids=["eager", "unknown-exchange", "unknown-key", "unknown-topic", "two-queues", "nothing"],
)
def test_nothing_is_guessed(shop: Celery, delivery_info: dict[str, str]) -> None:
    """Where none is known, or any of several may be meant, no queue is."""
    assert consumed_queue(shop, delivery_info) is None


def test_only_queues_that_the_worker_consumes_count(shop: Celery) -> None:
    """Of two that a message can be in, the other is another worker's."""
    shop.amqp.queues.select(["billing"])
    assert consumed_queue(shop, {"exchange": "route-shop", "routing_key": "order.eu"}) == "billing"


@pytest.mark.parametrize(("transport", "found"), [("redis", ["bcast", "news"]), ("amqp", []), ("sqs", [])])
def test_queues_of_subscribers(shop: Celery, transport: str, found: list[str]) -> None:
    """On Redis a fanout is no queue; elsewhere each subscriber has one."""
    shop.conf.task_queues += [Broadcast("bcast", queue="bcast", unique=False)]
    assert subscribed_queues(shop, transport) == found


class TestDelays:
    """With quorum queues a copy waits in the broker, and can come out in one place only."""

    @pytest.fixture
    def quorum(self, shop: Celery) -> Celery:
        """The same with a quorum queue."""
        shop.amqp.queues["orders"].queue_arguments = QUORUM
        return shop

    @pytest.mark.parametrize(("countdown", "delay"), [(1.0, 1), (1.99, 1), (2.5, 2), (9.0, 8), (37.0, 30)])
    def test_a_copy_is_never_late(self, quorum: Celery, countdown: float, delay: int) -> None:
        """Of the delays that there are, the longest that is no longer than the countdown."""
        found = delay_queue(quorum, "orders", countdown)
        assert found is not None
        assert (found.delay, found.declaration["arguments"]["x-message-ttl"]) == (delay, delay * 1000)

    def test_it_comes_out_in_its_queue(self, quorum: Celery) -> None:
        """By the default exchange, to which nothing else can be bound."""
        found = delay_queue(quorum, "orders", 5)
        assert found is not None
        arguments = found.declaration["arguments"]
        assert arguments["x-dead-letter-exchange"] == ""
        assert arguments["x-dead-letter-routing-key"] == "orders"
        assert arguments["x-dead-letter-strategy"] == "at-least-once"
        assert (found.declaration["durable"], arguments["x-queue-type"]) == (True, "quorum")

    def test_its_type_is_that_of_celerys_own_delays(self, quorum: Celery) -> None:
        """Where RabbitMQ has no quorum queues for that."""
        quorum.conf.broker_native_delayed_delivery_queue_type = "classic"
        found = delay_queue(quorum, "orders", 5)
        assert found is not None
        assert found.declaration["arguments"]["x-queue-type"] == "classic"
        assert "x-dead-letter-strategy" not in found.declaration["arguments"]

    def test_names_are_not_too_long(self, quorum: Celery) -> None:
        """Each queue and each delay has its own name, which RabbitMQ takes."""
        names = set()
        for queue in ("orders", "x" * 250, "y" * 250):
            for delay in DELAYS:
                found = delay_queue(quorum, queue, delay)
                assert found is not None
                assert len(found.name) <= LONGEST_NAME
                names.add(found.name)
        assert len(names) == 3 * len(DELAYS)

    @pytest.mark.parametrize("countdown", [0.1, 0.99])
    def test_a_short_countdown_is_the_workers(self, quorum: Celery, countdown: float) -> None:
        """The broker counts whole seconds."""
        assert delay_queue(quorum, "orders", countdown) is None

    def test_without_quorum_queues_a_worker_holds_it(self, shop: Celery) -> None:
        """It takes as many messages more."""
        assert delay_queue(shop, "orders", 5) is None


def received(**given: Any) -> ReceivedMessage:
    """Return what a worker received."""
    return ReceivedMessage(
        **{
            "queue": "q",
            "body": b"",
            "content_type": "a/b",
            "content_encoding": "utf-8",
            "headers": {},
            "properties": {},
            **given,
        }
    )


def test_it_can_be_pickled() -> None:
    """It goes to the pool's process with the request."""
    message = received(headers={"task": "shop.charge"}, returns=2)
    assert pickle.loads(pickle.dumps(message)) == message
