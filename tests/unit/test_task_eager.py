"""`IdempotentTask` in the caller's own process: guarded like a delivery, with no queue to go back to."""

from dataclasses import dataclass
from typing import Any

import pytest
from celery import Celery
from celery.exceptions import Ignore, Reject, SoftTimeLimitExceeded

from idempotent_tasks import (
    ConfigurationError,
    InProgressError,
    KeyEncodingError,
    MissingKeyError,
    PayloadMismatchError,
    StoreUnavailableError,
)
from idempotent_tasks.events import Event
from idempotent_tasks.testing import MemoryStore
from tests.support.guarding import grant
from tests.support.shop import Counting, make
from tests.support.stores import FaultyStore, down


@dataclass
class Order:
    """An argument with fields."""

    id: str
    amount: int = 5


def test_an_eager_call_is_guarded(app: Celery, counting: Counting, seen: list[Event]) -> None:
    """Two eager calls of one key are one run and one result; the state is a success each time."""
    task = counting.make(app, idempotency={"key": "order"})
    first, second = task.apply(("17",)), task.apply((), {"order": "17"})
    assert first.get() == second.get() == [1, "17", 5]
    assert second.successful()
    assert [type(event).__name__ for event in seen] == ["Claimed", "Committed", "Replayed"]


def test_without_a_key_each_eager_call_is_its_own(app: Celery, counting: Counting) -> None:
    """The default key is the task id: only the same id replays."""
    task = counting.make(app)
    assert task.apply(("17",)).get()[0] == 1
    assert task.apply(("17",)).get()[0] == 2
    assert task.apply(("17",), task_id="id-1").get()[0] == 3
    assert task.apply(("17",), task_id="id-1").get()[0] == 3


@pytest.mark.parametrize("value", [None, 0, "", [], {}, False], ids=repr)
def test_falsy_results_replay_as_themselves(app: Celery, value: Any) -> None:
    """Also through Celery's own retries."""
    runs = []

    def charge(order: str) -> Any:
        runs.append(order)
        return value

    task = make(app, charge, idempotency={"key": "order"})
    assert task.apply(("17",)).get() == task.apply(("17",)).get() == value
    assert len(runs) == 1


def test_always_eager_is_guarded(app: Celery, counting: Counting) -> None:
    """Under ``task_always_eager`` a published task is an eager one, with its key."""
    app.conf.task_always_eager = True
    task = counting.make(app)
    assert task.apply_async(("17",), idempotency_key="ord-17").get()[0] == 1
    assert task.apply_async(("18",), idempotency_key="ord-17").get() == [1, "17", 5]
    assert task.delay("17").get()[0] == 2


def test_an_eager_call_can_be_given_a_key(app: Celery, counting: Counting) -> None:
    """``apply`` takes the key of its call like ``apply_async``."""
    task = counting.make(app)
    assert task.apply(("17",), idempotency_key="ord-17", headers={"tenant": "acme"}).get()[0] == 1
    assert task.s("18").apply(idempotency_key="ord-17").get()[0] == 1
    with pytest.raises(KeyEncodingError):
        task.apply(("17",), idempotency_key="a\x00b")


def test_a_nested_eager_call_is_a_delivery(app: Celery, counting: Counting, store: MemoryStore) -> None:
    """``apply`` inside a body has a claim of its own, and the outer run is still there afterwards."""
    inner = counting.make(app, name="shop.inner", idempotency={"key": "order"})

    def outer(self: Any) -> list[Any]:
        before = self.idempotency.key
        runs = [inner.apply(("17",)).result[0], inner.apply(("17",)).result[0]]
        assert self.idempotency.key == before
        return runs

    assert make(app, outer, bind=True).apply().get() == [1, 1]
    assert [record.task for record in store.records()] == ["shop.charge", "shop.inner"]


def test_a_dataclass_argument(app: Celery) -> None:
    """An eager argument needs no serialiser to have a key."""

    def charge(order: Order) -> int:
        return order.amount

    task = make(app, charge, idempotency={"key": "order.id", "validate": "order.amount"})
    assert task.apply((Order("17"),)).get() == 5
    with pytest.raises(PayloadMismatchError):
        task.apply((Order("17", amount=6),)).get()


def test_an_autoretry_body_keeps_its_signature(app: Celery) -> None:
    """Celery wraps such a body; its arguments are bound by their own names all the same."""

    def charge(order: str, amount: int = 5) -> int:
        return amount

    task = make(app, charge, autoretry_for=(KeyError,), idempotency={"key": "[order, amount]"})
    assert task.apply(("17",)).get() == task.apply((), {"order": "17", "amount": 5}).get() == 5


def test_eager_retries_run_in_turn(app: Celery) -> None:
    """Each try claims the key that the one before released; the last one's result is stored."""
    tries: list[int] = []

    def charge(self: Any, order: str) -> int:
        tries.append(self.request.retries)
        if len(tries) < 3:
            raise self.retry(countdown=0)
        return len(tries)

    task = make(app, charge, bind=True, idempotency={"key": "order"})
    assert task.apply(("17",)).get() == 3
    assert task.apply(("17",)).get() == 3
    assert tries == [0, 1, 2]


def test_eager_autoretries_run_in_turn(app: Celery) -> None:
    """``autoretry_for`` goes the same way, to the end of its retries and the body's own error."""
    tries: list[str] = []

    def charge(order: str) -> None:
        tries.append(order)
        raise ConnectionError

    task = make(
        app,
        charge,
        autoretry_for=(ConnectionError,),
        retry_kwargs={"max_retries": 2, "countdown": 0},
        idempotency={"key": "order"},
    )
    with pytest.raises(ConnectionError):
        task.apply(("17",)).get()
    assert tries == ["17"] * 3


@pytest.mark.parametrize(("signal", "state"), [(Ignore(), "IGNORED"), (Reject(), "REJECTED")], ids=repr)
def test_eager_ignore_and_reject_release(app: Celery, signal: Exception, state: str) -> None:
    """They are no outcome: the next delivery runs the body."""
    runs = []

    def charge(order: str) -> None:
        runs.append(order)
        raise signal

    task = make(app, charge, idempotency={"key": "order"})
    assert [task.apply(("17",)).state, task.apply(("17",)).state] == [state, state]
    assert len(runs) == 2


def test_an_eager_replacement(app: Celery, counting: Counting) -> None:
    """A task that replaces itself with another returns that one's result, under its own key too."""
    other = counting.make(app, name="shop.other", idempotency={"key": "order"})

    def charge(self: Any, order: str) -> Any:
        return self.replace(other.s(order))

    task = make(app, charge, bind=True, idempotency={"key": "order"})
    assert task.apply(("17",)).get() == task.apply(("17",)).get() == [1, "17", 5]


def test_an_eager_replacement_by_itself(app: Celery) -> None:
    """A task that goes on as another call of itself, under the same task id, does not meet its own claim."""

    def count_down(self: Any, number: int) -> Any:
        return self.replace(self.s(number - 1)) if number else "done"

    assert make(app, count_down, bind=True).apply((3,)).get() == "done"


def test_an_eager_duplicate_of_a_running_key_is_an_error(app: Celery, counting: Counting) -> None:
    """There is no queue to defer to; ``on_busy`` cannot change that, but may drop the call."""
    task = counting.make(app, idempotency={"key": "order"})
    dropping = counting.make(
        app, name="shop.dropping", idempotency={"key": "order", "on_busy": "skip", "prefix": "shop.charge"}
    )
    held: list[Any] = []

    def holder(order: str) -> None:
        held.extend([task.apply((order,)), dropping.apply((order,))])

    make(app, holder, name="shop.holder", idempotency={"key": "order", "prefix": "shop.charge"}).apply(("17",))
    busy, dropped = held
    assert isinstance(busy.result, InProgressError)
    assert (busy.result.task, busy.result.until is not None) == ("shop.charge", True)
    assert dropped.state == "IGNORED"
    assert counting.runs == 0


@pytest.mark.parametrize("on_store_error", ["defer", "raise"])
def test_an_eager_call_without_a_store_fails(
    app: Celery, counting: Counting, store: MemoryStore, on_store_error: str
) -> None:
    """Nothing runs on a guess, and the caller sees why."""
    app.conf.idempotency_store = FaultyStore(store, claim=[down()] * 1_000)
    task = counting.make(app, idempotency={"on_store_error": on_store_error})
    with pytest.raises(StoreUnavailableError):
        task.apply().get()
    assert counting.runs == 0


def test_an_eager_call_whose_time_is_up_fails(app: Celery, counting: Counting, store: MemoryStore) -> None:
    """A soft time limit in the claim is the call's error, and leaves no claim."""
    app.conf.idempotency_store = FaultyStore(store, claim=[down(SoftTimeLimitExceeded())])
    task = counting.make(app)
    with pytest.raises(SoftTimeLimitExceeded):
        task.apply().get()
    assert task.apply().get()[0] == 1


def test_without_a_store_a_delivery_says_what_to_set(app: Celery, counting: Counting) -> None:
    """The body does not run unguarded because of a missing setting."""
    app.conf.idempotency_store = None
    with pytest.raises(ConfigurationError, match="has no idempotency store"):
        counting.make(app).apply().get()
    assert counting.runs == 0


def test_a_missing_key_fails_before_the_body(app: Celery, counting: Counting, store: MemoryStore) -> None:
    """The error names task and expression; nothing is claimed."""
    with pytest.raises(MissingKeyError, match="task 'shop"):
        counting.make(app, idempotency={"key": "order.id"}).apply(("17",)).get()
    assert counting.runs == 0
    assert store.records() == []


def test_a_missing_key_may_run_unguarded(
    app: Celery, counting: Counting, store: MemoryStore, caplog: pytest.LogCaptureFixture
) -> None:
    """``missing_key="run"`` lets such calls through, each time, and says so in the log."""
    task = counting.make(app, idempotency={"key": "order.id", "missing_key": "run"})
    assert [task.apply(("17",)).get()[0], task.apply(("17",)).get()[0]] == [1, 2]
    assert store.records() == []
    assert sum("runs unguarded" in message for message in caplog.messages) == 2


def test_an_unguarded_run_still_knows_its_key(app: Celery, store: MemoryStore) -> None:
    """``on_store_error="run"`` runs the body with its key, which downstream systems may recognise, and no fence."""
    app.conf.idempotency_store = FaultyStore(store, claim=[down()] * 1_000)

    def charge(self: Any) -> list[Any]:
        return [self.idempotency.key, self.idempotency.fence, self.idempotency.attempt]

    task = make(app, charge, bind=True, idempotency={"on_store_error": "run"})
    assert task.apply(task_id="id-1").get() == ["shop.charge#id-1", 0, 0]


def test_a_wrong_call_fails_as_a_function_would(app: Celery, counting: Counting, store: MemoryStore) -> None:
    """Arguments that do not fit claim nothing."""
    task = counting.make(app, idempotency={"key": "order"})
    with pytest.raises(TypeError):
        task.apply(("17", 5, "too many")).get()
    assert store.records() == []


def test_a_claim_of_another_program_is_respected(app: Celery, counting: Counting, store: MemoryStore) -> None:
    """A record under the key holds, whoever wrote it."""
    task = counting.make(app, idempotency={"on_busy": "raise"})
    grant(store, "somebody", key="shop.charge#id-1")
    with pytest.raises(InProgressError):
        task.apply(task_id="id-1").get()
    assert counting.runs == 0
