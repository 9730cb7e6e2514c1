"""The parent's side of a death: the claim of a dead child is free before its message goes back to its queue."""

import subprocess
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
from billiard.einfo import ExceptionInfo
from celery import Celery, Task
from celery.exceptions import Terminated, TimeLimitExceeded, WorkerLostError
from celery.worker import WorkController, state
from kombu.asynchronous import Hub, get_event_loop, set_event_loop
from kombu.message import Message

from idempotent_tasks import IdempotentTask
from idempotent_tasks.core.records import Granted, Record
from idempotent_tasks.events import Event, Released
from idempotent_tasks.messaging.claim_request import request_of
from idempotent_tasks.settings import settings_of
from idempotent_tasks.testing import MemoryStore
from idempotent_tasks.worker.request import GuardedRequest, remember_worker
from idempotent_tasks.worker.signals import release_what_runs
from tests.support.inline import InlineWorker
from tests.support.shop import raising
from tests.support.stores import FaultyStore, meanwhile
from tests.testbed.waiting import wait_for

BOUND_SECONDS = 30.0


class Given:
    """A delivery that a prefork worker gave to a child, which claimed its key and then died."""

    def __init__(self, task: Task, worker: InlineWorker, store: MemoryStore, pid: int) -> None:
        task.apply_async()
        self.message: Message = worker.take()
        self.request: GuardedRequest = worker.receive(self.message)
        self._asked = request_of(task, settings_of(task.app), self.request._context, (), {})
        self._store = store
        assert isinstance(store.claim(self._asked), Granted)
        self.request.on_accepted(pid, time.monotonic())

    @property
    def record(self) -> Record:
        """What the store holds under the key."""
        return self._store.get(self._asked.key)

    @property
    def free(self) -> bool:
        """Whether the key is free."""
        return self.record.free

    def settle(self, loop: Hub) -> None:
        """Wait for the release, then let the worker's event loop do what came of it."""
        assert self.request._releasing is not None
        self.request._releasing.result(BOUND_SECONDS)
        wait_for(lambda: loop._ready, BOUND_SECONDS, "the release did not come back to the event loop")
        loop.run_once()


@pytest.fixture
def loop() -> Iterator[Hub]:
    """The event loop of a prefork worker's parent process."""
    before, hub = get_event_loop(), Hub()
    set_event_loop(hub)
    yield hub
    set_event_loop(before)
    hub.close()


@pytest.fixture
def dead_pid() -> int:
    """The id of a process that has ended."""
    with subprocess.Popen(["true"]) as process:
        process.wait(BOUND_SECONDS)
    return process.pid


@pytest.fixture
def controller(app: Celery) -> WorkController:
    """A prefork worker, made before there is a guarded task that would make it refuse the store in memory."""
    controller = WorkController(app=app, pool="prefork", concurrency=1)
    remember_worker(controller)
    return controller


@pytest.fixture
def charge(app: Celery, controller: WorkController) -> Task:
    """A guarded task."""

    @app.task(base=IdempotentTask, name="shop.charge", shared=False)
    def charge() -> None:
        """Be a body."""

    return charge


@pytest.fixture
def given(charge: Task, worker: InlineWorker, store: MemoryStore, dead_pid: int) -> Iterator[Given]:
    """A delivery whose child is dead, and nobody has said so yet."""
    delivery = Given(charge, worker, store, dead_pid)
    yield delivery
    state.task_ready(delivery.request)


def told(error: BaseException) -> ExceptionInfo:
    """Return what billiard tells the parent about an exception."""
    try:
        raising(error)(None)
    except BaseException:  # noqa: BLE001 - also SystemExit
        return ExceptionInfo()
    raise AssertionError(f"{error!r} was not raised")


@pytest.mark.parametrize("error", [WorkerLostError("killed"), SystemExit(1)], ids=repr)
def test_a_lost_worker_frees_the_key_before_the_message_returns(
    given: Given, worker: InlineWorker, loop: Hub, error: BaseException
) -> None:
    """The redelivery runs at once instead of being deferred until the claim expires."""
    given.request.on_failure(told(error))
    assert not given.message.acknowledged
    given.settle(loop)
    assert given.free
    assert given.record.attempt == 1
    assert worker.waiting() == 1
    worker.take().ack()


def test_a_store_that_hangs_does_not_hold_the_event_loop(
    given: Given, app: Celery, store: MemoryStore, loop: Hub
) -> None:
    """The handler returns while the release waits for its answer; the message returns when that is there."""
    answers = threading.Event()
    app.conf.idempotency_store = FaultyStore(store, release=[meanwhile(lambda: answers.wait(BOUND_SECONDS))])
    given.request.on_failure(told(WorkerLostError("killed")))
    assert not given.free
    assert not given.message.acknowledged
    answers.set()
    given.settle(loop)
    assert given.free
    assert given.message.acknowledged


@pytest.fixture
def no_loop() -> Iterator[None]:
    """A worker whose transport has no event loop, as of the in-memory one."""
    before = get_event_loop()
    set_event_loop(None)
    yield
    set_event_loop(before)


@pytest.mark.usefixtures("no_loop")
def test_without_an_event_loop_the_message_returns_too(given: Given, worker: InlineWorker) -> None:
    """The thread that released the claim gives the message back itself."""
    given.request.on_failure(told(WorkerLostError("killed")))
    wait_for(lambda: given.message.acknowledged, BOUND_SECONDS, "the message was not given back")
    assert given.free
    assert worker.waiting() == 1
    worker.take().ack()


def test_a_hard_time_limit_frees_the_key(given: Given, worker: InlineWorker, loop: Hub, seen: list[Event]) -> None:
    """Celery's own handling, a failure in the result backend, comes after the release."""
    given.request.on_timeout(soft=False, timeout=30)
    assert worker.state(given.request.id) == "PENDING"
    given.settle(loop)
    assert given.free
    assert [event.reason for event in seen if isinstance(event, Released)] == ["TimeLimitExceeded"]
    assert worker.state(given.request.id) == "FAILURE"
    assert isinstance(worker.result(given.request.id), TimeLimitExceeded)


def test_a_hard_time_limit_that_is_told_twice_releases_once(
    given: Given, worker: InlineWorker, loop: Hub, seen: list[Event]
) -> None:
    """Celery reports the timeout, then the process that it killed."""
    given.request.on_timeout(soft=False, timeout=30)
    given.request.on_failure(told(WorkerLostError("killed")))
    given.settle(loop)
    assert [event.reason for event in seen if isinstance(event, Released)] == ["TimeLimitExceeded"]


def test_a_soft_time_limit_is_the_childs_business(given: Given) -> None:
    """The child lives: its claim stays."""
    given.request.on_timeout(soft=True, timeout=20)
    assert given.request._releasing is None
    assert not given.free


def test_an_ordinary_failure_is_the_childs_business(given: Given, worker: InlineWorker) -> None:
    """A child that reports an error has released by itself: the parent handles it at once."""
    given.request.on_failure(told(KeyError("mine")))
    assert given.request._releasing is None
    assert not given.free
    assert given.message.acknowledged


def test_a_revoked_body_frees_its_key(given: Given, seen: list[Event]) -> None:
    """``revoke(terminate=True)`` is nobody's crash: the message is settled at once, the count starts again."""
    given.request.on_failure(told(Terminated(15)))
    assert given.request._releasing is not None
    given.request._releasing.result(BOUND_SECONDS)
    assert given.free
    assert given.record.attempt == 0
    assert [event.reason for event in seen if isinstance(event, Released)] == ["Terminated"]


def test_a_shutdown_frees_what_still_runs(given: Given, seen: list[Event]) -> None:
    """A worker that is told to stop at once releases its children's claims, each when the child is gone."""
    release_what_runs()
    assert given.request._releasing is not None
    given.request._releasing.result(BOUND_SECONDS)
    assert given.free
    assert given.record.attempt == 0
    assert [event.reason for event in seen if isinstance(event, Released)] == ["WorkerShutdown"]


def test_a_shutdown_leaves_settled_deliveries_alone(given: Given) -> None:
    """What was acknowledged has its outcome."""
    given.request.acknowledge()
    release_what_runs()
    assert given.request._releasing is None


def test_a_delivery_that_no_child_was_given_claims_nothing(charge: Task, worker: InlineWorker, loop: Hub) -> None:
    """A worker lost before it accepted the delivery is handled as by Celery."""
    charge.apply_async()
    request = worker.receive(worker.take())
    request.on_failure(told(WorkerLostError("killed")))
    assert request._releasing is None
    assert worker.waiting() == 1
    worker.take().ack()


def test_an_error_in_the_handling_does_not_end_the_loop(
    given: Given, loop: Hub, caplog: pytest.LogCaptureFixture
) -> None:
    """The consumer lives on; the log says what happened to this one delivery."""

    def refuse(*_: Any) -> None:
        raise ConnectionResetError

    given.request._on_reject = refuse
    given.request.on_failure(told(WorkerLostError("killed")))
    given.settle(loop)
    assert given.free
    assert any("could not be handled" in message for message in caplog.messages)
