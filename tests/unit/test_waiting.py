"""Copies that wait for a run of their own worker: held for its end, let go a few at a time, and never lost."""

import gc
import os
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any

import pytest
from celery import Celery, Task
from celery.worker import state
from kombu.asynchronous.timer import Timer
from kombu.message import Message

from idempotent_tasks import IdempotentTask
from idempotent_tasks.core.delivery import COPY_HEADER, OWNER_ENTRY, WAITS_HEADER, AwaitedRun, run_digest
from idempotent_tasks.core.processes import this_process
from idempotent_tasks.core.records import Granted
from idempotent_tasks.messaging.claim_request import request_of
from idempotent_tasks.messaging.deferral import LONGEST_WAIT, longest_wait_seconds
from idempotent_tasks.settings import settings_of
from idempotent_tasks.testing import MemoryStore
from idempotent_tasks.worker.request import GuardedRequest
from idempotent_tasks.worker.waiting import LET_GO_PER_SLOT, MOST_ENDED, MOVING_COPIES, WaitingCopies
from tests.support.inline import InlineWorker

ORDER = ("ord-1",)
#: The longest countdown of a first deferral, and what is certainly longer.
FIRST = 1.3
HELD = 15.0


class Held:
    """A worker that runs a body, receives copies of its duplicates, and has Celery's timer hold them.

    Args:
        app: with the task.
        worker: receives and runs messages.
        store: holds the claim of the run.
        slots: how many processes the pool has.
    """

    def __init__(self, app: Celery, worker: InlineWorker, store: MemoryStore, slots: int = 1) -> None:
        self.app = app
        self.worker = worker
        self._store = store
        self._soon: list[Any] = []
        self.running: list[GuardedRequest] = []
        self.applied: list[GuardedRequest] = []
        self.timer = Timer()
        self.consumer = SimpleNamespace(
            app=app,
            hub=object(),
            timer=self.timer,
            pool=SimpleNamespace(num_processes=slots),
            call_soon=lambda call, *args: self._soon.append((call, args)),
        )
        waiting_copies().connected(self.consumer)

    def begin(self, task: Task) -> GuardedRequest:
        """Run a body that claims its key, as far as its worker's parent process and the store are told."""
        task.apply_async(ORDER)
        request: GuardedRequest = self.worker.receive(self.worker.take())
        asked = request_of(task, settings_of(task.app), request._context, ORDER, {})
        assert isinstance(self._store.claim(asked), Granted)
        request.on_accepted(os.getpid(), time.monotonic())
        # As the pool keeps what it runs.
        self.running.append(request)
        return request

    def duplicates(self, task: Task, number: int) -> list[GuardedRequest]:
        """Publish duplicates, which are deferred; receive their copies, and return them as they are due."""
        for _ in range(number):
            task.apply_async(ORDER)
        for _ in range(number):
            self.worker.run_next()
        return sorted((self.receive() for _ in range(number)), key=seconds_left)

    def deferred(self, task: Task) -> Message:
        """Publish a duplicate, which is deferred; return the message of its copy."""
        task.apply_async(ORDER)
        self.worker.run_next()
        return self.worker.take()

    def receive(self) -> GuardedRequest:
        """Receive a copy, and have the timer hold it as Celery's ``strategy`` does."""
        copy: GuardedRequest = self.worker.receive(self.worker.take())
        assert copy.eta is not None
        self.timer.call_at(time.monotonic() + seconds_left(copy), self.apply, (copy,), priority=6)
        return copy

    def apply(self, copy: GuardedRequest) -> None:
        """Begin with a copy that is due, as the consumer does."""
        state.task_reserved(copy)
        self.applied.append(copy)

    def end(self, request: GuardedRequest) -> None:
        """End what a process ran, and acknowledge its message."""
        state.task_ready(request)
        request.acknowledge()
        self.turn()

    def turn(self) -> None:
        """Let the event loop make the calls that were asked for."""
        while self._soon:
            call, args = self._soon.pop(0)
            call(*args)


def waiting_copies() -> WaitingCopies:
    """Return those of this process."""
    return this_process().own(WaitingCopies)


def seconds_left(copy: GuardedRequest) -> float:
    """Return for how long a copy is held at most."""
    assert copy.eta is not None
    return (copy.eta - datetime.now(UTC)).total_seconds()


@pytest.fixture
def held(app: Celery, worker: InlineWorker, store: MemoryStore) -> Iterator[Held]:
    """A worker with one slot, whose copies are its own."""
    this_process().provide(WaitingCopies, WaitingCopies())
    yield Held(app, worker, store)
    this_process().provide(WaitingCopies, WaitingCopies())


@pytest.fixture
def charge(app: Celery) -> Task:
    """A task keyed by its order."""
    return make(app)


def make(app: Celery, **options: Any) -> Task:
    """Return a task keyed by its order, whose body a worker kills after a minute."""

    def charge(order: str) -> str:
        return order

    return app.task(
        charge,
        name="shop.charge",
        base=IdempotentTask,
        shared=False,
        idempotency={"key": "order", "lease": 60},
        **options,
    )


def test_copies_of_a_run_of_this_worker_are_held_for_its_end(held: Held, charge: Task) -> None:
    """All but a few, which move on so that other workers have some when this one dies."""
    held.begin(charge)
    left = [seconds_left(each) for each in held.duplicates(charge, MOVING_COPIES + 3)]
    assert max(left[:MOVING_COPIES]) <= FIRST
    assert min(left[MOVING_COPIES:]) > HELD


def test_a_few_are_due_when_the_run_ends_and_one_more_for_each_that_ends(held: Held, charge: Task) -> None:
    """What the pool takes at once; then each makes place for another, until none is left, each once."""
    run = held.begin(charge)
    copies = held.duplicates(charge, 9)
    held.end(run)
    assert len(held.applied) == LET_GO_PER_SLOT
    for ended in range(9):
        assert len(held.applied) == min(LET_GO_PER_SLOT + ended, 9)
        held.applied[ended].on_accepted(os.getpid(), time.monotonic())
        held.end(held.applied[ended])
    assert sorted(map(id, held.applied)) == sorted(map(id, copies))
    assert all(each.entry.canceled for each in held.timer.queue)


def test_a_pool_with_more_slots_gets_more(app: Celery, worker: InlineWorker, store: MemoryStore, held: Held) -> None:
    """The number grows with the pool."""
    held, task = Held(app, worker, store, slots=3), make(app)
    run = held.begin(task)
    held.duplicates(task, 9)
    held.end(run)
    assert len(held.applied) == 3 * LET_GO_PER_SLOT


def test_copies_of_a_run_elsewhere_wait_for_their_countdown(held: Held, charge: Task) -> None:
    """Nobody here would tell them of its end."""
    run = held.begin(charge)
    this_process().provide(WaitingCopies, WaitingCopies())
    waiting_copies().connected(held.consumer)
    assert max(map(seconds_left, held.duplicates(charge, MOVING_COPIES + 2))) <= FIRST
    held.end(run)
    assert held.applied == []


@pytest.mark.parametrize(
    "header", [None, "", "digest", 3, "0" * 32, "0" * 32 + "/1/soon", "0" * 32 + "/" + "9" * 30], ids=repr
)
def test_a_header_that_names_no_run(held: Held, charge: Task, header: Any) -> None:
    """Is no reason to hold a message, nor to fail."""
    held.begin(charge)
    message = held.deferred(charge)
    message.headers[WAITS_HEADER] = header
    assert seconds_left(held.worker.receive(message)) <= FIRST


def test_the_header_of_another_message_is_ignored(held: Held, charge: Task) -> None:
    """A body may pass on all headers of its message to what it publishes."""
    held.begin(charge)
    held.duplicates(charge, MOVING_COPIES)
    message = held.deferred(charge)
    message.headers[COPY_HEADER] = "token/another-task/0"
    assert seconds_left(held.worker.receive(message)) <= FIRST


def test_a_forged_time_is_bounded(held: Held, charge: Task) -> None:
    """A message of somebody who knows the digest waits for five minutes at most."""
    held.begin(charge)
    held.duplicates(charge, MOVING_COPIES)
    message = held.deferred(charge)
    digest = message.headers[WAITS_HEADER].partition("/")[0]
    message.headers[WAITS_HEADER] = AwaitedRun(digest, 0.0, 99_999_999_999.0).header
    assert seconds_left(held.worker.receive(message)) <= LONGEST_WAIT


def test_a_message_does_not_tell_the_owner_token(held: Held, charge: Task, store: MemoryStore) -> None:
    """Whoever knows it could commit or release."""
    held.begin(charge)
    (copy,) = held.duplicates(charge, 1)
    (record,) = store.records()
    assert record.owner is not None
    assert record.owner not in repr(copy.message.headers)
    assert run_digest(record.owner) in copy.message.headers[WAITS_HEADER]


def test_what_a_lost_connection_delivered_is_not_let_go(held: Held, charge: Task) -> None:
    """The broker delivers it again; the run goes on, and holds what comes now."""
    run = held.begin(charge)
    first = held.duplicates(charge, 9)
    waiting_copies().connected(held.consumer)
    second = held.duplicates(charge, 2)
    held.end(run)
    assert held.applied == second
    for each in second:
        held.end(each)
    assert not set(held.applied) & set(first)


def test_a_connection_lost_while_copies_are_let_go(held: Held, charge: Task) -> None:
    """Those that are left are of the lost connection too."""
    run = held.begin(charge)
    held.duplicates(charge, 9)
    held.end(run)
    waiting_copies().connected(held.consumer)
    held.end(held.applied[0])
    assert len(held.applied) == LET_GO_PER_SLOT


def test_a_copy_whose_countdown_has_passed_is_not_begun_twice(held: Held, charge: Task) -> None:
    """The timer was first, between the run's end and the turn of the copy."""
    run = held.begin(charge)
    copies = held.duplicates(charge, 4)
    held.end(run)
    assert held.applied == copies[:2]
    held.apply(copies[2])
    held.end(copies[0])
    assert held.applied == [*copies[:2], copies[2], copies[3]]


def test_a_copy_that_has_ended_is_not_begun_again(held: Held, charge: Task) -> None:
    """Nor one that the timer began, and that is over."""
    run = held.begin(charge)
    copies = held.duplicates(charge, 4)
    held.end(run)
    held.apply(copies[2])
    held.end(copies[2])
    held.end(copies[0])
    assert held.applied == [*copies[:2], copies[2], copies[3]]


def test_a_cancelled_copy_is_not_begun(held: Held, charge: Task) -> None:
    """Celery cancels what it holds when the connection is lost."""
    run = held.begin(charge)
    copies = held.duplicates(charge, 2)
    next(each.entry for each in held.timer.queue if each.entry.args[0] is copies[0]).cancel()
    held.end(run)
    assert held.applied == copies[1:]


def test_other_calls_of_the_timer_are_left_alone(held: Held, charge: Task) -> None:
    """Heartbeats, and requests that wait for something else, whatever their arguments."""
    run = held.begin(charge)
    copies = held.duplicates(charge, 1)
    others: list[tuple[Any, ...]] = [(), ({},), ([],), (None,)]
    for args in others:
        held.timer.call_after(60, held.apply, args)
    held.end(run)
    assert held.applied == copies


def test_a_worker_with_a_limit_of_held_messages_holds_none_longer(held: Held, charge: Task, app: Celery) -> None:
    """They would keep other messages from it; but their run's end lets them go."""
    app.conf.worker_eta_task_limit = 100
    run = held.begin(charge)
    copies = held.duplicates(charge, MOVING_COPIES + 2)
    assert max(map(seconds_left, copies)) <= FIRST
    held.end(run)
    assert held.applied == copies[:LET_GO_PER_SLOT]


def test_a_worker_without_an_event_loop_holds_none(held: Held, charge: Task) -> None:
    """Its timer is a thread's or a greenlet's."""
    held.consumer.hub = None
    waiting_copies().connected(held.consumer)
    run = held.begin(charge)
    assert max(map(seconds_left, held.duplicates(charge, MOVING_COPIES + 2))) <= FIRST
    held.end(run)
    assert held.applied == []


def test_a_message_that_returns_ends_its_run_too(held: Held, charge: Task) -> None:
    """As after a death: the copies are let go once the message is back, which is after the release."""
    run = held.begin(charge)
    copies = held.duplicates(charge, 1)
    run.reject(requeue=True)
    held.turn()
    assert held.applied == copies
    held.worker.take().ack()


def test_a_run_ends_once(held: Held, charge: Task) -> None:
    """However often Celery settles its message."""
    run = held.begin(charge)
    copies = held.duplicates(charge, 9)
    held.end(run)
    run.acknowledge()
    run.reject()
    held.end(copies[0])
    copies[0].acknowledge()
    held.turn()
    assert len(held.applied) == LET_GO_PER_SLOT + 1


def test_a_message_acknowledged_early_ends_before_its_body(held: Held, app: Celery) -> None:
    """Its end is not told: nothing is held for it."""
    task = make(app, acks_late=False)
    held.begin(task)
    assert max(map(seconds_left, held.duplicates(task, MOVING_COPIES + 2))) <= FIRST


def test_a_run_whose_end_is_never_told_is_forgotten(held: Held, charge: Task) -> None:
    """With its request, as when its connection was lost and Celery cancelled it."""
    digest = run_digest(held.begin(charge)._request_dict[OWNER_ENTRY])
    (copy,) = held.duplicates(charge, 1)
    held.running.clear()
    gc.collect()
    now = datetime.now(UTC)
    assert waiting_copies().hold(copy, AwaitedRun(digest, 0.0, 99_999_999_999.0), now, now) == now


@pytest.mark.parametrize(
    ("claim_left", "hold_seconds", "expires_in", "seconds"),
    [
        (20.0, None, None, 20.5),
        (3_600.0, None, None, LONGEST_WAIT),
        (20.0, 30.0, None, 15.0),
        (20.0, None, 8.0, 7.0),
        (20.0, None, 1.0, 0.5),
    ],
)
def test_the_longest_wait(
    claim_left: float, hold_seconds: float | None, expires_in: float | None, seconds: float
) -> None:
    """Up to the end of the claim, of half the visibility timeout, and of the message; spread over half of that."""
    waits = {longest_wait_seconds(claim_left, hold_seconds, expires_in) for _ in range(50)}
    assert seconds / 2 <= min(waits) <= max(waits) <= seconds
    assert len(waits) > 1 or expires_in is not None


def test_a_copy_is_held_until_before_its_message_expires(held: Held, charge: Task) -> None:
    """A worker would drop it then."""
    held.begin(charge)
    held.duplicates(charge, MOVING_COPIES)
    charge.apply_async(ORDER, expires=datetime.now(UTC) + timedelta(seconds=10))
    held.worker.run_next()
    assert 7 < seconds_left(held.receive()) < 9.5


def test_a_copy_that_was_on_its_way_when_the_run_ended_is_due(held: Held, charge: Task) -> None:
    """Nobody could let it go; its countdown may be long."""
    run = held.begin(charge)
    charge.apply_async(ORDER)
    held.worker.run_next()
    held.end(run)
    assert seconds_left(held.receive()) <= 0


def test_a_copy_that_was_deferred_after_the_runs_end_waits(held: Held, charge: Task) -> None:
    """The key is not free although the run has ended, as when its outcome could not be recorded."""
    run = held.begin(charge)
    held.end(run)
    (copy,) = held.duplicates(charge, 1)
    assert seconds_left(copy) > 0.5


def test_a_worker_remembers_the_last_ends_only(held: Held, charge: Task) -> None:
    """However many there were."""
    copies, now = waiting_copies(), datetime.now(UTC)
    for number in range(MOST_ENDED + 1):
        copies.ended(copies.begun(str(number)), now)
    request = held.begin(charge)
    since, later = now.timestamp() - 1, now + timedelta(seconds=9)
    due = [
        copies.hold(request, AwaitedRun(run_digest(str(each)), since, since), later, now) for each in (0, 1, MOST_ENDED)
    ]
    assert due == [later, now, now]
