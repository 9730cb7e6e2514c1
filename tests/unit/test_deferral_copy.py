"""What a copy is made of, and that nothing on the way from the deferral to the queue can change it."""

import json
from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import Any

import pytest
from celery import Celery, signals
from celery.worker.request import Request
from kombu import Connection
from kombu.compression import compress
from kombu.message import Message
from kombu.transport import memory

from idempotent_tasks import IdempotentTask
from idempotent_tasks.core.delivery import ReceivedMessage
from idempotent_tasks.events import Deferred
from idempotent_tasks.messaging.copies import message_copy
from tests.support.guarding import request_by
from tests.support.shop import Shop


class StrippingTask(IdempotentTask):
    """A class whose publishes say what it wants, and nothing of what they were asked."""

    abstract = True

    def apply_async(self, args: Any = None, kwargs: Any = None, **options: Any) -> Any:  # type: ignore[override]
        """Publish with other headers, to another queue, under no condition twice."""
        options["headers"] = {"tenant": "acme"}
        return super().apply_async(args, kwargs, **options)


class PlainRequest(Request):
    """Celery's own request, as a task's class may have it."""


def pay(a: int = 0, b: int = 0) -> str:
    """Do nothing of note."""
    return "paid"


@pytest.fixture
def busy(shop: Shop) -> Shop:
    """A shop whose key another worker holds."""
    shop.sells(lambda task: "paid")
    shop.claim_elsewhere()
    return shop


def deferred(shop: Shop) -> tuple[Message, Message]:
    """Run the next message, which must be deferred, and return it and its copy."""
    original = shop.worker.run_next()
    assert original.acknowledged
    assert isinstance(shop.seen[-1], Deferred)
    copy = shop.worker.take()
    copy.ack()
    return original, copy


class TestTheWay:
    """Past everything that publishes go through."""

    def test_a_class_with_an_apply_async_of_its_own(self, app: Celery, shop: Shop) -> None:
        """It is not asked, so that it strips nothing."""
        shop.task = app.task(pay, base=StrippingTask, name="shop.charge", shared=False)
        shop.claim_elsewhere()
        shop.publish()
        _, copy = deferred(shop)
        assert copy.headers["idempotency_deferrals"] == 1
        assert copy.headers["tenant"] == "acme"

    def test_routes_and_signals(self, app: Celery, busy: Shop) -> None:
        """A route of the app's is for its callers, and so is what is done before each publish."""
        busy.publish()
        app.conf.task_routes = {"shop.*": {"queue": "elsewhere"}}
        asked: list[str] = []

        def strip(headers: Any = None, sender: str = "", **_: Any) -> None:
            asked.append(sender)
            headers.clear()

        signals.before_task_publish.connect(strip)
        try:
            original, copy = deferred(busy)
        finally:
            signals.before_task_publish.disconnect(strip)
        assert asked == []
        assert copy.delivery_info["routing_key"] == original.delivery_info["routing_key"]

    def test_a_task_around_it_is_not_its_parent(self, busy: Shop) -> None:
        """Celery takes the task that runs for the parent of what is published meanwhile."""
        busy.publish()
        original, copy = deferred(busy)
        assert copy.headers["parent_id"] is original.headers["parent_id"] is None
        assert copy.headers["root_id"] == original.headers["root_id"]

    def test_a_tracers_headers(self, busy: Shop) -> None:
        """An inner dict named ``headers`` stays as it is, and each copy is still counted."""
        busy.publish(headers={"headers": {"x-trace-id": "abc"}})
        for count in (1, 2, 3):
            busy.worker.run_next()
            copy = busy.worker.take()
            assert copy.headers["headers"] == {"x-trace-id": "abc"}
            assert copy.headers["idempotency_deferrals"] == count
            copy.requeue()
        busy.worker.take().ack()

    def test_arguments_that_the_body_has_changed(self, app: Celery, shop: Shop) -> None:
        """A run that lost its claim meanwhile is deferred as it arrived."""

        def change(items: list[int]) -> None:
            items.clear()
            shop.store.forget(shop.key)
            shop.store.claim(request_by("elsewhere", key=shop.key))

        shop.task = app.task(change, base=IdempotentTask, name="shop.charge", shared=False)
        shop.publish(args=([1, 2],))
        _, copy = deferred(shop)
        assert copy.payload[0] == [[1, 2]]


@pytest.mark.parametrize("headers", [{}, {"tenant": "acme"}, {"headers": {"x-trace-id": "abc"}}], ids=repr)
def test_a_request_of_another_class(app: Celery, shop: Shop, headers: dict[str, Any]) -> None:
    """Where no parent process of ours took the message, the copy is rebuilt from all that the request has."""
    shop.task = app.task(pay, base=IdempotentTask, name="shop.charge", shared=False, Request=PlainRequest)
    shop.claim_elsewhere()
    shop.publish(
        args=(1,),
        kwargs={"b": 2},
        headers=headers,
        link=app.signature("shop.note"),
        chain=[app.signature("shop.note")],
        time_limit=30,
        priority=3,
        shadow="a charge",
        argsrepr="(***)",
        tenant_property="kept",
        stamped_headers=["batch"],
        batch="b7",
    )
    original, copy = deferred(shop)
    changed = ("eta", "idempotency_deferrals", "idempotency_copy", "idempotency_waits_for")
    assert {name: each for name, each in copy.headers.items() if name not in changed} == {
        name: each for name, each in original.headers.items() if name not in changed
    }
    assert copy.payload == original.payload
    assert copy.properties["tenant_property"] == "kept"
    assert copy.properties["priority"] == original.properties["priority"] == 3
    assert copy.headers["idempotency_deferrals"] == 1


def test_a_message_of_protocol_1(app: Celery, busy: Shop) -> None:
    """Old producers say everything in the body; the copy does so too, and is counted."""
    body = {"task": "shop.charge", "id": busy.id, "args": [], "kwargs": {}, "retries": 0, "eta": None}
    with app.amqp.producer_pool.acquire(block=True) as producer:
        producer.publish(body, routing_key=app.conf.task_default_queue, exchange="", serializer="json")
    for count in (1, 2):
        message = busy.worker.take()
        busy.worker.run(message)
        copy = busy.worker.take()
        assert json.loads(copy.body) == body
        assert copy.headers["idempotency_deferrals"] == count
        assert copy.headers["eta"]
        copy.requeue()
    busy.worker.take().ack()


def received(**given: Any) -> ReceivedMessage:
    """Return what a worker received."""
    message = {"queue": "q", "body": b"[]", "content_type": "application/json", "content_encoding": "utf-8"}
    return ReceivedMessage(**{**message, "headers": {}, "properties": {}, **given})


def copied(message: ReceivedMessage, prepare: Callable[..., Any] = lambda body, **rest: {"body": body, **rest}) -> Any:
    """Return the copy of a message as a channel of RabbitMQ or of a virtual transport gets it."""
    connection = Connection("amqp://alice@localhost//")
    return message_copy(connection, SimpleNamespace(prepare_message=prepare), message, {"idempotency_deferrals": 1})


class TestWhatStays:
    """Of headers, body and properties."""

    def test_every_property_of_amqp(self) -> None:
        """Those that say what the message is; how it was delivered is another matter."""
        kept = {
            "delivery_mode": 2,
            "correlation_id": "4f1c",
            "reply_to": "caller",
            "expiration": "60000",
            "message_id": "m-1",
            "type": "order",
            "app_id": "shop",
            "MessageGroupId": "g",
            "x-anything": 1,
        }
        passing = {
            "application_headers": {"a": 1},
            "content_type": "x",
            "content_encoding": "y",
            "delivery_tag": "d",
            "delivery_info": {"exchange": "e"},
            "body_encoding": "base64",
            "MessageDeduplicationId": "once",
            "DelaySeconds": 60,
            "delay_seconds": 60,
            "idempotency_message": None,
        }
        message = copied(received(properties={**kept, **passing, "priority": 7}))
        assert message["properties"] == kept
        assert message["priority"] == 7
        assert (message["content_type"], message["content_encoding"]) == ("application/json", "utf-8")

    @pytest.mark.parametrize(("user", "stays"), [("alice", True), ("bob", False)])
    def test_a_user_id_is_the_connections_own(self, user: str, *, stays: bool) -> None:
        """RabbitMQ takes no message in another's name, and closes the channel on one."""
        assert ("user_id" in copied(received(properties={"user_id": user}))["properties"]) is stays

    def test_what_the_broker_adds_goes(self) -> None:
        """A message that was dead-lettered once would be dropped as one that goes round in circles."""
        added = {"x-death": [{}], "x-first-death-queue": "q", "x-delivery-count": 3, "redelivered": True}
        headers = copied(received(headers={**added, "x-tenant": "acme"}))["headers"]
        assert headers == {"x-tenant": "acme", "idempotency_deferrals": 1}

    def test_compression(self) -> None:
        """The body that kombu has decompressed is compressed again, in the same way."""
        body, compression = compress(b"[1]" * 1000, "zlib")
        message = copied(received(body=b"[1]" * 1000, headers={"compression": compression}))
        assert (message["body"], message["headers"]["compression"]) == (body, compression)

    def test_text_is_text_and_bytes_are_bytes(self) -> None:
        """As kombu's serializers write it: a virtual transport may be told to send text as it is."""
        assert copied(received(body=b"[]"))["body"] == "[]"
        assert copied(received(body=b"\x80", content_encoding="binary"))["body"] == b"\x80"

    def test_the_message_itself_is_left_alone(self) -> None:
        """It may have to go back to its queue."""
        headers, properties = {"x-death": 1, "compression": "application/x-gzip"}, {"delivery_tag": 1, "priority": 3}
        copied(received(headers=headers, properties=properties))
        assert headers == {"x-death": 1, "compression": "application/x-gzip"}
        assert properties == {"delivery_tag": 1, "priority": 3}

    @pytest.mark.parametrize(
        ("properties", "expected"),
        [
            ({}, {}),
            ({"delivery_info": {"sqs_message": {"Attributes": {"MessageGroupId": "g"}}}}, {"MessageGroupId": "g"}),
            (
                {"MessageGroupId": "own", "delivery_info": {"sqs_message": {"Attributes": {"MessageGroupId": "g"}}}},
                {"MessageGroupId": "own"},
            ),
            (
                {"delivery_info": {"sqs_message": {"MessageAttributes": {"tenant": {"StringValue": "acme"}}}}},
                {"message_attributes": {"tenant": {"StringValue": "acme"}}},
            ),
            ({"delivery_info": {"sqs_message": "x"}}, {}),
        ],
        ids=["none", "group", "own-group", "attributes", "no-message"],
    )
    def test_what_sqs_keeps_beside_the_body(self, properties: Mapping[str, Any], expected: Mapping[str, Any]) -> None:
        """The group orders messages; kombu sends attributes from a property that no received message has."""
        assert copied(received(properties=properties))["properties"] == expected


class TestOnSqs:
    """The queue delays the copy, where it can; the queues of these tests are in memory, with the names of SQS's."""

    @pytest.fixture
    def named(self, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
        """Makes every queue one of SQS, whose URL ends as told."""

        def name(ending: str) -> None:
            monkeypatch.setattr(memory.Channel, "_new_queue", lambda _, queue, **__: f"https://sqs/{queue}{ending}")
            for attribute in ("sqs", "canonical_queue_name"):
                monkeypatch.setattr(memory.Channel, attribute, None, raising=False)

        return name

    def test_whole_seconds_and_no_eta(self, busy: Shop, named: Callable[[str], None]) -> None:
        """No ETA, also none of the message's own, for which a worker would hold it; longer each time."""
        named("")
        busy.publish(countdown=5)
        delays = []
        for _ in range(3):
            copy = self.defer(busy)
            assert copy.headers["eta"] is None
            delays.append(copy.properties["DelaySeconds"])
            assert countdown_of(busy) == delays[-1]
            copy.requeue()
        assert delays in ([1, 2, 4], [1, 2, 5])
        busy.worker.take().ack()

    def test_a_fifo_queue_delays_no_singlemessage_copy(self, busy: Shop, named: Callable[[str], None]) -> None:
        """A worker holds the copy for its ETA."""
        named(".fifo")
        busy.publish()
        copy = self.defer(busy)
        assert copy.headers["eta"] is not None
        assert "DelaySeconds" not in copy.properties
        copy.ack()

    def test_less_than_a_second(self, busy: Shop, named: Callable[[str], None]) -> None:
        """SQS takes whole seconds, and the message expires before the second is over."""
        named("")
        busy.publish(expires=1.5)
        copy = self.defer(busy)
        assert copy.headers["eta"] is not None
        assert "DelaySeconds" not in copy.properties
        assert countdown_of(busy) < 1
        copy.ack()

    @staticmethod
    def defer(shop: Shop) -> Message:
        """Run the next message, which must be deferred, and return its copy, not acknowledged."""
        shop.worker.run_next()
        return shop.worker.take()


def countdown_of(shop: Shop) -> float:
    """Return the countdown of the last deferral in seconds."""
    assert isinstance(shop.seen[-1], Deferred)
    return shop.seen[-1].countdown_seconds
