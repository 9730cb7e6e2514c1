"""A delivery whose key has a run that left no outcome: parked for a person, or asked about before its body runs."""

import os
from collections.abc import Callable
from itertools import repeat
from typing import Any

import pytest
from celery import Celery
from celery.exceptions import SoftTimeLimitExceeded

from idempotent_tasks import Done, Idempotency, NotDone, Record, Unknown, UnresolvedError
from idempotent_tasks.core.records import MAX_PARKED_BYTES
from idempotent_tasks.errors import ConfigurationError, ResultEncodingError, StoreUnavailableError
from idempotent_tasks.events import Claimed, Parked, Recovered
from idempotent_tasks.messaging.handler import MOST_FAILED_RECOVERIES
from idempotent_tasks.messaging.parking import decoded_message, publish_parked
from idempotent_tasks.settings import settings_of
from idempotent_tasks.testing import FakeClock, MemoryStore
from tests.support.shop import SECRET, Shop, make, raising
from tests.support.stores import FaultyStore, down

SETTLE = 30.0
PARKING = Idempotency(on_rerun="park")
#: All task ids have one key.
ONE_KEY = Idempotency(on_rerun="park", key="'order'", expires=3600)


def asking(recover: Callable[..., Any]) -> Idempotency:
    """Return a policy that asks."""
    return Idempotency(recover=recover, settle=SETTLE)


def crash(shop: Shop, clock: FakeClock) -> None:
    """Let a run of the shop's key begin elsewhere and die with its machine."""
    shop.claim_elsewhere()
    clock.advance(shop.record.held_until - clock.now() + 1)


def events(shop: Shop, kind: type) -> list[Any]:
    """Return the events of a kind."""
    return [event for event in shop.seen if isinstance(event, kind)]


class TestPark:
    """``on_rerun="park"``: no effect is repeated by itself."""

    def test_a_first_run_runs(self, shop: Shop) -> None:
        """Parking is for reruns."""
        shop.sells(lambda task: "paid", idempotency=PARKING)
        shop.deliver()
        assert (shop.runs, shop.state, shop.record.parked_at) == (1, "SUCCESS", None)

    def test_a_rerun_ends_visibly_without_its_body(self, shop: Shop, clock: FakeClock) -> None:
        """The key is parked with its message, and the task fails with what to do."""
        shop.sells(lambda task: "paid", idempotency=PARKING)
        crash(shop, clock)
        shop.deliver()
        assert shop.runs == 0
        assert shop.state == "FAILURE"
        assert isinstance(shop.result, UnresolvedError)
        assert "resolve KEY --done JSON" in str(shop.result)
        record = shop.record
        assert (list(record.parked), record.runs, record.attempt) == ([shop.id], 1, 1)
        assert record.parked_at == int(clock.now() * 1000)
        assert [event.reason for event in events(shop, Parked)] == ["Rerun"]
        assert not events(shop, Claimed)

    @pytest.mark.parametrize("seconds", [1.0, 40 * 365 * 86_400.0], ids=["soon", "forty years later"])
    def test_each_later_delivery_ends_alike(self, shop: Shop, clock: FakeClock, seconds: float) -> None:
        """A key stays parked until somebody decides; each task's message is kept once."""
        shop.sells(raising(TimeoutError()), idempotency=ONE_KEY)
        shop.deliver()
        shop.deliver()
        clock.advance(seconds)
        shop.deliver()
        shop.deliver(task_id="another")
        assert shop.runs == 1
        assert isinstance(shop.worker.result("another"), UnresolvedError)
        (record,) = shop.store.records()
        assert sorted(record.parked) == sorted([shop.id, "another"])
        assert len(events(shop, Parked)) == 3

    def test_a_body_that_raised_is_a_rerun_too(self, shop: Shop) -> None:
        """The effect may have been made before the exception."""
        shop.sells(raising(TimeoutError()), idempotency=PARKING)
        shop.deliver()
        assert isinstance(shop.result, TimeoutError)
        shop.deliver()
        assert shop.runs == 1
        assert isinstance(shop.result, UnresolvedError)

    def test_a_retry_after_nothing_done_runs(self, shop: Shop) -> None:
        """A body that says that it has done nothing is no earlier run."""

        def body(task: Any) -> str:
            if shop.runs == 1:
                task.idempotency.nothing_done()
                raise task.retry(countdown=0)
            return "sent"

        shop.sells(body, idempotency=PARKING)
        shop.deliver()
        shop.worker.drain()
        assert (shop.runs, shop.state) == (2, "SUCCESS")

    def test_a_crash_loop_is_parked(self, shop: Shop, clock: FakeClock) -> None:
        """What a crash has left undecided is said, rather than that there were many."""
        shop.sells(lambda task: "paid", idempotency=Idempotency(on_rerun="park", max_crashes=1))
        crash(shop, clock)
        shop.deliver()
        assert isinstance(shop.result, UnresolvedError)

    def test_a_message_without_room_waits(self, shop: Shop) -> None:
        """What cannot be kept is deferred until the decision, never dropped."""
        shop.sells(raising(TimeoutError()), idempotency=ONE_KEY)
        shop.deliver()
        shop.deliver()
        (record,) = shop.store.records()
        shop.store.keep_message(record.key, "large", b"x" * (MAX_PARKED_BYTES - record.parked_bytes - len("large")))
        shop.deliver(task_id="without room")
        assert shop.deferrals() == ["parked"]
        assert shop.worker.state("without room") == "PENDING"
        (record,) = shop.store.records()
        assert (record.parked_bytes, sorted(record.parked)) == (MAX_PARKED_BYTES, sorted([shop.id, "large"]))

    def test_an_unanswered_parking_is_tried_by_a_later_delivery(
        self, shop: Shop, store: MemoryStore, clock: FakeClock
    ) -> None:
        """The message is deferred; the body does not run."""
        shop.sells(lambda task: "paid", idempotency=PARKING)
        crash(shop, clock)
        shop.app.conf.idempotency_store = FaultyStore(store, park=repeat(down(), 30))
        shop.deliver()
        assert shop.deferrals() == ["StoreUnavailableError"]
        assert shop.runs == 0
        clock.advance(120)
        shop.worker.drain()
        assert isinstance(shop.result, UnresolvedError)

    def test_an_eager_call_is_told_to_call_again(self, shop: Shop, clock: FakeClock) -> None:
        """There is no message to keep."""
        shop.sells(lambda task: "paid", idempotency=PARKING)
        crash(shop, clock)
        with pytest.raises(UnresolvedError, match="then call the task again"):
            shop.task.apply(task_id=shop.id, throw=True)
        assert shop.record.parked == {}

    def test_a_kept_message_is_published_as_it_came(self, shop: Shop, clock: FakeClock) -> None:
        """Its arguments, headers and continuation are those of the first time, its expiry and deferrals are not."""
        shop.sells(lambda task: "paid", idempotency=PARKING)
        crash(shop, clock)
        shop.publish(headers={"trace": "t-1"}, expires=3600, link=shop.task.si(), priority=3)
        message = shop.worker.take()
        shop.worker.run(message)
        (kept,) = shop.record.parked.values()
        publish_parked(shop.app, decoded_message(kept))
        again = shop.worker.take()
        assert again.payload == message.payload
        assert {name for name in message.headers if name not in again.headers} == {"expires", "eta"}
        assert again.headers == {name: message.headers[name] for name in again.headers}
        assert again.properties["priority"] == 3
        again.ack()

    def test_a_message_that_cannot_be_kept_waits(self, shop: Shop, clock: FakeClock) -> None:
        """A header without a JSON form is no reason to drop a message."""
        shop.sells(lambda task: "paid", idempotency=PARKING)
        crash(shop, clock)
        shop.publish()
        message = shop.worker.take()
        message.headers["odd"] = object()
        shop.worker.run(message)
        assert shop.runs == 0
        assert shop.state == "PENDING"
        assert shop.record.parked_at is not None
        assert shop.record.parked == {}


class TestRecover:
    """``recover``: the other system is asked before a body runs again."""

    def test_it_is_not_asked_before_a_first_run(self, shop: Shop) -> None:
        """There is nothing to ask about."""
        asked: list[Record] = []
        shop.sells(lambda task: "paid", idempotency=asking(asked.append))
        shop.deliver()
        assert (shop.runs, asked) == (1, [])

    @pytest.mark.parametrize("value", ["paid", None, 0, "", [], False])
    def test_done_is_the_outcome(self, shop: Shop, clock: FakeClock, value: Any) -> None:
        """A falsy result too; the body does not run, now or later."""
        shop.sells(lambda task: "body", idempotency=asking(lambda record: Done(value)))
        crash(shop, clock)
        shop.deliver()
        shop.deliver()
        assert (shop.runs, shop.state, shop.result) == (0, "SUCCESS", value)
        assert shop.record.runs == 0
        assert [event.done for event in events(shop, Recovered)] == [True]

    def test_not_done_runs_the_body(self, shop: Shop, clock: FakeClock) -> None:
        """Once."""
        shop.sells(lambda task: task.idempotency.run, idempotency=asking(lambda record: NotDone()))
        crash(shop, clock)
        shop.deliver()
        shop.deliver()
        assert (shop.runs, shop.result) == (1, 2)
        assert [event.done for event in events(shop, Recovered)] == [False]

    def test_unknown_parks(self, shop: Shop, clock: FakeClock) -> None:
        """The reason is shown to whoever decides."""
        shop.sells(lambda task: "paid", idempotency=asking(lambda record: Unknown("two charges match")))
        crash(shop, clock)
        shop.deliver()
        assert isinstance(shop.result, UnresolvedError)
        assert shop.record.error == "two charges match"
        assert [event.reason for event in events(shop, Parked)] == ["two charges match"]

    def test_it_gets_the_record_the_arguments_and_the_run(self, shop: Shop, clock: FakeClock) -> None:
        """It may ask by the key that the dead run has passed on, and it may change what follows."""
        seen: list[Any] = []

        def recover(record: Record, order: int, amount: int) -> Done:
            seen.append((record.key, record.previous_owner, order, amount, task.idempotency.downstream_key))
            return Done(order)

        def charge(order: int, amount: int) -> int:
            raise AssertionError("it runs")

        task = make(shop.app, charge, idempotency=asking(recover))
        crash(shop, clock)
        task.apply_async((17,), {"amount": 5}, task_id=shop.id)
        shop.worker.run_next()
        assert seen == [(shop.key, "elsewhere", 17, 5, shop.key)]
        assert shop.result == 17

    @pytest.mark.parametrize("error", [ConnectionError("away"), SoftTimeLimitExceeded()], ids=repr)
    def test_what_it_raises_defers_and_at_last_parks(self, shop: Shop, clock: FakeClock, error: Exception) -> None:
        """Four later deliveries ask again, without counting a run, then a person is asked."""
        asked: list[int] = []

        def recover(record: Record) -> None:
            asked.append(record.runs)
            raise error

        shop.sells(lambda task: "paid", idempotency=asking(recover))
        crash(shop, clock)
        shop.publish()
        for _ in range(MOST_FAILED_RECOVERIES):
            assert shop.state == "PENDING"
            shop.worker.run_next()
        assert asked == [2] * MOST_FAILED_RECOVERIES
        assert shop.deferrals() == [type(error).__name__] * (MOST_FAILED_RECOVERIES - 1)
        assert isinstance(shop.result, UnresolvedError)
        assert (shop.record.error, shop.record.runs, shop.runs) == (type(error).__name__, 1, 0)

    def test_a_retry_that_it_asks_for_is_no_run(self, shop: Shop, clock: FakeClock) -> None:
        """Its body has not begun: there is nothing to settle, and the next delivery is the second run still."""
        asked: list[int] = []

        def recover(record: Record) -> NotDone:
            asked.append(record.runs)
            if len(asked) < 3:
                raise shop.task.retry(countdown=0)
            return NotDone()

        shop.sells(lambda task: task.idempotency.run, idempotency=asking(recover))
        crash(shop, clock)
        shop.deliver()
        assert shop.record.settled_at is None
        shop.worker.drain()
        assert (asked, shop.result) == ([2, 2, 2], 2)

    def test_anything_else_is_a_failure_of_recover(self, shop: Shop, clock: FakeClock) -> None:
        """A forgotten ``return`` runs no body."""
        shop.sells(lambda task: "paid", idempotency=asking(lambda record: None))
        crash(shop, clock)
        shop.deliver()
        assert shop.deferrals() == [ConfigurationError.__name__]
        assert shop.runs == 0

    @pytest.mark.parametrize("left", [-3600.0, SETTLE - 1.0], ids=["over", "only what has to settle is left"])
    def test_no_body_begins_after_its_claim(self, shop: Shop, clock: FakeClock, left: float) -> None:
        """Where the process stood still while it asked, another delivery may have the key, or soon: the next asks."""
        asked: list[int] = []

        def recover(record: Record) -> NotDone:
            asked.append(record.fence)
            if len(asked) == 1:
                clock.advance(record.held_until - clock.now() - left)
            return NotDone()

        shop.sells(lambda task: "paid", idempotency=asking(recover))
        crash(shop, clock)
        shop.deliver()
        assert (shop.runs, shop.deferrals()) == (0, [StoreUnavailableError.__name__])
        clock.advance(60)
        shop.worker.drain()
        assert (shop.runs, shop.state, len(asked)) == (1, "SUCCESS", 2)

    def test_what_was_done_counts_after_its_claim(self, shop: Shop, clock: FakeClock) -> None:
        """No body runs, and the commit has its own condition."""

        def recover(record: Record) -> Done:
            clock.advance(3600)
            return Done("paid")

        shop.sells(lambda task: "body", idempotency=asking(recover))
        crash(shop, clock)
        shop.deliver()
        assert (shop.runs, shop.result) == (0, "paid")

    def test_an_eager_call_gets_what_it_raises(self, shop: Shop, clock: FakeClock) -> None:
        """It cannot be deferred; the key is free for the next one."""
        shop.sells(lambda task: "paid", idempotency=asking(lambda record: 1 / 0))
        crash(shop, clock)
        with pytest.raises(ZeroDivisionError):
            shop.task.apply(task_id=shop.id, throw=True)
        assert (shop.record.free, shop.record.settled_at, shop.record.runs) == (True, None, 1)

    def test_a_result_that_cannot_be_written(self, shop: Shop, clock: FakeClock) -> None:
        """As of a body: the effect is done, so the key has its outcome, and the task fails with what to do."""
        shop.sells(lambda task: "paid", idempotency=asking(lambda record: Done(object())))
        crash(shop, clock)
        shop.deliver()
        assert isinstance(shop.result, ResultEncodingError)
        assert shop.record.completed_at is not None
        shop.deliver()
        assert shop.runs == 0

    def test_a_store_without_an_answer_is_asked_again(self, shop: Shop, store: MemoryStore, clock: FakeClock) -> None:
        """The record is read in reruns only; where that fails, nothing runs."""
        shop.sells(lambda task: "paid", idempotency=asking(lambda record: NotDone()))
        crash(shop, clock)
        shop.app.conf.idempotency_store = FaultyStore(store, get=repeat(down(), 30))
        shop.deliver()
        assert shop.deferrals() == [StoreUnavailableError.__name__]
        assert shop.runs == 0


class TestSettle:
    """Nobody gets a key while what its last run has requested may be on its way."""

    def test_a_release_of_a_run_settles(self, shop: Shop, clock: FakeClock) -> None:
        """The next delivery waits, then asks."""
        asked: list[float] = []

        def recover(record: Record) -> NotDone:
            asked.append(clock.now())
            return NotDone()

        bodies = iter([TimeoutError(), None])

        def body(task: Any) -> str:
            error = next(bodies)
            if error is not None:
                raise error
            return "paid"

        shop.sells(body, idempotency=asking(recover))
        shop.deliver()
        ended = clock.now()
        shop.deliver()
        assert (shop.runs, shop.deferrals()) == (1, ["busy"])
        clock.advance(SETTLE - 0.01)
        shop.worker.run_next()
        assert (shop.runs, shop.deferrals()) == (1, ["busy", "busy"])
        clock.advance(0.02)
        shop.worker.run_next()
        assert (shop.runs, shop.state) == (2, "SUCCESS")
        assert asked == [pytest.approx(ended + SETTLE, abs=0.02)]

    def test_a_run_that_did_nothing_does_not_settle(self, shop: Shop) -> None:
        """Its retry runs at once."""

        def body(task: Any) -> str:
            if shop.runs == 1:
                task.idempotency.nothing_done()
                raise task.retry(countdown=0)
            return "paid"

        shop.sells(body, idempotency=asking(lambda record: Unknown()))
        shop.deliver()
        shop.worker.drain()
        assert (shop.runs, shop.state) == (2, "SUCCESS")

    def test_a_lost_machine_settles_in_its_lease(self, shop: Shop, clock: FakeClock) -> None:
        """Its claim ends so much later."""
        leases: list[float] = []

        def body(task: Any) -> None:
            leases.append(shop.record.held_until - clock.now())

        shop.sells(body, idempotency=Idempotency(recover=lambda record: NotDone(), settle=SETTLE, lease=20))
        shop.deliver()
        assert leases == [pytest.approx(20 + SETTLE, abs=0.01)]

    @pytest.mark.parametrize("on_busy", ["skip", "raise"])
    def test_a_task_that_does_not_wait_for_runs_waits(self, shop: Shop, on_busy: Any) -> None:
        """Nothing runs that would make the message superfluous, or that an error could be about."""
        policy = Idempotency(key="'all'", on_busy=on_busy, recover=lambda record: NotDone(), settle=SETTLE, expires=60)
        shop.sells(raising(TimeoutError()), idempotency=policy)
        shop.deliver()
        shop.deliver(task_id="another")
        assert shop.deferrals() == ["busy"]


class TestDeclaration:
    """What cannot take effect, or defeats the promise, is an error where it is declared."""

    @pytest.mark.parametrize(
        ("options", "says"),
        [
            ({"recover": print}, "recover= needs settle="),
            ({"settle": 5, "on_store_error": "run"}, "settle= cannot be had with on_store_error='run'"),
            ({"on_rerun": "park", "recover": print, "settle": 5}, "on_rerun= has no effect beside recover="),
            ({"recover": print, "settle": 30, "unresolved_for": 10}, "settle= is longer than unresolved_for="),
            ({"on_rerun": "park", "on_store_error": "run"}, "on_rerun='park' cannot be had with on_store_error='run'"),
            ({"recover": print, "settle": 5, "on_store_error": "run"}, "recover= cannot be had with on_store_error"),
            ({"recover": 5, "settle": 5}, "recover=5 is neither callable"),
            ({"recover": print, "settle": -1}, "settle=-1 is not a duration"),
            ({"on_rerun": "ask"}, "on_rerun='ask' is not one of"),
        ],
        ids=[
            *("no settle", "settle or run", "both", "longer than the record", "park or run", "ask or run"),
            *("no function", "negative", "unknown"),
        ],
    )
    def test_what_is_refused(self, options: dict[str, Any], says: str) -> None:
        """With what to do."""
        with pytest.raises(ConfigurationError, match=says):
            Idempotency(**options)

    def test_a_task_decides_for_itself(self) -> None:
        """What it says about reruns replaces what the app says, all of it."""
        asked = asking(lambda record: NotDone())
        assert asked.over({"on_rerun": "park"}).on_rerun == "run"
        parking = PARKING.over({"recover": "os:getcwd", "settle": 5})
        assert (parking.on_rerun, parking.recover, parking.settle) == ("park", None, None)
        assert Idempotency().over({"on_rerun": "park"}).on_rerun == "park"

    def test_a_name_is_imported(self) -> None:
        """As for the other hooks."""
        recover: Any = Idempotency(recover="os:getcwd", settle=0).imported().recover
        assert recover is os.getcwd

    @pytest.mark.parametrize(
        "recover",
        [
            lambda record, order, amount=5, *, note=None: NotDone(),
            lambda record, *args, **kwargs: NotDone(),
            lambda record, order, amount, note: NotDone(),
        ],
        ids=["the same", "anything", "by name too"],
    )
    def test_a_function_that_takes_what_the_body_takes(self, app: Celery, recover: Any) -> None:
        """By position and by name."""

        def charge(order: int, amount: int = 5, *, note: Any = None) -> None: ...

        assert make(app, charge, idempotency=asking(recover)).idempotency_policy.recover is recover

    @pytest.mark.parametrize(
        "recover",
        [lambda record: NotDone(), lambda order, amount: NotDone(), lambda record, order, number: NotDone()],
        ids=["the record only", "no record", "another name"],
    )
    def test_a_function_that_takes_something_else(self, app: Celery, recover: Any) -> None:
        """It would fail in the first rerun, in each of five deliveries."""

        def charge(order: int, amount: int = int(SECRET)) -> None: ...

        with pytest.raises(ConfigurationError, match=r"declare it as def <lambda>\(record, order, amount\)") as raised:
            make(app, charge, idempotency=asking(recover)).bind(app)
        assert SECRET not in str(raised.value)

    def test_a_named_function_that_takes_something_else(self, shop: Shop) -> None:
        """It is imported later, and refused then."""
        shop.sells(lambda task: "paid", idempotency=Idempotency(recover="os:getcwd", settle=0))
        with pytest.raises(ConfigurationError, match="recover=getcwd cannot be called"):
            shop.task.policy_under(settings_of(shop.app))

    def test_a_store_that_cannot_park(self, shop: Shop, store: MemoryStore) -> None:
        """It is refused before the first delivery, not at the first crash."""
        shop.app.conf.idempotency_store = WithoutParking(store)
        shop.sells(lambda task: "paid", idempotency=PARKING)
        with pytest.raises(ConfigurationError, match=r"a WithoutParking has no park\(\)"):
            shop.task.policy_under(settings_of(shop.app))


class WithoutParking:
    """A user's store, of before there was anything to park."""

    def __init__(self, inner: MemoryStore) -> None:
        for name in ("claim", "commit", "restore", "release", "renew", "note_deferral", "note_dispatch", "get"):
            setattr(self, name, getattr(inner, name))
        self.clock = inner.clock
        self.max_data_bytes = inner.max_data_bytes
