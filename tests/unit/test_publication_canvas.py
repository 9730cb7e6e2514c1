"""``at_publish`` and everything that publishes on somebody's behalf: retries, canvases, beat, Django, deferrals."""

from datetime import timedelta
from typing import Any

import pytest
from celery import Celery, chain, chord, group
from celery.beat import ScheduleEntry, Scheduler, SchedulingError
from celery.schedules import schedule

from idempotent_tasks import DuplicateError
from idempotent_tasks.core.records import is_reservation
from idempotent_tasks.events import Event
from idempotent_tasks.testing import MemoryStore
from tests.support.inline import InlineWorker
from tests.support.shop import Counting, make
from tests.support.stores import FaultyStore, down

MODES = ["join", "raise"]
each_mode = pytest.mark.parametrize("mode", MODES)


def by_order(mode: str) -> dict[str, Any]:
    """Return a policy with a key from the arguments."""
    return {"key": "order", "at_publish": mode}


def follow(value: Any, name: str) -> list[Any]:
    """Be a body that gets another's result."""
    return [value, name]


def kinds(seen: list[Event]) -> list[str]:
    """Return the names of the events."""
    return [type(event).__name__ for event in seen]


class TestRetries:
    """A message that the task sends again is no publish of a user."""

    @each_mode
    def test_a_retry_is_published(self, app: Celery, worker: InlineWorker, store: MemoryStore, mode: str) -> None:
        """It meets neither its own reservation nor its own claim; its key stays reserved while it waits."""
        owners: list[bool] = []

        def body(self: Any, order: str) -> int:
            if self.request.retries < 2:
                raise self.retry(countdown=0)
            return int(self.request.retries)

        task = make(app, body, bind=True, idempotency=by_order(mode))
        first = task.delay("ord-1")
        for _ in range(2):
            worker.run_next()
            owners.extend(map(is_reservation, store.records()))
        assert (worker.drain(), worker.result(first.id), owners) == (1, 2, [True, True])

    @each_mode
    def test_autoretry(self, app: Celery, worker: InlineWorker, mode: str) -> None:
        """``autoretry_for`` goes the same way, and a joiner has the result that comes at last."""
        failures = [KeyError(), KeyError()]

        def body(order: str) -> str:
            if failures:
                raise failures.pop()
            return "done"

        options = {"autoretry_for": (KeyError,), "retry_kwargs": {"countdown": 0}}
        task = make(app, body, idempotency=by_order(mode), **options)
        first = task.delay("ord-1")
        assert (worker.drain(), worker.result(first.id)) == (3, "done")

    def test_who_joined_before_a_retry_has_its_result(self, app: Celery, worker: InlineWorker) -> None:
        """The retry has the task id that the joiner waits for."""

        def body(self: Any, order: str) -> str:
            if not self.request.retries:
                raise self.retry(countdown=0)
            return "done"

        task = make(app, body, bind=True, idempotency=by_order("join"))
        task.delay("ord-1")
        joined = task.delay("ord-1")
        worker.drain()
        assert joined.get() == "done"

    def test_a_retry_beside_a_newer_publish(
        self, app: Celery, worker: InlineWorker, counting: Counting, seen: list[Event]
    ) -> None:
        """A key that waits for its retry is free: a publish reserves it, the retry waits, and one body counts."""
        runs: list[str] = []

        def body(self: Any, order: str) -> str:
            runs.append(self.request.id)
            if len(runs) == 1:
                raise self.retry(countdown=0)
            return "done"

        task = make(app, body, bind=True, idempotency=by_order("join"))
        first = task.delay("ord-1")
        worker.run_next()
        second = task.delay("ord-1")
        worker.drain()
        assert runs == [first.id, second.id]
        assert (worker.result(first.id), worker.result(second.id)) == ("done", "done")

    def test_a_body_that_publishes_its_own_id(self, app: Celery, worker: InlineWorker) -> None:
        """Its own way of retrying frees the key, and the message is published."""
        runs: list[int] = []

        def body(self: Any, order: str) -> str:
            runs.append(1)
            if len(runs) == 1:
                self.apply_async((order,), task_id=self.request.id)
            return "done"

        task = make(app, body, bind=True, idempotency=by_order("raise"))
        task.delay("ord-1")
        assert (worker.drain(), len(runs)) == (2, 2)


class TestCanvas:
    """What another task waits for is always published; duplicates meet in the worker."""

    @each_mode
    def test_every_step_of_a_chain_runs_or_replays(
        self, app: Celery, worker: InlineWorker, counting: Counting, mode: str
    ) -> None:
        """Two chains over the same keys: each goes to its end, each key has one run."""
        task = counting.make(app, idempotency=by_order(mode))
        chains = [chain(task.si(1), task.si(2), task.si(3)).apply_async() for _ in range(2)]
        assert worker.drain() == 6
        assert [worker.result(each.id) for each in chains] == [[3, 3, 5]] * 2
        assert counting.runs == 3

    @each_mode
    def test_two_chains_that_begin_with_one_key(
        self, app: Celery, worker: InlineWorker, counting: Counting, mode: str
    ) -> None:
        """The first step runs once, and both of what follows it."""
        task = counting.make(app, idempotency=by_order(mode))
        follower = make(app, follow, name="shop.follow", idempotency={"at_publish": mode})
        chains = [chain(task.si(42), follower.s(name)).apply_async() for name in ("one", "two")]
        worker.drain()
        assert [worker.result(each.id) for each in chains] == [[[1, 42, 5], "one"], [[1, 42, 5], "two"]]

    @each_mode
    def test_a_chain_after_a_plain_publish(
        self, app: Celery, worker: InlineWorker, counting: Counting, mode: str
    ) -> None:
        """A key that is waiting, running or done does not stop a chain, nor fail the step before it."""
        task = counting.make(app, idempotency=by_order(mode))
        task.delay(2)
        steps = chain(task.si(1), task.si(2), task.si(3)).apply_async()
        worker.drain()
        assert (steps.parent.state, steps.parent.parent.state) == ("SUCCESS", "SUCCESS")
        assert (steps.get()[1], counting.runs) == (3, 3)

    @each_mode
    def test_a_group_is_complete(self, app: Celery, worker: InlineWorker, counting: Counting, mode: str) -> None:
        """Members with one key are one run and have a result each."""
        task = counting.make(app, idempotency=by_order(mode))
        result = group(task.si(1), task.si(1), task.si(2)).apply_async()
        worker.drain()
        assert [each.get()[1] for each in result] == [1, 1, 2]
        assert (len({each.id for each in result}), counting.runs) == (3, 2)

    @each_mode
    def test_a_chord_is_complete(self, app: Celery, worker: InlineWorker, counting: Counting, mode: str) -> None:
        """Every part counts, and a body with a key that is done already has its result."""
        task = counting.make(app, idempotency=by_order(mode))
        done = task.delay("sum")
        worker.drain()
        body = chord([task.si(1), task.si(1), task.si(2)])(task.si("sum"))
        worker.drain()
        assert worker.result(body.id) == worker.result(done.id)
        assert (body.id != done.id, counting.runs) == (True, 3)

    @each_mode
    def test_links_are_followed(self, app: Celery, worker: InlineWorker, counting: Counting, mode: str) -> None:
        """A duplicate with a continuation is published for its continuation's sake; a link may be a duplicate too."""
        task = counting.make(app, idempotency=by_order(mode))
        first = task.delay(1)
        second = task.apply_async((1,), link=task.si(2))
        third = task.apply_async((1,), link=task.si(2), link_error=task.si(3))
        assert len({first.id, second.id, third.id}) == 3
        worker.drain()
        assert counting.runs == 2

    @each_mode
    def test_an_error_link_is_followed(self, app: Celery, worker: InlineWorker, counting: Counting, mode: str) -> None:
        """Which task fails, and whose error callback is called, is not the first publisher's business alone."""

        def body(order: str) -> None:
            raise ValueError(order)

        handler = counting.make(app, name="shop.handler", idempotency=by_order(mode))
        task = make(app, body, idempotency=by_order(mode))
        task.delay("ord-1")
        task.apply_async(("ord-1",), link_error=handler.si("ord-1"))
        worker.drain()
        assert counting.runs == 1

    @each_mode
    def test_a_replacement_is_published(self, app: Celery, worker: InlineWorker, counting: Counting, mode: str) -> None:
        """Whoever waits for the replaced task waits for this very message."""
        other = counting.make(app, name="shop.other", idempotency=by_order(mode))

        def body(self: Any, order: str) -> None:
            raise self.replace(other.si(order))

        task = make(app, body, bind=True, idempotency=by_order(mode))
        other.delay("ord-1")
        replaced = task.delay("ord-1")
        worker.drain()
        assert (worker.result(replaced.id), counting.runs) == ([1, "ord-1", 5], 1)

    @each_mode
    def test_a_frozen_signature_is_published(
        self, app: Celery, worker: InlineWorker, counting: Counting, mode: str
    ) -> None:
        """Its result object is in somebody's hands already."""
        task = counting.make(app, idempotency=by_order(mode))
        task.delay("ord-1")
        signature = task.s("ord-1")
        result = signature.freeze()
        signature.apply_async()
        worker.drain()
        assert result.get() == [1, "ord-1", 5]

    def test_a_free_key_is_reserved_for_a_member(
        self, app: Celery, worker: InlineWorker, counting: Counting, store: MemoryStore
    ) -> None:
        """So that a plain publish joins the member of a chain that waits in its queue."""
        task = counting.make(app, idempotency=by_order("join"))
        chain(task.si(1), task.si(2)).apply_async()
        joined = task.delay(1)
        assert [record.task_id for record in store.records()] == [joined.id]
        assert (worker.drain(), worker.result(joined.id)) == (2, [1, 1, 5])

    def test_a_canvas_with_another_payload_fails_in_the_worker(
        self, app: Celery, worker: InlineWorker, counting: Counting, seen: list[Event]
    ) -> None:
        """Visibly, as its own task: half a group is never published."""
        task = counting.make(app, idempotency={**by_order("join"), "validate": "amount"})
        task.delay("ord-1", 5)
        result = group(task.si("ord-1", 6), task.si("ord-2", 6)).apply_async()
        worker.drain()
        assert [each.state for each in result] == ["FAILURE", "SUCCESS"]


class TestDeferrals:
    """Copies that wait for their key."""

    def test_a_deferred_copy_is_published_and_reserves_nothing(
        self, app: Celery, worker: InlineWorker, counting: Counting, store: MemoryStore
    ) -> None:
        """The copy of a duplicate leaves the reservation of the holder as it is."""
        task = counting.make(app, idempotency=by_order("join"))
        app.send_task("shop.charge", ("ord-1",), task_id="careless")
        reserved = task.delay("ord-1")
        (before,) = store.records()
        worker.run_next()
        (after,) = store.records()
        assert (after.owner, after.task_id, after.fence) == (before.owner, reserved.id, before.fence)
        worker.drain()
        assert worker.result("careless") == worker.result(reserved.id)

    def test_a_reserved_delivery_that_is_deferred_keeps_its_reservation(
        self, app: Celery, worker: InlineWorker, counting: Counting, store: MemoryStore
    ) -> None:
        """Where its own claim fails for a while, its copy has the same task id and takes the key over."""
        task = counting.make(app, idempotency=by_order("join"))
        first = task.delay("ord-1")
        app.conf.idempotency_store = FaultyStore(store, claim=[down()] * 50)
        worker.run_next()
        app.conf.idempotency_store = store
        assert list(map(is_reservation, store.records())) == [True]
        assert (worker.drain(), counting.runs, worker.result(first.id)) == (1, 1, [1, "ord-1", 5])


class TestBeat:
    """Celery's scheduler publishes through the same door."""

    @pytest.fixture
    def tick(self, app: Celery) -> Any:
        """Let the schedule's one entry be due once more, and return what was published for it."""

        def tick(**options: Any) -> Any:
            every = schedule(timedelta(seconds=1), app=app)
            entry = ScheduleEntry(name="often", task="shop.charge", schedule=every, options=options, app=app)
            return Scheduler(app, lazy=True).apply_async(entry, advance=False)

        return tick

    def test_a_tick_joins_the_one_before(
        self, worker: InlineWorker, app: Celery, counting: Counting, tick: Any
    ) -> None:
        """A run that takes longer than the interval does not pile up messages; the next interval runs again."""
        policy = {"key": lambda *_: "often", "at_publish": "join", "expires": 1}
        counting.make(app, idempotency=policy)
        ids = {tick().id for _ in range(3)}
        assert (len(ids), worker.drain()) == (1, 1)

    def test_a_key_in_the_schedule(self, worker: InlineWorker, app: Celery, counting: Counting, tick: Any) -> None:
        """An entry's options may name it."""
        counting.make(app, idempotency={"at_publish": "join"})
        assert tick(idempotency_key="often").id == tick(idempotency_key="often").id
        assert worker.drain() == 1

    def test_a_refused_tick_is_an_error_in_beats_log(
        self, worker: InlineWorker, app: Celery, counting: Counting, tick: Any
    ) -> None:
        """Under ``raise`` beat says that it did not publish, and goes on (``celery.beat.Scheduler.apply_entry``)."""
        counting.make(app, idempotency={"at_publish": "raise"})
        tick(idempotency_key="often")
        with pytest.raises(SchedulingError, match="has this key") as caught:
            tick(idempotency_key="often")
        assert isinstance(caught.value.__cause__ or caught.value.__context__, DuplicateError)
