"""Children that are forked while a thread of their parent is at work: they wait for no lock that nobody opens."""

import threading
from collections.abc import Iterator
from typing import Any

import pytest
from celery import Celery
from celery.app.task import Context

from idempotent_tasks import IdempotentTask, settings
from idempotent_tasks.core import processes
from idempotent_tasks.core.delivery import OWNER_ENTRY, OwnerToken
from idempotent_tasks.core.processes import ForkGate, this_process
from idempotent_tasks.core.records import ClaimRequest, Granted
from idempotent_tasks.events import Event
from idempotent_tasks.messaging.claim_request import request_of
from idempotent_tasks.settings import settings_of
from idempotent_tasks.testing import MemoryStore
from idempotent_tasks.worker.reaper import ClaimReaper
from tests.testbed.forking import Child

BOUND_SECONDS = 30.0


def test_a_key_that_a_thread_of_the_parent_works_out(app: Celery) -> None:
    """The parent releases for several dead children at once, while it forks their successors."""
    working, go_on = threading.Event(), threading.Event()

    def key_of(order: str) -> str:
        if order == "slow":
            working.set()
            go_on.wait(BOUND_SECONDS)
        return order

    @app.task(base=IdempotentTask, shared=False, name="shop.charge", idempotency={"key": key_of})
    def charge(order: str) -> None:
        """Be a body."""

    task: Any = charge

    def request(order: str) -> ClaimRequest:
        return request_of(task, settings_of(app), Context({"id": order}), (order,), {})

    thread = threading.Thread(target=lambda: request("slow"))
    thread.start()
    try:
        assert working.wait(BOUND_SECONDS)
        assert Child(lambda: request("quick").task_id).result() == "quick"
    finally:
        go_on.set()
        thread.join(BOUND_SECONDS)


def test_settings_that_a_thread_of_the_parent_reads(app: Celery) -> None:
    """Another app's settings may be read at that moment; those that were read before are at hand."""
    known = settings_of(app)
    with settings._apps.lock:
        assert Child(lambda: settings_of(app) is known).result()


class Locking:
    """An observer with a lock, as clients of monitors have; in the parent's thread it stays inside until told."""

    def __init__(self) -> None:
        self.inside, self.go_on = threading.Event(), threading.Event()
        self._lock = threading.Lock()

    def __call__(self, event: Event) -> None:
        """Be told."""
        with self._lock:
            self.inside.set()
            self.go_on.wait(BOUND_SECONDS)

    def tell_in_a_child(self) -> bool:
        """Tell it as a body's process does; return whether it could be told."""
        told = self._lock.acquire(timeout=BOUND_SECONDS / 6)
        if told:
            self._lock.release()
        return told


@pytest.fixture
def released_by_a_thread(app: Celery, store: MemoryStore) -> Iterator[Locking]:
    """An observer that a thread of the parent is telling of a dead child's claim, which it released."""
    observer = Locking()
    app.conf.idempotency_observers = [observer]

    @app.task(base=IdempotentTask, shared=False, name="shop.charge")
    def charge() -> None:
        """Be a body."""

    task: Any = charge
    request = request_of(
        task, settings_of(app), Context({"id": "4f1c", OWNER_ENTRY: OwnerToken("of-the-dead")}), (), {}
    )
    assert isinstance(store.claim(request), Granted)
    # A process that is not there any more: its id is above the largest that Linux gives.
    releasing = ClaimReaper().release(settings_of(app), request, 2**22 + 1, "WorkerLostError", crashed=True)
    assert observer.inside.wait(BOUND_SECONDS)
    yield observer
    observer.go_on.set()
    releasing.result(BOUND_SECONDS)


def test_an_observer_that_a_thread_of_the_parent_tells(
    released_by_a_thread: Locking, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A successor is forked when the observer has opened its locks, and can tell it of its own claims."""
    monkeypatch.setattr(processes, "FORK_WAIT_SECONDS", BOUND_SECONDS)
    threading.Timer(0.2, released_by_a_thread.go_on.set).start()
    assert Child(released_by_a_thread.tell_in_a_child).result()


def test_an_observer_that_never_returns(released_by_a_thread: Locking, monkeypatch: pytest.MonkeyPatch) -> None:
    """The pool gets its successor all the same, after a bounded time."""
    monkeypatch.setattr(processes, "FORK_WAIT_SECONDS", 0.05)
    assert Child(lambda: True).result()


def test_an_observer_that_forks(app: Celery) -> None:
    """It does not wait for itself."""
    with this_process().own(ForkGate).closed():
        assert Child(lambda: True).result()
    with this_process().own(ForkGate).closed():
        pass
