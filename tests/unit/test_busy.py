"""A key that was just seen busy: other duplicates are deferred without a request, and nothing else is decided by it."""

from typing import Any

import pytest
from celery import Celery
from kombu.message import Message

from idempotent_tasks import Idempotency, IdempotentTask
from idempotent_tasks.core.busy import FRESH_SECONDS, MOST_KEYS, BusyKeys
from idempotent_tasks.core.records import Busy, Claim, Granted, reservation_owner
from idempotent_tasks.errors import PayloadMismatchError
from idempotent_tasks.events import Deferred, Event
from idempotent_tasks.testing import FakeClock, MemoryStore
from tests.support.guarding import request_by
from tests.support.inline import InlineWorker
from tests.support.shop import Shop
from tests.support.stores import FaultyStore

LATER = FRESH_SECONDS + 0.01


class Duplicates:
    """A key that another worker holds, and the deliveries of it that this worker gets."""

    def __init__(self, app: Celery, worker: InlineWorker, store: MemoryStore, **options: Any) -> None:
        self._store, self._worker = FaultyStore(store), worker
        app.conf.idempotency_store = self._store
        self.runs = 0
        #: What was deferred, taken off the queue.
        self.copies: list[Message] = []

        def charge(order: str, amount: int = 5) -> int:
            self.runs += 1
            return amount

        policy = Idempotency(**{"key": "order", **options})
        self.task = app.task(charge, name="shop.charge", base=IdempotentTask, shared=False, idempotency=policy)
        self.task.apply(("ord-1",))
        (record,) = store.records()
        self.key, self.validation = record.key, record.validation
        store.forget(self.key)
        self.claim = self.hold()
        self.runs = 0

    def hold(self, **about: Any) -> Claim:
        """Let another worker hold the key."""
        answer = self._store.inner.claim(request_by("elsewhere", key=self.key, validation=self.validation, **about))
        assert isinstance(answer, Granted)
        return answer.claim

    def deliver(self, amount: int = 5, **options: Any) -> list[str]:
        """Publish, and run that message; return what was asked of the store meanwhile."""
        before = len(self._store.calls)
        self.task.apply_async(("ord-1", amount), **options)
        message = self._worker.run_next()
        assert message.acknowledged
        while self._worker.waiting():
            self.copies.append(self._worker.take())
        return self._store.calls[before:]

    def deliver_copy(self) -> list[str]:
        """Run the oldest copy, and return what was asked of the store meanwhile."""
        before = len(self._store.calls)
        self._worker.run(self.copies.pop(0))
        return self._store.calls[before:]


@pytest.fixture
def duplicates(app: Celery, worker: InlineWorker, store: MemoryStore) -> Duplicates:
    """A key that is held elsewhere."""
    return Duplicates(app, worker, store)


def test_one_request_for_the_duplicates_of_a_moment(
    duplicates: Duplicates, clock: FakeClock, seen: list[Event]
) -> None:
    """All are deferred; the process asks again once the answer is not fresh any more."""
    asked = [duplicates.deliver() for _ in range(5)]
    clock.advance(LATER)
    asked += [duplicates.deliver() for _ in range(2)]
    assert asked == [["claim"], [], [], [], [], ["claim"], []]
    assert [each.reason for each in seen if isinstance(each, Deferred)] == ["busy"] * 7
    assert len(duplicates.copies) == 7


def test_a_copy_asks(duplicates: Duplicates) -> None:
    """Only the record can tell whether it is one of two."""
    duplicates.deliver()
    duplicates.deliver()
    assert duplicates.deliver_copy() == ["claim", "note_deferral"]


def test_the_runs_own_message_asks(duplicates: Duplicates, store: MemoryStore) -> None:
    """It may be back because its worker is gone."""
    store.release(duplicates.claim, "test")
    claim = duplicates.hold(task_id="of the run")
    duplicates.deliver()
    assert duplicates.deliver(task_id="of the run") == ["claim"]
    assert store.get(duplicates.key).owner == claim.owner


def test_an_answer_that_has_come_since_counts(duplicates: Duplicates, store: MemoryStore) -> None:
    """A copy that ran, or replayed, tells that the key is not busy any more."""
    duplicates.deliver()
    store.release(duplicates.claim, "test")
    duplicates.deliver_copy()
    assert duplicates.runs == 1
    assert duplicates.deliver() == ["claim"]
    assert duplicates.copies == []


def test_a_claim_that_has_ended_is_asked_about(duplicates: Duplicates, store: MemoryStore, clock: FakeClock) -> None:
    """However fresh the answer was: the duplicate may be the one to take over."""
    store.release(duplicates.claim, "test")
    duplicates.hold(lease_seconds=FRESH_SECONDS / 2)
    duplicates.deliver()
    clock.advance(FRESH_SECONDS * 0.75)
    assert "claim" in duplicates.deliver()
    assert duplicates.runs == 1


def test_another_payload_is_refused_at_once(app: Celery, worker: InlineWorker, store: MemoryStore) -> None:
    """It does not wait for a result that is not its own."""
    duplicates = Duplicates(app, worker, store, validate="amount")
    duplicates.deliver()
    assert duplicates.deliver() == []
    duplicates.deliver(amount=6, task_id="other")
    assert isinstance(worker.result("other"), PayloadMismatchError)


@pytest.mark.parametrize("on_busy", ["raise", "skip", "wait"])
def test_whoever_does_not_wait_in_the_queue_asks(
    app: Celery, worker: InlineWorker, store: MemoryStore, on_busy: str
) -> None:
    """A failure, a dropped message or a wait needs an answer of its own."""
    duplicates = Duplicates(app, worker, store, on_busy=on_busy, wait_timeout=0)
    assert [duplicates.deliver()[0] for _ in range(2)] == ["claim", "claim"]


def test_a_reserved_key_is_asked_about(duplicates: Duplicates, store: MemoryStore) -> None:
    """Nobody runs: the message that it is reserved for may be lost."""
    store.release(duplicates.claim, "test")
    reserved = request_by(
        reservation_owner("first"), key=duplicates.key, task_id="first", validation=duplicates.validation
    )
    assert isinstance(store.claim(reserved), Granted)
    assert [duplicates.deliver() for _ in range(2)] == [["claim"], ["claim"]]


def test_a_lock_is_asked_about(app: Celery, shop: Shop, store: MemoryStore) -> None:
    """The refusal is about another key than the delivery's own."""
    app.conf.idempotency_store = faulty = FaultyStore(store)
    shop.sells(lambda _: None, idempotency=Idempotency(expires=0, key=lambda: "one", on_busy="defer"))
    shop.deliver()
    lock = next(record.key for record in store.records() if not record.key.endswith(shop.id))
    store.claim(request_by("elsewhere", key=lock, task_id="first"))
    faulty.calls.clear()
    for task_id in ("second", "third"):
        shop.deliver(task_id=task_id)
        shop.worker.take().ack()
    # Each asks for its key and for the lock.
    assert faulty.calls.count("claim") == 4


def test_two_apps_of_a_process_do_not_share_answers(app: Celery, store: MemoryStore, clock: FakeClock) -> None:
    """They may have two tables."""
    keys, request = BusyKeys(), request_by("another", key="k")
    store.claim(request_by("elsewhere", key="k", task_id="t"))
    refusal = store.claim(request)
    assert isinstance(refusal, Busy)
    keys.note(app, refusal, clock)
    other = Celery("other", set_as_current=False)
    assert keys.refused(app, request, clock) == refusal
    assert keys.refused(other, request, clock) is None


def test_a_process_keeps_the_latest_keys_only(app: Celery, store: MemoryStore, clock: FakeClock) -> None:
    """However many are busy."""
    keys = BusyKeys()
    for number in range(MOST_KEYS + 1):
        store.claim(request_by("elsewhere", key=f"k{number}", task_id="t"))
        refusal = store.claim(request_by("another", key=f"k{number}"))
        assert isinstance(refusal, Busy)
        keys.note(app, refusal, clock)
    known = [keys.refused(app, request_by("another", key=f"k{number}"), clock) for number in (0, 1, MOST_KEYS)]
    assert [each is None for each in known] == [True, False, False]
