"""`IdempotentTask` under a worker: what becomes of each message, on kombu's in-memory transport."""

import secrets
import sys
from itertools import repeat
from traceback import walk_tb
from typing import Any
from uuid import uuid4

import pytest
from billiard.einfo import ExceptionInfo
from celery import chord
from celery.app import trace
from celery.exceptions import Ignore

from idempotent_tasks import IdempotentTask, InProgressError, ResultUnavailableError, StoreUnavailableError
from idempotent_tasks.core.records import Claim, Status
from idempotent_tasks.errors import CrashLoopError, PayloadMismatchError, ResultEncodingError
from idempotent_tasks.testing import FakeClock, MemoryStore
from tests.support.guarding import done
from tests.support.shop import Shop, raising
from tests.support.stores import FaultyStore, down, meanwhile


def follow(result: Any) -> Any:
    """Be the body of what follows."""
    return result


def test_a_delivery_runs_and_a_redelivery_replays(shop: Shop) -> None:
    """The same message twice is one run, two acknowledgements and one result."""
    shop.sells(lambda task: {"paid": shop.runs})
    shop.deliver()
    shop.deliver()
    assert shop.runs == 1
    assert shop.worker.waiting() == 0
    assert (shop.state, shop.result) == ("SUCCESS", {"paid": 1})


def test_a_message_is_acknowledged_after_its_commit(shop: Shop) -> None:
    """A worker that dies in the body, or before its commit, leaves the message to another."""
    told: list[Any] = []
    shop.sells(lambda task: told.append((message.acknowledged, shop.record.status)))
    shop.publish()
    message = shop.worker.take()
    shop.worker.run(message)
    assert told == [(False, Status.INPROGRESS)]
    assert message.acknowledged


def test_a_failure_is_no_outcome(shop: Shop) -> None:
    """The task fails with the body's own error, and the next delivery of the key runs at once."""
    shop.sells(raising(KeyError("mine")))
    shop.deliver()
    assert shop.state == "FAILURE"
    assert isinstance(shop.result, KeyError)
    shop.deliver()
    assert shop.runs == 2


@pytest.mark.parametrize("handler", ["on_failure", "after_return"])
def test_a_handler_that_calls_the_task_calls_a_function(shop: Shop, handler: str) -> None:
    """What a handler of a failed delivery calls is no outcome of that delivery."""

    class Charge(IdempotentTask):
        name = "shop.charge"

        def run(self, order: str) -> str:
            if order == "17":
                raise KeyError
            return "compensated"

    def call(self: Any, *_: Any) -> None:
        assert self("18") == "compensated"

    setattr(Charge, handler, call)
    shop.task = shop.app.register_task(Charge())
    shop.deliver(args=("17",))
    assert shop.state == "FAILURE"
    assert (shop.record.status, shop.record.free) == (Status.INPROGRESS, True)


def test_a_running_key_defers_by_default(shop: Shop) -> None:
    """The duplicate waits in the queue, and returns the holder's result when that is there."""
    shop.sells(lambda task: "mine")
    holder = shop.claim_elsewhere()
    shop.deliver()
    assert (shop.runs, shop.worker.waiting(), shop.deferrals()) == (0, 1, ["busy"])
    shop.store.commit(holder, done('"theirs"'), 3600)
    shop.worker.run_next()
    assert (shop.runs, shop.state, shop.result) == (0, "SUCCESS", "theirs")


def test_a_deferral_leaves_celery_a_short_traceback(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    """Celery formats every frame of it, for nobody; what is below the task would double the cost of a deferral."""
    depths: list[int] = []

    class Measured(ExceptionInfo):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            depths.append(len([*walk_tb(sys.exc_info()[2])]))
            super().__init__(*args, **kwargs)

    monkeypatch.setattr(trace, "ExceptionInfo", Measured)
    shop.sells(lambda task: "mine")
    shop.claim_elsewhere()
    shop.deliver()
    assert shop.deferrals() == ["busy"]
    # Celery's own frame and the task's.
    assert depths
    assert max(depths) <= 2


def test_what_a_plain_call_raises_keeps_its_traceback(shop: Shop) -> None:
    """Code that calls the task as a function sees where the body raised."""
    shop.sells(raising(Ignore()))
    with pytest.raises(Ignore) as raised:
        shop.task()
    assert raised.traceback[-1].name == "body"


def test_a_running_key_may_raise(shop: Shop) -> None:
    """``on_busy="raise"`` fails the delivery with the time when the claim expires."""
    shop.sells(lambda task: "mine", idempotency={"on_busy": "raise"})
    holder = shop.claim_elsewhere()
    shop.deliver()
    assert shop.state == "FAILURE"
    assert isinstance(shop.result, InProgressError)
    assert (shop.result.key, shop.result.until) == (shop.key, holder.expires_at)
    assert (shop.runs, shop.worker.waiting()) == (0, 0)


def test_a_running_key_may_skip(shop: Shop) -> None:
    """``on_busy="skip"`` drops the delivery and leaves the result to the holder."""
    shop.app.conf.idempotency_on_busy = "skip"
    shop.sells(lambda task: "mine")
    shop.claim_elsewhere()
    shop.deliver()
    assert (shop.runs, shop.worker.waiting(), shop.state, shop.deferrals()) == (0, 0, "PENDING", [])


@pytest.mark.parametrize("awaited", ["link", "chain", "chord"])
def test_what_a_canvas_waits_for_is_not_skipped(shop: Shop, awaited: str) -> None:
    """A chord or a chain would wait for it in vain: it is deferred like any duplicate, and goes on with the result."""
    shop.app.conf.idempotency_on_busy = "skip"
    shop.sells(lambda task: "mine")
    follower = shop.app.task(follow, name="shop.follower", shared=False)
    holder = shop.claim_elsewhere()
    if awaited == "chord":
        chord([shop.task.s().set(task_id=shop.id)], follower.s()).apply_async()
    else:
        signature = follower.s().set(task_id=f"{shop.id}-next")
        shop.publish(**{awaited: [signature] if awaited == "chain" else signature})
    shop.worker.run_next()
    assert (shop.runs, shop.deferrals(), shop.worker.waiting()) == (0, ["busy"], 1)
    shop.store.commit(holder, done('"theirs"'), 3600)
    shop.worker.run_next()
    assert (shop.result, shop.worker.waiting()) == ("theirs", 1)


def test_an_error_callback_alone_keeps_nobody_from_being_skipped(shop: Shop) -> None:
    """Nothing waits for it, and the delivery has not failed."""
    shop.app.conf.idempotency_on_busy = "skip"
    shop.sells(lambda task: "mine")
    shop.claim_elsewhere()
    shop.deliver(link_error=shop.task.si())
    assert (shop.runs, shop.worker.waiting(), shop.deferrals()) == (0, 0, [])


def test_a_body_without_memory_is_given_up(shop: Shop) -> None:
    """Celery ends its worker, which leaves the message to be delivered again; each run counts as a crash of the key."""
    shop.sells(raising(MemoryError("no more")), idempotency={"max_crashes": 3})
    for _ in range(3):
        with pytest.raises(MemoryError, match="Process got: no more"):
            shop.deliver()
    shop.deliver()
    assert shop.runs == 3
    assert isinstance(shop.result, CrashLoopError)


def test_a_running_key_may_be_waited_for(shop: Shop) -> None:
    """``on_busy="wait"`` returns the holder's result from this slot."""
    holder = shop.claim_elsewhere()
    finish = meanwhile(lambda: shop.store.commit(holder, done('"theirs"'), 3600))
    shop.app.conf.idempotency_store = FaultyStore(shop.store, claim=[meanwhile(lambda: None), finish])
    shop.sells(lambda task: "mine", idempotency={"on_busy": "wait"})
    shop.deliver()
    assert (shop.runs, shop.result, shop.deferrals()) == (0, "theirs", [])


def test_a_wait_in_vain_ends_in_a_deferral(shop: Shop) -> None:
    """After ``wait_timeout`` the slot is given back and the message is not lost."""
    shop.sells(lambda task: "mine", idempotency={"on_busy": "wait", "wait_timeout": 2})
    shop.claim_elsewhere()
    shop.deliver()
    assert (shop.runs, shop.worker.waiting(), shop.deferrals()) == (0, 1, ["busy"])


def test_an_unreachable_store_defers_by_default(shop: Shop) -> None:
    """The body does not run, and the message comes back until the store does."""
    outage = [down()] * 40
    shop.app.conf.idempotency_store = FaultyStore(shop.store, claim=outage)
    shop.sells(lambda task: "paid")
    shop.deliver()
    assert (shop.runs, shop.worker.waiting(), shop.state) == (0, 1, "PENDING")
    assert shop.worker.drain() < 20
    assert (shop.runs, shop.result) == (1, "paid")
    assert set(shop.deferrals()) == {"StoreUnavailableError"}


def test_an_unreachable_store_may_raise(shop: Shop) -> None:
    """``on_store_error="raise"`` fails the delivery with the store's own error."""
    shop.app.conf.idempotency_store = FaultyStore(shop.store, claim=repeat(down()))
    shop.sells(lambda task: "paid", idempotency={"on_store_error": "raise"})
    shop.deliver()
    assert isinstance(shop.result, StoreUnavailableError)
    assert (shop.runs, shop.worker.waiting()) == (0, 0)


def test_an_unreachable_store_may_be_ignored(shop: Shop, caplog: pytest.LogCaptureFixture) -> None:
    """``on_store_error="run"`` runs the body unguarded, and says so."""
    shop.app.conf.idempotency_store = FaultyStore(shop.store, claim=repeat(down()))
    shop.sells(lambda task: task.idempotency.fence, idempotency={"on_store_error": "run"})
    shop.deliver()
    assert (shop.runs, shop.result) == (1, 0)
    assert any("runs unguarded" in message for message in caplog.messages)


def test_a_lost_commit_returns_the_result(shop: Shop) -> None:
    """The body succeeded: so does the task, whatever the store does."""
    shop.app.conf.idempotency_store = FaultyStore(shop.store, commit=repeat(down()))
    shop.sells(lambda task: "paid")
    shop.deliver()
    assert (shop.state, shop.result) == ("SUCCESS", "paid")


def test_a_superseded_run_returns_the_result_that_counts(shop: Shop, clock: FakeClock) -> None:
    """While this body ran past its claim another worker finished the key."""

    def body(task: Any) -> str:
        clock.advance(61)
        shop.store.commit(shop.claim_elsewhere(), done('"theirs"'), 3600)
        return "mine"

    shop.sells(body)
    shop.deliver()
    assert (shop.state, shop.result) == ("SUCCESS", "theirs")


def test_a_run_superseded_by_a_running_one_is_deferred(shop: Shop, clock: FakeClock) -> None:
    """Another worker decides the outcome; this message waits for it, whatever ``on_busy`` would publish twice."""
    holders: list[Claim] = []

    def body(task: Any) -> str:
        clock.advance(61)
        holders.append(shop.claim_elsewhere())
        return "mine"

    # The renewer's thread must not find the claim in time.
    shop.app.conf.idempotency_store = FaultyStore(shop.store, renew=repeat(down()))
    shop.sells(body)
    shop.deliver()
    assert (shop.state, shop.worker.waiting(), shop.deferrals()) == ("PENDING", 1, ["busy"])
    shop.store.commit(holders[0], done('"theirs"'), 3600)
    shop.worker.run_next()
    assert (shop.runs, shop.result) == (1, "theirs")


def test_a_crash_loop_fails_visibly(shop: Shop, clock: FakeClock) -> None:
    """After ``max_crashes`` lost workers the task fails in the result backend, and its message is settled."""
    shop.sells(lambda task: "paid", idempotency={"max_crashes": 2})
    for dead in ("one", "two"):
        shop.claim_elsewhere(dead)
        clock.advance(61)
    shop.deliver()
    assert isinstance(shop.result, CrashLoopError)
    assert (shop.runs, shop.state, shop.worker.waiting()) == (0, "FAILURE", 0)


def test_another_payload_fails_visibly(shop: Shop) -> None:
    """The caller of the second payload learns that its key was used before."""
    runs: list[int] = []

    @shop.app.task(
        base=IdempotentTask, name="shop.pay", shared=False, idempotency={"key": "order", "validate": "amount"}
    )
    def pay(order: str, amount: int) -> int:
        runs.append(amount)
        return amount

    first, second, third = (pay.delay("17", amount) for amount in (5, 6, 5))
    shop.worker.drain()
    assert [shop.worker.state(result.id) for result in (first, second, third)] == ["SUCCESS", "FAILURE", "SUCCESS"]
    assert isinstance(shop.worker.result(second.id), PayloadMismatchError)
    assert runs == [5]


def test_an_unwritable_result_fails_once_and_for_all(shop: Shop) -> None:
    """The body ran, so no delivery runs it again: the first reports its result, later ones that there is none."""
    shop.sells(lambda task: {1, 2})
    shop.deliver()
    assert isinstance(shop.result, ResultEncodingError)
    shop.deliver()
    assert isinstance(shop.result, ResultUnavailableError)
    assert shop.runs == 1


def test_an_explicit_key_comes_from_anywhere(shop: Shop) -> None:
    """A producer that knows only the task's name gives the key as a header."""
    shop.sells(lambda task: shop.runs)
    ids = [uuid4().hex, uuid4().hex]
    for task_id in ids:
        shop.app.send_task("shop.charge", task_id=task_id, headers={"idempotency_key": "ord-17"})
    shop.worker.drain()
    assert [shop.worker.result(task_id) for task_id in ids] == [1, 1]


def test_a_forged_key_fails_before_the_body(shop: Shop) -> None:
    """A header that no caller of ours would send is an error of that message only."""
    shop.sells(lambda task: "paid")
    shop.app.send_task("shop.charge", task_id=shop.id, headers={"idempotency_key": ["x" * 10_000]})
    shop.worker.run_next()
    assert type(shop.result).__name__ == "KeyEncodingError"
    assert (shop.runs, shop.worker.waiting()) == (0, 0)


def test_a_megabyte_goes_through(shop: Shop, store: MemoryStore) -> None:
    """A payload of 1 MB has a key, and a result of 1 MB is replayed from the result backend."""

    @shop.app.task(base=IdempotentTask, name="shop.echo", shared=False, idempotency={"key": "blob"})
    def echo(blob: str) -> str:
        return blob

    blob = secrets.token_hex(500_000)
    first, second = echo.delay(blob), echo.delay(blob)
    shop.worker.drain()
    assert [shop.worker.result(each.id) for each in (first, second)] == [blob, blob]
    (record,) = store.records()
    assert len(record.key) < 100
    assert record.data is None


def test_a_long_body_keeps_its_claim(shop: Shop) -> None:
    """Where nothing limits a body's time its claim is kept by this process's renewer while it runs."""
    shop.sells(lambda task: task.idempotency.claim.expires_at)
    shop.deliver()
    assert shop.result == pytest.approx(shop.store.clock.now() + 60, abs=0.001)
