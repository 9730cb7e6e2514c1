"""Publishing by a worker's process; see tests/integration/test_confirmed_publishes.py."""

import os
from collections.abc import Iterator
from typing import Any

import pytest
from celery import Celery
from celery._state import _task_stack
from celery.exceptions import Reject
from kombu import Producer
from kombu.exceptions import EncodeError, OperationalError

from idempotent_tasks.messaging import callbacks, confirms
from idempotent_tasks.messaging.confirms import CONFIRM_SECONDS, confirm_publishes


@pytest.fixture
def shop() -> Celery:
    """An app on RabbitMQ, with which nothing connects."""
    return Celery("shop", broker="amqp://nobody@127.0.0.1:1//", set_as_current=False)


@pytest.mark.parametrize("broker", ["memory://", "redis://localhost", "sqs://"])
def test_other_brokers_answer_by_themselves(broker: str) -> None:
    """They are asked for nothing."""
    app = Celery("shop", broker=broker, set_as_current=False)
    assert not confirm_publishes(app)
    assert "confirm_publish" not in app.amqp.producer_pool.connections.connection.transport_options


def test_every_publish_of_the_app_is_confirmed(shop: Celery) -> None:
    """By the pool that Celery takes its producers from, with the app's own options."""
    shop.conf.broker_transport_options = {"client_properties": {"a": 1}}
    assert confirm_publishes(shop)
    pool = shop.amqp.producer_pool
    assert pool.connections.connection.transport_options == {"client_properties": {"a": 1}, "confirm_publish": True}
    assert confirm_publishes(shop)
    assert shop.amqp.producer_pool is pool


def test_a_pool_that_celery_has_forgotten_is_there_again(shop: Celery) -> None:
    """As in a child after its fork, where it is another one."""
    confirm_publishes(shop)
    pool = shop.amqp.producer_pool
    shop.amqp._producer_pool = None
    confirm_publishes(shop)
    assert shop.amqp.producer_pool is pool


def test_another_process_has_another_pool(shop: Celery, monkeypatch: pytest.MonkeyPatch) -> None:
    """Connections are not shared with a parent."""
    confirm_publishes(shop)
    pool = shop.amqp.producer_pool
    monkeypatch.setattr(os, "getpid", lambda: -1)
    confirm_publishes(shop)
    assert shop.amqp.producer_pool is not pool


@pytest.mark.parametrize(
    ("given", "waits"), [({}, CONFIRM_SECONDS), ({"timeout": None}, CONFIRM_SECONDS), ({"timeout": 9}, 9)]
)
def test_no_confirmation_is_waited_for_forever(
    monkeypatch: pytest.MonkeyPatch, given: dict[str, Any], waits: float
) -> None:
    """A broker that says nothing must not hold a body for good."""
    asked: list[Any] = []
    monkeypatch.setattr(Producer, "publish", lambda _, body, **options: asked.append(options["timeout"]))
    confirms._ConfirmedProducer(None).publish("body", **given)
    assert asked == [waits]


def test_a_producer_that_failed_starts_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """A confirmation that comes late would be taken for that of the next message."""
    collected: list[str] = []

    class Connection:
        def collect(self) -> None:
            collected.append("connection")

    def fail(*_: Any, **__: Any) -> None:
        raise TimeoutError

    monkeypatch.setattr(Producer, "publish", fail)
    monkeypatch.setattr(Producer, "connection", Connection())
    with pytest.raises(TimeoutError):
        confirms._ConfirmedProducer(None).publish("body")
    assert collected == ["connection"]


def charge() -> None:
    """Be a body."""


class TestWhatFollows:
    """A broker that does not take what follows a finished task."""

    @pytest.fixture
    def task(self) -> Iterator[Any]:
        """A task whose message is being handled, and that goes back by raising `Reject`."""
        app = Celery("shop", broker="memory://", set_as_current=False)
        task = app.task(charge, name="shop.charge", shared=False)
        task.push_request(id="4f1c")
        _task_stack.push(task)
        yield task
        _task_stack.pop()
        task.pop_request()

    def publish(self, monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
        """Publish to a broker that raises an error."""

        def fail(*_: Any, **__: Any) -> None:
            raise error

        monkeypatch.setattr(Producer, "publish", fail)
        confirms._CallbackProducer(None).publish("body")

    @pytest.mark.parametrize("error", [OperationalError("away"), ConnectionResetError(), TimeoutError()], ids=repr)
    def test_its_message_goes_back(self, task: Any, monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
        """By what the delivery has for it, which knows the error."""
        callbacks.notify_when_sent(task.request, lambda: None, lambda error: Reject(repr(error), requeue=True))
        with pytest.raises(Reject) as raised:
            self.publish(monkeypatch, error)
        assert raised.value.requeue
        assert raised.value.reason == repr(error)

    def test_what_cannot_be_sent_at_all_is_no_reason(self, task: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        """It would come back again and again."""
        callbacks.notify_when_sent(task.request, lambda: None, lambda error: Reject(repr(error), requeue=True))
        with pytest.raises(EncodeError):
            self.publish(monkeypatch, EncodeError())

    def test_a_body_gets_the_error(self, task: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        """What the body itself publishes, and what comes after the last that follows, is its own."""
        with pytest.raises(OperationalError):
            self.publish(monkeypatch, OperationalError())
        callbacks.notify_when_sent(task.request, lambda: None, lambda error: Reject(repr(error), requeue=True))
        callbacks.sent(task.request)
        with pytest.raises(OperationalError):
            self.publish(monkeypatch, OperationalError())

    def test_a_process_without_a_task_gets_the_error(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """A producer, for example, that has the same app."""
        with pytest.raises(OperationalError):
            self.publish(monkeypatch, OperationalError())
