"""``at_publish``: what a producer finds out about its key, and what it publishes then."""

import logging
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from celery import Celery
from celery.exceptions import Ignore, Reject, TaskRevokedError
from celery.worker.state import revoked
from kombu.exceptions import EncodeError, OperationalError

from idempotent_tasks import (
    ConfigurationError,
    DuplicateError,
    IdempotentTask,
    MissingKeyError,
    PayloadMismatchError,
    Record,
    Status,
    StoreError,
    StoreMisconfiguredError,
    StoreUnavailableError,
    UnresolvedError,
)
from idempotent_tasks.core.records import is_reservation
from idempotent_tasks.events import Event, Joined, Refused, Released, Reserved, Unreserved
from idempotent_tasks.testing import FakeClock, MemoryStore
from tests.support.guarding import request_by
from tests.support.inline import UNREACHABLE, InlineWorker
from tests.support.shop import Counting, make, raising
from tests.support.stores import FaultyStore, Step, down, lost_answer, passes
from tests.testbed.waiting import wait_for

JOIN = {"key": "order", "at_publish": "join"}
STEPS = {"down": down(), "no-table": down(StoreMisconfiguredError("no table")), "lost-answer": lost_answer()}
RAISE = {"key": "order", "at_publish": "raise"}
PARKED = {"key": "'one'", "expires": 60, "on_rerun": "park"}


def echo(order: Any = None) -> Any:
    """Be a body."""
    return order


def kinds(seen: list[Event]) -> list[str]:
    """Return the names of the events."""
    return [type(event).__name__ for event in seen]


def reasons(seen: list[Event]) -> set[str]:
    """Return why keys were released."""
    return {event.reason for event in list(seen) if isinstance(event, Released)}


def only(store: MemoryStore) -> Record:
    """Return the one record there is."""
    (record,) = store.records()
    return record


class TestJoin:
    """``at_publish="join"``."""

    def test_a_second_publish_gets_the_first_ones_result(
        self, app: Celery, worker: InlineWorker, counting: Counting, seen: list[Event]
    ) -> None:
        """While the first waits in its queue nothing more is published, however the arguments are spelled."""
        task = counting.make(app, idempotency=JOIN)
        first = task.delay("ord-1", 5)
        joined = [task.delay("ord-1"), task.apply_async(kwargs={"order": "ord-1"}), task.s("ord-1").apply_async()]
        assert worker.waiting() == 1
        worker.drain()
        assert {each.id for each in joined} == {first.id}
        assert [each.get() for each in joined] == [[1, "ord-1", 5]] * 3
        assert kinds(seen) == ["Reserved", "Joined", "Joined", "Joined", "Claimed", "Committed"]

    def test_a_running_task_is_joined(self, app: Celery, worker: InlineWorker) -> None:
        """Its delivery took the reservation over, and is named by the record like any holder."""
        joined: list[Any] = []

        def body(self: Any, order: str) -> str:
            joined.append(self.delay(order))
            return "done"

        task = make(app, body, bind=True, idempotency=JOIN)
        first = task.delay("ord-1")
        worker.drain()
        assert joined[0].id == first.id
        assert worker.result(first.id) == "done"

    def test_a_finished_task_is_joined_for_as_long_as_it_is_kept(
        self, app: Celery, worker: InlineWorker, counting: Counting, clock: FakeClock
    ) -> None:
        """After ``expires`` the key is new, and the body runs again."""
        task = counting.make(app, idempotency={**JOIN, "expires": 60})
        first = task.delay("ord-1")
        worker.drain()
        assert task.delay("ord-1").id == first.id
        clock.advance(65)
        second = task.delay("ord-1")
        worker.drain()
        assert (second.id != first.id, worker.result(second.id)) == (True, [2, "ord-1", 5])

    @pytest.mark.parametrize("at_publish", ["join", "raise"])
    def test_the_task_of_a_parked_key(self, app: Celery, worker: InlineWorker, at_publish: str) -> None:
        """It has the key until somebody decides: a publish joins it, or is refused."""
        task = make(app, raising(TimeoutError()), bind=True, idempotency={**PARKED, "at_publish": at_publish})
        for _ in range(2):
            parked = task.delay()
            worker.drain()
        assert isinstance(worker.result(parked.id), UnresolvedError)
        if at_publish == "join":
            assert task.delay().id == parked.id
        else:
            with pytest.raises(DuplicateError, match="parked") as refused:
                task.delay()
            assert refused.value.task_id == parked.id
        assert worker.waiting() == 0

    def test_another_key_is_another_task(self, app: Celery, worker: InlineWorker, counting: Counting) -> None:
        """Keys do not meet."""
        task = counting.make(app, idempotency=JOIN)
        assert task.delay("ord-1").id != task.delay("ord-2").id
        assert worker.drain() == 2

    def test_an_explicit_key(self, app: Celery, worker: InlineWorker, counting: Counting) -> None:
        """It decides for a task without a key option too."""
        task = counting.make(app, idempotency={"at_publish": "join"})
        ids = {task.apply_async((order,), idempotency_key="ord-1").id for order in (1, 2)}
        assert (len(ids), worker.drain()) == (1, 1)

    def test_a_holder_without_a_task_id(
        self, app: Celery, worker: InlineWorker, counting: Counting, store: MemoryStore
    ) -> None:
        """A record that Powertools wrote names no task to wait for: the message is published, and replays it."""
        task = counting.make(app, idempotency={"at_publish": "join", "prefix": "f"})
        expiration = int(store.clock.now()) + 60
        store.restore(Record(key="f#id-foreign", status=Status.COMPLETED, expiration=expiration, data="17"))
        published = task.apply_async(task_id="id-foreign")
        assert (published.id, worker.drain(), worker.result("id-foreign")) == ("id-foreign", 1, 17)

    def test_another_payload_is_told_to_the_producer(
        self, app: Celery, worker: InlineWorker, counting: Counting, seen: list[Event]
    ) -> None:
        """Nobody is given the result of another payload."""
        task = counting.make(app, idempotency={**JOIN, "validate": "amount"})
        task.delay("ord-1", 5)
        with pytest.raises(PayloadMismatchError, match=r"shop\.charge"):
            task.delay("ord-1", 6)
        assert worker.drain() == 1
        assert kinds(seen)[:2] == ["Reserved", "Mismatched"]

    def test_the_result_is_a_child_of_the_body_that_joined(self, app: Celery, worker: InlineWorker) -> None:
        """As what a body publishes is, unless it says otherwise."""
        other = make(app, echo, name="shop.other", idempotency=JOIN)
        first = other.delay("ord-1")
        worker.drain()

        def body(self: Any) -> None:
            other.apply_async(("ord-1",), add_to_parent=False)
            other.delay("ord-1")

        parent = make(app, body, bind=True).delay()
        worker.drain()
        assert [child.id for child in parent.children] == [first.id]


class TestRaise:
    """``at_publish="raise"``."""

    def test_a_duplicate_is_refused_with_the_holders_task_id(
        self, app: Celery, worker: InlineWorker, counting: Counting, seen: list[Event]
    ) -> None:
        """Waiting or done: the error names task, key and the id, and nothing is published."""
        task = counting.make(app, idempotency=RAISE)
        first = task.delay("ord-1")
        with pytest.raises(DuplicateError, match=f"task {first.id} has this key and waits or runs") as caught:
            task.delay("ord-1")
        assert (caught.value.task_id, caught.value.task) == (first.id, "shop.charge")
        assert worker.drain() == 1
        with pytest.raises(DuplicateError, match="is done"):
            task.delay("ord-1")
        assert [event.holder_task_id for event in seen if isinstance(event, Refused)] == [first.id] * 2
        assert "ord-1" not in str(caught.value)

    def test_after_a_failure_the_key_is_free(self, app: Celery, worker: InlineWorker) -> None:
        """A body that raised left no outcome."""

        def body(order: str) -> None:
            raise ValueError(order)

        task = make(app, body, idempotency=RAISE)
        task.delay("ord-1")
        worker.drain()
        assert worker.waiting() == 0
        task.delay("ord-1")
        assert worker.drain() == 1


class TestEnds:
    """However a body ends, nothing has to be unlocked by hand."""

    @pytest.mark.parametrize("error", [ValueError(), Ignore(), Reject("no"), KeyError()], ids=repr)
    @pytest.mark.parametrize("mode", ["join", "raise"])
    def test_a_key_without_an_outcome_is_free(
        self, app: Celery, worker: InlineWorker, mode: str, error: Exception
    ) -> None:
        """Failed, ignored or rejected: the next publish is granted."""
        errors = [error]

        def body(order: str) -> str:
            if errors:
                raise errors.pop()
            return "done"

        task = make(app, body, idempotency={"key": "order", "at_publish": mode})
        first = task.delay("ord-1")
        worker.drain()
        second = task.delay("ord-1")
        assert (worker.drain(), second.id != first.id, worker.result(second.id)) == (1, True, "done")

    def test_handlers_of_a_subclass_are_its_own_business(self, app: Celery, worker: InlineWorker) -> None:
        """Handlers that call no ``super()`` keep no key locked, and a handler that raises none either."""

        class Careless(IdempotentTask):
            """A base that overrides what it likes."""

            abstract = True

            def on_success(self, *args: Any) -> None:
                """Say nothing to the base."""

            def on_failure(self, *args: Any) -> None:
                """Say nothing to the base."""

            def after_return(self, *args: Any) -> None:
                """Say nothing to the base."""

        errors = [ValueError()]

        def body(order: str) -> str:
            if errors:
                raise errors.pop()
            return "done"

        task = make(app, body, base=Careless, idempotency=RAISE)
        task.delay("ord-1")
        worker.drain()
        second = task.delay("ord-1")
        assert (worker.drain(), worker.result(second.id)) == (1, "done")

    def test_a_body_that_changes_its_arguments(self, app: Celery, worker: InlineWorker, store: MemoryStore) -> None:
        """The key is that of the call, before and after."""

        def body(order: dict[str, int]) -> str:
            order["id"] = 99
            return "done"

        task = make(app, body, idempotency={"key": "order.id", "at_publish": "join"})
        first = task.delay({"id": 1})
        worker.drain()
        assert task.delay({"id": 1}).id == first.id
        assert [record.status for record in store.records()] == [Status.COMPLETED]
        assert task.delay({"id": 99}).id != first.id

    def test_one_at_a_time_and_then_again(
        self, app: Celery, worker: InlineWorker, counting: Counting, clock: FakeClock
    ) -> None:
        """With a short ``expires`` and ``lease`` a key is joined while it waits or runs, and new soon after."""
        task = counting.make(app, idempotency={**JOIN, "expires": 1, "lease": 2})
        first = task.delay("ord-1")
        assert task.delay("ord-1").id == first.id
        worker.drain()
        clock.advance(5)
        second = task.delay("ord-1")
        assert (second.id != first.id, worker.drain(), counting.runs) == (True, 1, 2)

    def test_a_change_that_must_not_be_missed_is_part_of_the_key(self, app: Celery, worker: InlineWorker) -> None:
        """A publish that means something newer than what runs has another key, and is published."""
        seen: list[list[int]] = []

        def body(self: Any, segment: int, version: int) -> None:
            seen.append([segment, version])
            if version == 1:
                self.delay(segment, 1)
                self.delay(segment, 2)

        task = make(app, body, bind=True, idempotency={"key": "[segment, version]", "at_publish": "join"})
        task.delay(7, 1)
        worker.drain()
        assert seen == [[7, 1], [7, 2]]


def test_producers_at_the_same_moment(app: Celery, worker: InlineWorker, counting: Counting) -> None:
    """Eight threads publish each of ten orders at once: one message for each order, and one result."""
    task = counting.make(app, idempotency=JOIN)
    app.finalize()
    start = threading.Barrier(8)

    def publish(_: int) -> list[str]:
        start.wait(30)
        return [task.delay(f"ord-{number}").id for number in range(10)]

    with ThreadPoolExecutor(8) as pool:
        published = list(pool.map(publish, range(8)))
    assert all(ids == published[0] for ids in published)
    assert worker.waiting() == 10


class TestReservation:
    """What the store holds between a publish and its delivery."""

    def test_the_delivery_takes_it_over_as_its_first_attempt(
        self, app: Celery, worker: InlineWorker, store: MemoryStore
    ) -> None:
        """The key in the producer is the key in the worker; attempt 1, no crash counted."""
        seen: list[tuple[str, int]] = []

        def body(self: Any, order: Any) -> None:
            seen.append((self.idempotency.key, self.idempotency.attempt))

        # As arguments change on their way: a tuple to a list, a key of a mapping to text.
        key = {"at_publish": "join", "key": lambda order: [type(order["1"]).__name__, order]}
        task = make(app, body, bind=True, idempotency=key)
        published = task.delay({"1": (1, 2)})
        reserved = only(store)
        assert (is_reservation(reserved), reserved.task_id) == (True, published.id)
        worker.drain()
        assert seen == [(reserved.key, 1)]
        assert only(store).status is Status.COMPLETED

    def test_a_duplicate_published_elsewhere_waits_for_the_reserved_one(
        self, app: Celery, worker: InlineWorker, counting: Counting, seen: list[Event]
    ) -> None:
        """Another producer that asks nothing: its delivery is deferred, the reserved one runs, and it replays."""
        task = counting.make(app, idempotency=JOIN)
        app.send_task("shop.charge", ("ord-1",), task_id="careless")
        reserved = task.delay("ord-1")
        worker.drain()
        assert worker.result(reserved.id) == worker.result("careless") == [1, "ord-1", 5]
        assert kinds(seen) == ["Reserved", "Deferred", "Claimed", "Committed", "Replayed"]

    @pytest.mark.parametrize(
        ("options", "held"),
        [
            ({}, 300),
            ({"countdown": 60}, 360),
            ({"countdown": -60}, 300),
            ({"expires": 100}, 105),
            ({"expires": 10_000}, 300),
            ({"countdown": 60, "expires": 70}, 75),
            ({"expires": 0.5, "countdown": 60}, 5.5),
        ],
        ids=str,
    )
    def test_how_long_it_holds(
        self, app: Celery, counting: Counting, store: MemoryStore, options: dict[str, Any], held: float
    ) -> None:
        """Until the message can run and ``reserve`` longer, but not past what drops the message, plus ``grace``."""
        task = counting.make(app, idempotency=JOIN)
        task.apply_async(("ord-1",), **options)
        assert only(store).held_until == pytest.approx(store.clock.now() + held)

    @pytest.mark.parametrize(
        "form",
        [lambda at: at, datetime.isoformat, lambda at: at.replace(tzinfo=None)],
        ids=["aware", "text", "naive"],
    )
    def test_moments_count_like_spans(
        self, app: Celery, counting: Counting, store: MemoryStore, form: Callable[[datetime], Any]
    ) -> None:
        """``eta`` and ``expires`` as a time, as text, or naive in the app's zone."""
        app.conf.timezone = "UTC"
        task = counting.make(app, idempotency={**JOIN, "reserve": timedelta(minutes=1)})
        now = datetime.now(UTC)
        task.apply_async(("ord-1",), eta=form(now + timedelta(hours=1)))
        task.apply_async(("ord-2",), expires=form(now + timedelta(seconds=30)))
        held = [record.held_until - store.clock.now() for record in store.records()]
        assert held == pytest.approx([3660, 35], abs=5)

    def test_a_tasks_own_expiry_counts(self, app: Celery, counting: Counting, store: MemoryStore) -> None:
        """Options of the task class are what ``apply_async`` starts from."""
        counting.make(app, expires=20, idempotency=JOIN).delay("ord-1")
        assert only(store).held_until == pytest.approx(store.clock.now() + 25)

    def test_a_lost_message(
        self, app: Celery, worker: InlineWorker, counting: Counting, clock: FakeClock, queue: str
    ) -> None:
        """Publishes join what will never come until the reservation expires; the next one runs."""
        task = counting.make(app, idempotency={**JOIN, "reserve": 60})
        lost = task.delay("ord-1")
        app.control.purge()
        assert task.delay("ord-1").id == lost.id
        clock.advance(61)
        second = task.delay("ord-1")
        assert (second.id != lost.id, worker.drain(), worker.result(second.id)) == (True, 1, [1, "ord-1", 5])

    def test_a_redelivery_finds_the_key_claimed(
        self, app: Celery, worker: InlineWorker, counting: Counting, seen: list[Event]
    ) -> None:
        """The same message twice is one run, as without a reservation."""
        task = counting.make(app, idempotency=JOIN)
        first = task.delay("ord-1")
        worker.drain()
        app.send_task("shop.charge", ("ord-1",), task_id=first.id)
        worker.drain()
        assert (counting.runs, kinds(seen)[-1]) == (1, "Replayed")

    def test_a_message_that_its_worker_drops(
        self, app: Celery, worker: InlineWorker, counting: Counting, seen: list[Event]
    ) -> None:
        """Revoked, or past its ``expires``: the key is free at once, and the next publish is granted."""
        task = counting.make(app, idempotency=JOIN)
        late = task.apply_async(("ord-1",), expires=datetime.now(UTC) - timedelta(seconds=1))
        unwanted = task.apply_async(("ord-2",))
        revoked.add(unwanted.id)
        for _ in range(2):
            with pytest.raises(TaskRevokedError):
                worker.run_next()
        wait_for(lambda: reasons(seen) >= {"Expired", "Revoked"}, 10, lambda: f"released: {reasons(seen)}")
        again = [task.delay("ord-1"), task.delay("ord-2")]
        assert [worker.state(each.id) for each in (late, unwanted)] == ["REVOKED"] * 2
        assert (worker.drain(), [worker.state(each.id) for each in again]) == (2, ["SUCCESS"] * 2)

    def test_a_message_that_was_dropped_elsewhere_holds_its_key_no_longer_than_its_expiry(
        self, app: Celery, counting: Counting, clock: FakeClock
    ) -> None:
        """By a queue's own time to live, or a worker that could not tell the store."""
        task = counting.make(app, idempotency=JOIN)
        first = task.apply_async(("ord-1",), expires=10)
        clock.advance(16)
        assert task.delay("ord-1").id != first.id


class TestRetry:
    """A retry that waits: its key stays reserved for it."""

    def test_a_publish_meanwhile_joins_it(self, app: Celery, worker: InlineWorker, seen: list[Event]) -> None:
        """Or is refused under ``"raise"``: the task is neither done nor failed."""
        runs: list[int] = []

        def body(self: Any, order: str) -> str:
            runs.append(self.request.retries)
            if not self.request.retries:
                raise self.retry(countdown=60)
            return "done"

        task = make(app, body, bind=True, idempotency=JOIN)
        first = task.delay("ord-1")
        worker.run_next()
        assert (task.delay("ord-1").id, worker.waiting()) == (first.id, 1)
        worker.drain()
        assert (runs, worker.result(first.id)) == ([0, 1], "done")
        assert kinds(seen) == [
            "Reserved",
            "Claimed",
            "Released",
            "Reserved",
            "Joined",
            "Claimed",
            "Committed",
        ]

    @pytest.mark.parametrize(("options", "seconds"), [({"countdown": 60}, 360), ({"countdown": 0}, 300)])
    def test_for_its_countdown_and_its_time_in_the_queue(
        self, app: Celery, worker: InlineWorker, store: MemoryStore, options: dict[str, Any], seconds: float
    ) -> None:
        """As a first publish with that countdown would."""

        def body(self: Any, order: str) -> None:
            raise self.retry(**options)

        make(app, body, bind=True, idempotency=JOIN).delay("ord-1")
        worker.run_next()
        record = only(store)
        assert is_reservation(record)
        assert record.held_until - store.clock.now() == pytest.approx(seconds, abs=1)

    def test_a_duplicate_that_was_published_before_waits_for_it(
        self, app: Celery, worker: InlineWorker, seen: list[Event]
    ) -> None:
        """It came past the producer's check; while the key was free it would have run in the retry's place."""
        runs: list[str] = []

        def body(self: Any, order: str) -> None:
            runs.append(self.request.id)
            if len(runs) == 1:
                raise self.retry(countdown=60)

        task = make(app, body, bind=True, idempotency=JOIN)
        first = task.delay("ord-1")
        app.send_task(task.name, ("ord-1",))
        retried = worker.run_next()
        worker.run_next()
        assert (runs, retried.headers["id"]) == ([first.id], first.id)
        assert kinds(seen)[-1] == "Deferred"

    def test_a_retry_that_its_worker_drops_frees_it(
        self, app: Celery, worker: InlineWorker, store: MemoryStore
    ) -> None:
        """A revoked retry reserves nothing."""

        def body(self: Any, order: str) -> None:
            raise self.retry(countdown=60)

        first = make(app, body, bind=True, idempotency=JOIN).delay("ord-1")
        worker.run_next()
        revoked.add(first.id)
        with pytest.raises(TaskRevokedError):
            worker.run_next()
        wait_for(lambda: only(store).free, 10, "the reservation of the retry is not released")

    def test_none_is_asked_for_without_at_publish(self, app: Celery, worker: InlineWorker, seen: list[Event]) -> None:
        """Nobody would be told; a duplicate may run in the retry's place."""

        def body(self: Any, order: str) -> None:
            raise self.retry(countdown=60)

        make(app, body, bind=True, idempotency={"key": "order"}).delay("ord-1")
        worker.run_next()
        assert kinds(seen) == ["Claimed", "Released"]

    def test_a_store_that_does_not_answer_stops_no_retry(
        self, app: Celery, worker: InlineWorker, store: MemoryStore, seen: list[Event]
    ) -> None:
        """The message is published, unreserved."""
        app.conf.idempotency_store = FaultyStore(store, claim=[passes, passes, *[down()] * 100])

        def body(self: Any, order: str) -> None:
            raise self.retry(countdown=60)

        make(app, body, bind=True, idempotency=JOIN).delay("ord-1")
        worker.run_next()
        assert (worker.waiting(), kinds(seen)[-1]) == (1, "Unreserved")


class TestFailingPublish:
    """The broker does not take the message."""

    def test_the_key_is_free_at_once(
        self, app: Celery, worker: InlineWorker, counting: Counting, store: MemoryStore
    ) -> None:
        """The producer hears the broker's error, and the next publish is granted."""
        task = counting.make(app, idempotency=JOIN)
        reachable = {name: app.conf.get(name) for name in UNREACHABLE}
        app.conf.update(UNREACHABLE)
        with pytest.raises(OperationalError):
            task.delay("ord-1")
        assert only(store).free
        app.conf.update(reachable)

    def test_arguments_that_cannot_be_sent_reserve_nothing(
        self, app: Celery, counting: Counting, store: MemoryStore
    ) -> None:
        """The error is Celery's own."""
        task = counting.make(app, idempotency={"at_publish": "join", "key": lambda order, **_: len(order)})
        with pytest.raises(EncodeError):
            task.delay(object())
        assert store.records() == []

    def test_crashes_are_still_counted(
        self, app: Celery, counting: Counting, store: MemoryStore, clock: FakeClock
    ) -> None:
        """A publish that fails is no clean end of a body that crashed."""
        app.conf.update(UNREACHABLE)
        task = counting.make(app, idempotency=JOIN)
        with pytest.raises(OperationalError):
            task.delay("ord-1")
        store.claim(request_by("dies", key=only(store).key))
        clock.advance(31)
        with pytest.raises(OperationalError):
            task.delay("ord-1")
        record = only(store)
        assert (record.task_id != "id-dies", record.free, record.attempt) == (True, True, 1)

    @pytest.mark.parametrize(
        "step", [down(KeyboardInterrupt()), lost_answer(KeyboardInterrupt())], ids=["before", "after"]
    )
    def test_an_interrupt_while_the_store_is_asked(
        self, app: Celery, counting: Counting, store: MemoryStore, step: Step
    ) -> None:
        """A producer that is told to stop leaves no reservation behind."""
        app.conf.idempotency_store = FaultyStore(store, claim=[step])
        with pytest.raises(KeyboardInterrupt):
            counting.make(app, idempotency=JOIN).delay("ord-1")
        assert all(record.free for record in store.records())

    def test_a_reservation_whose_answer_was_lost(self, app: Celery, counting: Counting, store: MemoryStore) -> None:
        """It was made all the same: nobody may join a task that is not published."""
        app.conf.idempotency_store = FaultyStore(store, claim=[lost_answer()] * 50)
        app.conf.update(UNREACHABLE)
        with pytest.raises(OperationalError):
            counting.make(app, idempotency=JOIN).delay("ord-1")
        assert only(store).free

    def test_an_unwilling_store_after_a_failed_publish(
        self, app: Celery, counting: Counting, store: MemoryStore, clock: FakeClock
    ) -> None:
        """The producer hears the broker's error and not the store's; the reservation expires."""
        app.conf.idempotency_store = FaultyStore(store, release=[down()])
        app.conf.update(UNREACHABLE)
        task = counting.make(app, idempotency=JOIN)
        with pytest.raises(OperationalError):
            task.delay("ord-1")
        assert is_reservation(only(store))


class TestStoreErrors:
    """The producer cannot ask: no credentials, no table, no network."""

    @pytest.fixture(params=STEPS.values(), ids=list(STEPS))
    def cut_off(self, request: pytest.FixtureRequest, app: Celery, store: MemoryStore) -> Celery:
        """A producer's app whose store fails; the worker's will be healed."""
        app.conf.idempotency_store = FaultyStore(store, claim=[request.param] * 50)
        return app

    @pytest.mark.parametrize("policy", ["defer", "run"])
    def test_it_is_published_all_the_same(  # noqa: PLR0917 - fixtures
        self,
        cut_off: Celery,
        worker: InlineWorker,
        counting: Counting,
        store: MemoryStore,
        seen: list[Event],
        caplog: pytest.LogCaptureFixture,
        policy: str,
    ) -> None:
        """Nothing is lost: the delivery is guarded, also under a reservation whose answer was lost; a line warns."""
        task = counting.make(cut_off, idempotency={**JOIN, "on_store_error": policy})
        with caplog.at_level(logging.WARNING):
            published = task.delay("ord-1")
        cut_off.conf.idempotency_store = store
        assert "is published unreserved: " in caplog.text
        assert "ord-1" not in caplog.text
        assert any(isinstance(event, Unreserved) for event in seen)
        worker.drain()
        assert worker.result(published.id) == [1, "ord-1", 5]

    def test_or_refused_where_the_policy_says_so(
        self, cut_off: Celery, worker: InlineWorker, counting: Counting, store: MemoryStore
    ) -> None:
        """``on_store_error="raise"``: the producer hears the store's error, and no reservation stays behind."""
        task = counting.make(cut_off, idempotency={**JOIN, "on_store_error": "raise"})
        with pytest.raises(StoreError):
            task.delay("ord-1")
        assert worker.waiting() == 0
        assert all(record.free for record in store.records())

    def test_a_producer_does_not_wait_long(
        self, app: Celery, counting: Counting, store: MemoryStore, clock: FakeClock
    ) -> None:
        """Somebody's request waits for the publish: about a second of tries, where a delivery takes five."""
        began = clock.now()
        app.conf.idempotency_store = FaultyStore(store, claim=[down()] * 50)
        counting.make(app, idempotency=JOIN).delay("ord-1")
        assert clock.now() - began <= 1

    def test_a_short_outage_is_sat_out(self, app: Celery, counting: Counting, store: MemoryStore) -> None:
        """One failed try is followed by another."""
        app.conf.idempotency_store = FaultyStore(store, claim=[down(StoreUnavailableError("throttled"))])
        counting.make(app, idempotency=JOIN).delay("ord-1")
        assert is_reservation(only(store))


class TestNothingIsAsked:
    """Publishes that cost the store nothing."""

    @pytest.fixture
    def asked(self, app: Celery, store: MemoryStore) -> list[str]:
        """What the store is asked."""
        faulty = FaultyStore(store)
        app.conf.idempotency_store = faulty
        return faulty.calls

    def test_by_default(self, app: Celery, counting: Counting, asked: list[str]) -> None:
        """``send`` publishes like Celery."""
        counting.make(app, idempotency={"key": "order"}).delay("ord-1")
        assert asked == []

    def test_a_producer_without_a_store(self, app: Celery, worker: InlineWorker, counting: Counting) -> None:
        """It needs none for ``send``, and is told so for the others."""
        app.conf.idempotency_store = None
        counting.make(app, idempotency={"key": "order"}).delay("ord-1")
        assert worker.waiting() == 1
        with pytest.raises(ConfigurationError, match="has no idempotency store"):
            counting.make(app, name="shop.join", idempotency=JOIN).delay("ord-1")

    def test_a_new_task_id_is_nobodys_key(self, app: Celery, counting: Counting, asked: list[str]) -> None:
        """Without a key option every call is a task of its own; one with an id of the caller's may not be."""
        task = counting.make(app, idempotency={"at_publish": "join"})
        task.delay("ord-1")
        assert asked == []
        assert task.apply_async(("ord-1",), task_id="id-1").id == "id-1"
        assert asked == ["claim"]

    def test_under_the_kill_switch(
        self, app: Celery, counting: Counting, asked: list[str], worker: InlineWorker
    ) -> None:
        """A disabled library asks nothing."""
        app.conf.idempotency_disabled = True
        task = counting.make(app, idempotency=JOIN)
        task.delay("ord-1")
        task.delay("ord-1")
        assert (worker.waiting(), asked) == (2, [])

    def test_eagerly(self, app: Celery, counting: Counting, asked: list[str]) -> None:
        """A call that runs here and now is claimed as ever, and a second one replays."""
        app.conf.task_always_eager = True
        task = counting.make(app, idempotency=JOIN)
        assert [task.delay("ord-1").get(), task.delay("ord-1").get()] == [[1, "ord-1", 5]] * 2
        assert asked == ["claim", "commit", "claim"]

    def test_one_write_where_it_is_asked(self, app: Celery, counting: Counting, asked: list[str]) -> None:
        """A reservation, a join: one call each."""
        task = counting.make(app, idempotency=JOIN)
        task.delay("ord-1")
        task.delay("ord-1")
        assert asked == ["claim", "claim"]


def test_the_apps_default(app: Celery, worker: InlineWorker, counting: Counting, seen: list[Event]) -> None:
    """``idempotency_at_publish`` is the default of every task; one that says ``send`` keeps it."""
    app.conf.update(idempotency_at_publish="join", idempotency_reserve=60)
    task = counting.make(app, idempotency={"key": "order"})
    task.delay("ord-1")
    task.delay("ord-1")
    careless = counting.make(app, name="shop.other", idempotency={"key": "order", "at_publish": "send"})
    careless.delay("ord-1")
    careless.delay("ord-1")
    assert worker.waiting() == 3
    assert [event.seconds for event in seen if isinstance(event, Reserved)] == [60.0]
    assert [type(event) for event in seen if not isinstance(event, Reserved)] == [Joined]


class TestWrongCalls:
    """Calls that no worker could make sense of."""

    def test_a_missing_key_is_told_to_the_producer(self, app: Celery, worker: InlineWorker) -> None:
        """Where the mistake is made, and before anything is published."""
        task = make(app, echo, idempotency=JOIN)
        with pytest.raises(MissingKeyError):
            task.delay(None)
        assert worker.waiting() == 0

    def test_or_published_where_the_policy_says_so(self, app: Celery, worker: InlineWorker, store: MemoryStore) -> None:
        """``missing_key="run"``: nothing to reserve, and the worker runs it unguarded."""
        task = make(app, echo, idempotency={**JOIN, "missing_key": "run"})
        task.delay(None)
        assert (worker.drain(), store.records()) == (1, [])

    def test_positional_options_are_looked_at(self, app: Celery, worker: InlineWorker, counting: Counting) -> None:
        """A link by position is a link: what follows a duplicate is never lost."""
        task = counting.make(app, idempotency=JOIN)
        task.apply_async(("ord-1",), None, None, None, task.si("ord-2"))
        task.apply_async(("ord-1",), None, None, None, task.si("ord-3"))
        assert worker.waiting() == 2


def test_the_same_task_id_again(app: Celery, worker: InlineWorker, counting: Counting) -> None:
    """A producer that is not sure of its first try publishes again: the reservation is its own, a result it joins."""
    task = counting.make(app, idempotency=JOIN)
    for _ in range(2):
        assert task.apply_async(("ord-1",), task_id="id-1").id == "id-1"
    assert worker.drain() == 2
    assert counting.runs == 1
    assert task.apply_async(("ord-1",), task_id="id-1").id == "id-1"
    assert worker.waiting() == 0


def test_pydantic_arguments(app: Celery, worker: InlineWorker, store: MemoryStore) -> None:
    """A model is reserved as the mapping that travels, where this Celery sends models at all."""
    pydantic = pytest.importorskip("pydantic")
    order_model = pydantic.create_model("Order", id=(int, ...))

    def charge(order: Any) -> int:
        return int(order.id)

    charge.__annotations__ = {"order": order_model, "return": int}
    task = make(app, charge, pydantic=True, idempotency={"key": "order.id", "at_publish": "join"})
    if getattr(task, "_dump_pydantic_arguments", None) is None:
        pytest.skip("this Celery does not dump models when it publishes")
    published = task.delay(order_model(id=7))
    assert task.delay(order_model(id=7)).id == published.id
    worker.drain()
    assert (worker.result(published.id), len(store.records())) == (7, 1)
