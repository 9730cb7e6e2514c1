"""A joined publish loses nothing that it would have had alone: what can not stand in for it is not joined."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from celery import Celery
from celery.backends.base import DisabledBackend
from celery.worker.state import revoked

from idempotent_tasks import DuplicateError
from idempotent_tasks.events import Event, Joined
from idempotent_tasks.testing import FakeClock, MemoryStore
from tests.support.inline import InlineWorker
from tests.support.shop import Counting, make

JOIN = {"key": "order", "at_publish": "join"}


@pytest.fixture
def task(app: Celery, counting: Counting) -> Any:
    """A task whose duplicates join."""
    return counting.make(app, idempotency=JOIN)


def joined(seen: list[Event]) -> int:
    """Return how many publishes joined another."""
    return sum(isinstance(event, Joined) for event in seen)


class TestExpiry:
    """A message that waits is dropped when it expires, and who joined it with it."""

    @pytest.mark.parametrize(
        ("waiting", "ours", "waits"),
        [
            (60, None, 2),
            (60, 90, 2),
            (60, 60, 1),
            (60, 30, 1),
            (None, 30, 1),
            (None, None, 1),
            (3600, None, 2),
        ],
    )
    def test_one_that_expires_earlier_is_not_joined(
        self, task: Any, worker: InlineWorker, waiting: float | None, ours: float | None, waits: int
    ) -> None:
        """Also where its reservation is shorter than its life."""
        for expires in (waiting, ours):
            task.apply_async(("ord-1",), expires=expires)
        assert worker.waiting() == waits

    def test_however_it_is_said(self, app: Celery, task: Any, worker: InlineWorker, seen: list[Event]) -> None:
        """A moment, or the task's own option."""
        brief = make(app, task.run, name="shop.brief", expires=60, idempotency=JOIN)
        for waiting in (task, brief):
            early = {"expires": datetime.now(UTC) + timedelta(seconds=60)} if waiting is task else {}
            waiting.apply_async(("ord-1",), **early)
            waiting.apply_async(("ord-1",), expires=datetime.now(UTC) + timedelta(seconds=600))
        assert (joined(seen), worker.waiting()) == (0, 4)

    def test_the_other_is_run_when_the_first_was_dropped(
        self, task: Any, worker: InlineWorker, counting: Counting, store: MemoryStore, clock: FakeClock
    ) -> None:
        """It waits for the key like any duplicate, and takes it when the reservation is over."""
        task.apply_async(("ord-1",), expires=60)
        lasting = task.apply_async(("ord-1",))
        worker.take().ack()
        worker.run_next()
        assert counting.runs == 0
        clock.advance(66)
        worker.run_next()
        assert (counting.runs, worker.result(lasting.id)) == (1, [1, "ord-1", 5])

    def test_a_running_task_is_joined(self, app: Celery, worker: InlineWorker, seen: list[Event]) -> None:
        """Its message will not be dropped any more; the note is the reservation's alone."""
        make_joined: list[Any] = []

        def body(self: Any, order: str) -> str:
            make_joined.append(self.delay(order))
            return "done"

        task = make(app, body, bind=True, idempotency=JOIN)
        first = task.apply_async(("ord-1",), expires=60)
        worker.drain()
        assert make_joined[0].id == first.id

    def test_under_raise_it_is_refused_as_before(self, app: Celery, counting: Counting) -> None:
        """Nothing is lost by an error."""
        task = counting.make(app, idempotency={**JOIN, "at_publish": "raise"})
        task.apply_async(("ord-1",), expires=60)
        with pytest.raises(DuplicateError):
            task.delay("ord-1")


class TestRevoked:
    """A task that is revoked runs no body."""

    def test_one_that_this_worker_revoked(self, task: Any, worker: InlineWorker, seen: list[Event]) -> None:
        """Its message may wait for long, to be dropped."""
        first = task.delay("ord-1")
        revoked.add(first.id)
        second = task.delay("ord-1")
        revoked.discard(first.id)
        assert (joined(seen), worker.waiting(), first.id == second.id) == (0, 2, False)

    def test_one_that_the_result_backend_knows(self, task: Any, worker: InlineWorker, seen: list[Event]) -> None:
        """As a worker leaves it that could not tell the store."""
        first = task.delay("ord-1")
        task.backend.mark_as_revoked(first.id, "revoked")
        task.delay("ord-1")
        assert (joined(seen), worker.waiting()) == (0, 2)

    def test_one_that_is_done_and_was_revoked_then(
        self, task: Any, worker: InlineWorker, counting: Counting, seen: list[Event]
    ) -> None:
        """Its result is in the record and not to be had under its id: the other's delivery replays it."""
        first = task.delay("ord-1")
        worker.drain()
        task.backend.forget(first.id)
        task.backend.mark_as_revoked(first.id, "terminated")
        second = task.delay("ord-1")
        worker.drain()
        assert (joined(seen), counting.runs, worker.result(second.id)) == (0, 1, [1, "ord-1", 5])

    def test_under_raise_it_has_no_key(self, app: Celery, worker: InlineWorker, counting: Counting) -> None:
        """Nobody is told that it waits."""
        task = counting.make(app, idempotency={**JOIN, "at_publish": "raise"})
        task.backend.mark_as_revoked(task.delay("ord-1").id, "revoked")
        task.delay("ord-1")
        assert worker.waiting() == 2

    def test_a_backend_that_does_not_answer(
        self, task: Any, worker: InlineWorker, seen: list[Event], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Keeps nobody from joining."""
        task.delay("ord-1")

        def fail(*_: Any, **__: Any) -> None:
            raise ConnectionError

        monkeypatch.setattr(type(task.backend), "get_task_meta", fail)
        task.delay("ord-1")
        assert (joined(seen), worker.waiting()) == (1, 1)

    def test_without_a_backend_nobody_is_asked(self, app: Celery, worker: InlineWorker, counting: Counting) -> None:
        """As an app has that keeps no results."""
        task = counting.make(app, idempotency=JOIN, ignore_result=True)
        app.tasks["shop.charge"].backend = DisabledBackend(app)
        for _ in range(2):
            task.delay("ord-1")
        assert worker.waiting() == 1


class TestIgnoredResults:
    """A result that nobody keeps cannot be waited for."""

    @pytest.mark.parametrize(
        ("task_ignores", "waiting", "ours", "joins"),
        [
            (False, True, None, False),
            (False, None, True, True),
            (True, None, False, False),
            (True, None, None, True),
            (True, True, True, True),
        ],
    )
    def test_who_wants_a_result_does_not_join_one_without(  # noqa: PLR0917 - one row of a table
        self,
        app: Celery,
        worker: InlineWorker,
        task_ignores: bool,
        waiting: bool | None,
        ours: bool | None,
        joins: bool,
    ) -> None:
        """Whether the task or the call says so."""
        task = make(app, echo, ignore_result=task_ignores, idempotency=JOIN)
        for ignores in (waiting, ours):
            task.apply_async(("ord-1",), **({} if ignores is None else {"ignore_result": ignores}))
        assert worker.waiting() == (1 if joins else 2)


def echo(order: str) -> str:
    """Be a body."""
    return order
