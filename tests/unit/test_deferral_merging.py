"""Copies of one waiting message: however often the broker doubles them, one goes on waiting."""

from collections import Counter
from itertools import repeat
from typing import Any

import pytest
from kombu.message import Message

from idempotent_tasks.core.processes import this_process
from idempotent_tasks.core.records import Granted, Record, Status
from idempotent_tasks.events import Deferred, Merged
from idempotent_tasks.messaging import confirms
from tests.support.guarding import done, request_by
from tests.support.inline import UNREACHABLE
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


def deferred_once(shop: Shop) -> Message:
    """Publish, defer, and return the copy."""
    shop.publish()
    shop.worker.run_next()
    (copy,) = generation(shop)
    return copy


def wait_for_last(shop: Shop) -> None:
    """Let time pass until the last copy is due; observers are told its countdown rounded to milliseconds."""
    countdown = [event.countdown_seconds for event in shop.seen if isinstance(event, Deferred)][-1]
    shop.store.clock.sleep(countdown + 0.001)


def test_twins_of_every_generation_become_one(busy: Shop) -> None:
    """A broker that doubles each waiting copy does not double the number of copies: each generation ends with one."""
    copy = deferred_once(busy)
    for _ in range(6):
        twin(busy, copy)
        twin(busy, copy)
        busy.worker.run(copy)
        # The two twins, and the copy that the message itself became.
        assert busy.worker.waiting() == 3
        busy.worker.run_next()
        busy.worker.run_next()
        (copy,) = generation(busy)
    copy.ack()
    assert Counter(type(event).__name__ for event in busy.seen) == {"Deferred": 7, "Merged": 12}


def test_a_twin_is_dropped_only_while_the_successor_is_certain(busy: Shop) -> None:
    """A copy that comes again when its successor is due is deferred: nobody knows what has become of that."""
    copy = deferred_once(busy)
    twin(busy, copy)
    (late,) = generation(busy)
    busy.worker.run(copy)
    wait_for_last(busy)
    busy.worker.run(late)
    assert busy.worker.waiting() == 2
    assert Counter(type(event).__name__ for event in busy.seen) == {"Deferred": 3}


def test_notes_do_not_pile_up(shop: Shop) -> None:
    """A record that many generations wait for knows the last."""
    shop.sells(lambda task: "paid")
    shop.store.claim(request_by("elsewhere", key=shop.key, lease_seconds=10_000))
    copy = deferred_once(shop)
    for _ in range(20):
        shop.worker.run(copy)
        wait_for_last(shop)
        (copy,) = generation(shop)
    copy.ack()
    assert len(shop.record.deferred) == 1


def test_nothing_is_dropped_before_its_copy_is_noted(busy: Shop) -> None:
    """A crash between the publish and the note costs a copy more, and never the only one; the next round merges."""
    copy = deferred_once(busy)
    busy.app.conf.idempotency_store = FaultyStore(busy.store, note_deferral=repeat(down()))
    twin(busy, copy)
    busy.worker.run(copy)
    busy.worker.run_next()
    assert busy.worker.waiting() == 2
    busy.app.conf.idempotency_store = busy.store
    for message in generation(busy):
        twin(busy, message)
        busy.worker.run(message)
    assert busy.worker.waiting() == 4
    for message in generation(busy):
        busy.worker.run(message)
    assert busy.worker.waiting() == 2


def test_nothing_is_noted_without_its_copy(busy: Shop) -> None:
    """A message that could not be published again is delivered again, and must not be taken for its own twin."""
    copy = deferred_once(busy)
    headers = copy.headers
    busy.app.conf.update(UNREACHABLE)
    # As a process that has not published yet.
    this_process().own(confirms._ProducerPools).clear()
    busy.worker.run(copy)
    assert busy.record.deferred == {}
    (again,) = generation(busy)
    assert again.headers["idempotency_copy"] == headers["idempotency_copy"]
    again.ack()


class TestNoProof:
    """A message that only looks like one that waits already is deferred, never dropped."""

    def run_all(self, shop: Shop, messages: list[Message]) -> None:
        """Run messages, each of which must be deferred."""
        for message in messages:
            shop.worker.run(message)
        assert shop.worker.waiting() == len(messages)
        assert not [event for event in shop.seen if isinstance(event, Merged)]

    def test_a_redelivery_of_the_original(self, busy: Shop) -> None:
        """It has no token of its own, so that nothing can be noted of it."""
        busy.publish()
        (message,) = generation(busy)
        twin(busy, message)
        self.run_all(busy, [message, *generation(busy)])

    def test_an_id_that_is_published_again(self, busy: Shop) -> None:
        """A re-drive, or a producer that was not sure of its first try."""
        copy = deferred_once(busy)
        busy.worker.run(copy)
        busy.publish()
        self.run_all(busy, generation(busy))

    @pytest.mark.parametrize("count", [-1, -(10**9), True, 10**12])
    def test_a_count_that_nobody_has_counted(self, busy: Shop, count: int) -> None:
        """What a header says of its message proves nothing."""
        busy.worker.run(deferred_once(busy))
        busy.publish(headers={"idempotency_deferrals": count})
        self.run_all(busy, generation(busy))

    def test_a_message_with_the_headers_of_another(self, shop: Shop) -> None:
        """A publish that hands on all the headers of a copy makes no twin of it."""
        shop.sells(lambda task: "paid")
        shop.deliver(idempotency_key="shared")
        (record,) = shop.store.records()
        shop.store.forget(record.key)
        shop.store.claim(request_by("elsewhere", key=record.key))
        shop.publish(idempotency_key="shared")
        shop.worker.run_next()
        (copy,) = generation(shop)
        headers = {name: each for name, each in copy.headers.items() if name.startswith("idempotency_")}
        shop.worker.run(copy)
        shop.publish(task_id="another", headers=headers)
        self.run_all(shop, generation(shop))

    @pytest.mark.parametrize("way", ["release", "takeover", "commit"])
    def test_the_next_holder_of_the_key(self, busy: Shop, way: str) -> None:
        """What met one claim says nothing once another holds the key: the successor may have run meanwhile."""
        copy = deferred_once(busy)
        twin(busy, copy)
        (late,) = generation(busy)
        busy.worker.run(copy)
        (successor,) = generation(busy)
        successor.ack()
        if way == "takeover":
            busy.store.clock.sleep(40)
        else:
            answer = busy.store.claim(request_by("elsewhere", key=busy.key))
            assert isinstance(answer, Granted)
            busy.store.release(answer.claim, "ValueError")
        if way == "commit":
            busy.store.forget(busy.key)
        assert isinstance(busy.store.claim(request_by("successor", key=busy.key)), Granted)
        self.run_all(busy, [late])

    def test_a_note_of_an_older_version(self, busy: Shop) -> None:
        """It names the delivery and a count, and was believed of any message that looked like it."""
        copy = deferred_once(busy)
        busy.store.note_deferral(busy.key, "elsewhere", f"{busy.id}/0", 7)
        self.run_all(busy, [copy])

    def test_another_writers_record(self, shop: Shop) -> None:
        """Powertools claims without an owner and notes nothing."""
        shop.sells(lambda task: "paid")
        now = shop.store.clock.now()
        shop.store.restore(
            Record(
                key=shop.key,
                status=Status.INPROGRESS,
                expiration=int(now + 60),
                in_progress_expiration=int(now * 1000 + 60_000),
            )
        )
        copy = deferred_once(shop)
        twin(shop, copy)
        self.run_all(shop, [copy, *generation(shop)])


@pytest.mark.parametrize("other", [{"task_id": "another"}, {"retries": 1}], ids=["task id", "retry"])
def test_another_message_waits_for_itself(shop: Shop, other: dict[str, Any]) -> None:
    """Another task id has its own continuation, and a retry follows from the run before: neither is a copy."""
    shop.sells(lambda task: "paid")
    shop.deliver(idempotency_key="shared")
    (record,) = shop.store.records()
    shop.store.forget(record.key)
    shop.store.claim(request_by("elsewhere", key=record.key))
    shop.publish(idempotency_key="shared")
    shop.publish(idempotency_key="shared", **other)
    for message in generation(shop):
        shop.worker.run(message)
    assert shop.worker.waiting() == 2


def test_the_copy_that_waits_gets_the_outcome(busy: Shop) -> None:
    """What was merged into it has its result under the same id."""
    copy = deferred_once(busy)
    twin(busy, copy)
    busy.worker.run(copy)
    busy.worker.run_next()
    claim = busy.store.get(busy.key)
    answer = busy.store.claim(request_by("elsewhere", key=claim.key))
    assert isinstance(answer, Granted)
    busy.store.commit(answer.claim, done('"of the holder"'), 3600)
    assert busy.worker.drain() == 1
    assert busy.result == "of the holder"
