"""Copies of one waiting message: however often the broker doubles them, one goes on waiting."""

from collections import Counter
from itertools import repeat
from typing import Any

import pytest
from kombu.message import Message

from idempotent_tasks.events import Merged
from idempotent_tasks.records import Granted
from tests.support.guarding import done, wish
from tests.support.shop import Shop
from tests.support.stores import FaultyStore, down


@pytest.fixture
def busy(shop: Shop) -> Shop:
    """A shop whose key another worker holds."""
    shop.sells(lambda task: "paid")
    shop.claim_elsewhere()
    return shop


def twin(shop: Shop, message: Message) -> None:
    """Put a copy of a message into the queue, as a visibility timeout does."""
    with shop.app.amqp.producer_pool.acquire(block=True) as producer:
        producer.publish(
            message.body,
            routing_key=message.delivery_info["routing_key"],
            exchange=message.delivery_info["exchange"],
            content_type=message.content_type,
            content_encoding=message.content_encoding,
            headers=message.headers,
            correlation_id=message.properties["correlation_id"],
        )


def generation(shop: Shop) -> list[Message]:
    """Take every waiting message."""
    return [shop.worker.take() for _ in range(shop.worker.waiting())]


def test_twins_of_every_generation_become_one(busy: Shop) -> None:
    """A broker that doubles each waiting copy does not double the number of copies: each generation ends with one."""
    busy.publish()
    for _ in range(6):
        for message in generation(busy):
            twin(busy, message)
            twin(busy, message)
            busy.worker.run(message)
        # The two twins, and the copy that the message itself became.
        assert busy.worker.waiting() == 3
        busy.worker.run_next()
        busy.worker.run_next()
        assert busy.worker.waiting() == 1
    assert Counter(type(event).__name__ for event in busy.seen) == {"Deferred": 6, "Merged": 12}


def test_a_twin_that_comes_late_is_dropped_too(busy: Shop) -> None:
    """A copy of the first generation, held somewhere for long, has nothing to add to the fifth."""
    busy.publish()
    (first,) = generation(busy)
    twin(busy, first)
    (late,) = generation(busy)
    busy.worker.run(first)
    for _ in range(4):
        busy.worker.run_next()
    busy.worker.run(late)
    assert busy.worker.waiting() == 1
    assert isinstance(busy.seen[-1], Merged)
    assert late.acknowledged


def test_nothing_is_dropped_before_its_copy_is_noted(busy: Shop) -> None:
    """A crash between the publish and the note costs a copy more, and never the only one; the next round merges."""
    busy.app.conf.idempotency_store = FaultyStore(busy.store, note_deferral=repeat(down()))
    busy.publish()
    (message,) = generation(busy)
    twin(busy, message)
    busy.worker.run(message)
    busy.worker.run_next()
    assert busy.worker.waiting() == 2
    busy.app.conf.idempotency_store = busy.store
    busy.worker.run_next()
    busy.worker.run_next()
    assert busy.worker.waiting() == 1


@pytest.mark.parametrize("other", [{"task_id": "another"}, {"retries": 1}], ids=["task id", "retry"])
def test_another_message_waits_for_itself(shop: Shop, other: dict[str, Any]) -> None:
    """Another task id has its own continuation, and a retry follows from the run before: neither is a copy."""
    shop.sells(lambda task: "paid")
    shop.deliver(idempotency_key="shared")
    (record,) = shop.store.records()
    shop.store.forget(record.key)
    shop.store.claim(wish("elsewhere", key=record.key))
    shop.publish(idempotency_key="shared")
    shop.publish(idempotency_key="shared", **other)
    for message in generation(shop):
        shop.worker.run(message)
    assert shop.worker.waiting() == 2


def test_the_copy_that_waits_gets_the_outcome(busy: Shop) -> None:
    """What was merged into it has its result under the same id."""
    busy.publish()
    (message,) = generation(busy)
    twin(busy, message)
    busy.worker.run(message)
    busy.worker.run_next()
    claim = busy.store.get(busy.key)
    answer = busy.store.claim(wish("elsewhere", key=claim.key))
    assert isinstance(answer, Granted)
    busy.store.commit(answer.claim, done('"of the holder"'), 3600)
    assert busy.worker.drain() == 1
    assert busy.result == "of the holder"
