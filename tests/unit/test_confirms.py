"""Publishing that returns when RabbitMQ has the message; see tests/integration/test_confirmed_publishes.py."""

import os
from typing import Any

import pytest
from celery import Celery
from kombu import Producer

from idempotent_tasks import confirms
from idempotent_tasks.confirms import CONFIRM_SECONDS, confirm_publishes


@pytest.fixture
def shop() -> Celery:
    """An app on RabbitMQ, with which nothing connects."""
    return Celery("shop", broker="amqp://nobody@127.0.0.1:1//", set_as_current=False)


@pytest.mark.parametrize("broker", ["memory://", "redis://localhost", "sqs://"])
def test_other_brokers_answer_by_themselves(broker: str) -> None:
    """Their producers stay as they are."""
    app = Celery("shop", broker=broker, set_as_current=False)
    before = app.amqp._producer_pool
    assert not confirm_publishes(app)
    assert app.amqp._producer_pool is before


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


def test_a_producer_that_failed_starts_anew(monkeypatch: pytest.MonkeyPatch) -> None:
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
