"""Releasing for the dead: real processes that end or do not, and claims that they held."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import repeat
from threading import Event
from threading import enumerate as enumerate_threads
from typing import Any

import pytest
from celery import Celery
from celery.app.task import Context

from idempotent_tasks import (
    Idempotency,
    IdempotentTask,
    RecordCorruptError,
    StoreMisconfiguredError,
    StoreUnavailableError,
    events,
)
from idempotent_tasks.core.delivery import OWNER_ENTRY, OwnerToken
from idempotent_tasks.core.processes import this_process
from idempotent_tasks.core.records import Claim, ClaimRequest, Granted
from idempotent_tasks.messaging.claim_request import request_of, request_or_none
from idempotent_tasks.settings import settings_of
from idempotent_tasks.testing import FakeClock, MemoryStore
from idempotent_tasks.worker import reaper
from idempotent_tasks.worker.reaper import ClaimReaper
from tests.support.guarding import done
from tests.support.stores import FaultyStore, down, meanwhile, passes
from tests.testbed.waiting import wait_for

BOUND_SECONDS = 30.0


@dataclass(frozen=True)
class Given:
    """A delivery that was given to a child."""

    task: Any
    context: Context
    args: list[Any]

    @property
    def request(self) -> ClaimRequest:
        """The claim that the child asks for."""
        return request_of(self.task, settings_of(self.task.app), self.context, tuple(self.args), {})


@pytest.fixture
def living() -> Iterator[subprocess.Popen[bytes]]:
    """A process that lives until the test kills it."""
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        yield process
        process.kill()


@pytest.fixture
def dead_pid(living: subprocess.Popen[bytes]) -> int:
    """The id of a process that was killed and collected."""
    living.kill()
    living.wait(BOUND_SECONDS)
    return living.pid


@pytest.fixture
def delivery(app: Celery) -> Given:
    """A delivery that was given to a child with the owner token ``of-the-dead``."""

    @app.task(base=IdempotentTask, shared=False, name="shop.charge", idempotency={"key": "order.id"})
    def charge(order: dict[str, Any]) -> None:
        """Be a body."""

    request = Context({"id": "4f1c", OWNER_ENTRY: OwnerToken("of-the-dead")})
    task: Any = charge
    return Given(task, request, [{"id": 17}])


@pytest.fixture
def exclusive(app: Celery) -> Given:
    """A delivery of a task with a lock, given to a child with the same owner token."""

    @app.task(base=IdempotentTask, shared=False, name="shop.sweep", idempotency=Idempotency.exclusive())
    def sweep() -> None:
        """Be a body."""

    task: Any = sweep
    return Given(task, Context({"id": "4f1c", OWNER_ENTRY: OwnerToken("of-the-dead")}), [])


def unkeyed(app: Celery) -> Given:
    """Return a delivery, to the app's store as it is set now, whose key is its task id."""

    @app.task(base=IdempotentTask, shared=False, name="shop.charge")
    def charge() -> None:
        """Be a body."""

    task: Any = charge
    return Given(task, Context({"id": "4f1c", OWNER_ENTRY: OwnerToken("of-the-dead")}), [])


def join_late_releases() -> None:
    """Wait for the releases that go on after their delivery was given back."""
    for thread in enumerate_threads():
        if thread.name == "idempotency-reaper-later":
            thread.join(BOUND_SECONDS)


def claim(store: MemoryStore, delivery: Given) -> Claim:
    """Claim as the child did."""
    answer = store.claim(delivery.request)
    assert isinstance(answer, Granted)
    return answer.claim


def release(delivery: Given, pid: int, *, crashed: bool = True) -> None:
    """Have the claim released, and return when that is over."""
    settings = settings_of(delivery.task.app)
    request = request_or_none(delivery.task, settings, delivery.context, tuple(delivery.args), {})
    ClaimReaper().release(settings, request, pid, "WorkerLostError", crashed=crashed).result(BOUND_SECONDS)


class TestGone:
    """Whether a process can still run anything."""

    def test_a_living_process_is_not(self, living: subprocess.Popen[bytes]) -> None:
        """The wait for it is bounded."""
        assert not this_process().wait_for_end(living.pid, 0.01)

    def test_a_killed_process_is_before_anybody_collects_it(self, living: subprocess.Popen[bytes]) -> None:
        """A zombie runs nothing."""
        living.kill()
        assert this_process().wait_for_end(living.pid, BOUND_SECONDS)

    def test_a_collected_process_is(self, dead_pid: int) -> None:
        """Its id is nobody's."""
        assert this_process().wait_for_end(dead_pid, 0.0)

    def test_where_the_system_has_no_process_handles(
        self, living: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """It is asked again and again instead, until it was collected."""
        with monkeypatch.context() as without:
            without.delattr(os, "pidfd_open")
            assert not this_process().wait_for_end(living.pid, 0.01)
        # Popen.wait() uses such a handle too, from Python 3.15 on.
        living.kill()
        living.wait(BOUND_SECONDS)
        monkeypatch.delattr(os, "pidfd_open")
        assert this_process().wait_for_end(living.pid, BOUND_SECONDS)


@pytest.mark.parametrize(("crashed", "attempt"), [(True, 2), (False, 1)])
def test_a_dead_processes_claim_is_released(
    delivery: Given, store: MemoryStore, seen: list[events.Event], dead_pid: int, *, crashed: bool, attempt: int
) -> None:
    """The key is free at once; whether the death counts as a crash is the caller's word."""
    held = claim(store, delivery)
    release(delivery, dead_pid, crashed=crashed)
    assert store.get(held.key).free
    assert [(type(event), event.key) for event in seen] == [(events.Released, held.key)]
    assert claim(store, delivery).attempt == attempt


def test_a_living_processes_claim_stays(
    delivery: Given, store: MemoryStore, living: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process that does not die in time keeps its claim, which expires by itself."""
    monkeypatch.setattr(reaper, "EXIT_WAIT_SECONDS", 0.01)
    held = claim(store, delivery)
    release(delivery, living.pid)
    assert store.get(held.key).in_progress_expiration == held.in_progress_expiration


def test_a_dead_processes_outcome_stays(
    delivery: Given, store: MemoryStore, seen: list[events.Event], dead_pid: int
) -> None:
    """A child that died after its commit has nothing to release, and nobody is told so."""
    held = claim(store, delivery)
    store.commit(held, done(), 3600)
    record = store.get(held.key)
    release(delivery, dead_pid)
    assert store.get(held.key) == record
    assert seen == []


def test_a_store_that_is_down_for_long_is_asked_again_later(
    app: Celery, store: MemoryStore, clock: FakeClock, seen: list[events.Event], dead_pid: int
) -> None:
    """The delivery goes back to its queue after a while, and the claim is released when the store is back."""
    back_at = clock.now() + 10 * reaper.RELEASE_RETRY_SECONDS
    waited = Event()

    def outage(call: Callable[[], Any]) -> Any:
        if clock.now() < back_at:
            raise StoreUnavailableError
        waited.wait(BOUND_SECONDS)
        return call()

    app.conf.idempotency_store = FaultyStore(store, release=repeat(outage))
    delivery = unkeyed(app)
    held = claim(store, delivery)
    release(delivery, dead_pid)
    assert store.get(held.key).in_progress_expiration == held.in_progress_expiration
    waited.set()
    wait_for(lambda: seen, BOUND_SECONDS, "the claim was not released")
    assert store.get(held.key).free


def test_a_store_that_stays_down_leaves_the_claim_to_expire(
    app: Celery, store: MemoryStore, clock: FakeClock, seen: list[events.Event], dead_pid: int
) -> None:
    """Nothing is asked for longer than the claim may have lived."""
    app.conf.idempotency_store = FaultyStore(store, release=repeat(down()))
    delivery = unkeyed(app)
    held = claim(store, delivery)
    before = clock.now()
    release(delivery, dead_pid)
    join_late_releases()
    longest = reaper.RELEASE_RETRY_SECONDS + delivery.request.lease_seconds
    assert reaper.RELEASE_RETRY_SECONDS < clock.now() - before <= longest
    assert store.get(held.key).in_progress_expiration == held.in_progress_expiration
    assert seen == []


@pytest.mark.parametrize("error", [StoreMisconfiguredError("no permission"), RecordCorruptError("odd")], ids=repr)
def test_a_store_that_refuses_the_release_is_asked_again(
    app: Celery, store: MemoryStore, clock: FakeClock, dead_pid: int, error: Exception
) -> None:
    """It may be a refresh of credentials that stumbled: the delivery goes back after a while, the tries go on."""
    well_at = clock.now() + 10 * reaper.RELEASE_RETRY_SECONDS

    def refused(call: Callable[[], Any]) -> Any:
        if clock.now() < well_at:
            raise error
        return call()

    app.conf.idempotency_store = FaultyStore(store, release=repeat(refused))
    delivery = unkeyed(app)
    held = claim(store, delivery)
    release(delivery, dead_pid)
    join_late_releases()
    assert store.get(held.key).free


def test_a_claim_that_lands_after_its_release_is_released_again(app: Celery, store: MemoryStore, dead_pid: int) -> None:
    """The request of a dead process may reach the store when the release has found nothing."""
    landing = meanwhile(lambda: claim(store, late))
    app.conf.idempotency_store = FaultyStore(store, release=[passes, passes, landing])
    late = unkeyed(app)
    release(late, dead_pid)
    join_late_releases()
    assert store.get(late.request.key).free


def test_a_delivery_without_a_key_claimed_nothing(delivery: Given, store: MemoryStore, dead_pid: int) -> None:
    """Arguments that the key cannot be taken from are the child's error to report, not the parent's."""
    release(Given(delivery.task, Context({"id": "4f1c"}), [{}]), dead_pid)
    release(Given(delivery.task, Context({"id": "4f1c"}), [1, 2, 3]), dead_pid)
    assert store.records() == []


class TestLock:
    """A claim with a lock: both are released."""

    def test_both_are_free(self, exclusive: Given, dead_pid: int, store: MemoryStore) -> None:
        """The crash is an event of the key alone."""
        for part in exclusive.request.parts:
            store.claim(part)
        release(exclusive, dead_pid)
        assert [store.get(part.key).free for part in exclusive.request.parts] == [True, True]

    def test_one_that_was_not_claimed_yet(self, exclusive: Given, dead_pid: int, store: MemoryStore) -> None:
        """The child died between its two claims."""
        store.claim(exclusive.request)
        release(exclusive, dead_pid)
        assert store.get(exclusive.request.key).free

    def test_what_failed_is_tried_again_alone(self, exclusive: Given, dead_pid: int, store: MemoryStore) -> None:
        """The lock is released once, however often the key's release has no answer."""
        faulty = FaultyStore(store, release=[passes, *[down()] * 3])
        exclusive.task.app.conf.idempotency_store = faulty
        for part in exclusive.request.parts:
            store.claim(part)
        release(exclusive, dead_pid)
        join_late_releases()
        assert [store.get(part.key).free for part in exclusive.request.parts] == [True, True]
