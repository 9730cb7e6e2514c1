"""Time, store, app and queue of a unit test: its own, in memory, and moved by nobody else."""

import random
import threading
from collections.abc import Iterator
from uuid import uuid4

import pytest
from celery import Celery, _state
from hypothesis import HealthCheck, settings

from idempotent_tasks.core.processes import Process, running_as, this_process
from idempotent_tasks.core.unrecorded import UnrecordedOutcomes
from idempotent_tasks.events import Event
from idempotent_tasks.testing import FakeClock, MemoryStore
from tests.support.guarding import Bench, Broken, ManualOutcomes
from tests.support.inline import InlineWorker
from tests.support.shop import Counting, Shop
from tests.support.stores import FaultyStore

BOUND_SECONDS = 30.0

# How long an example takes is the machine's load as much as ours.
settings.register_profile("any load", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("any load")


@pytest.fixture
def clock(idempotency_clock: FakeClock) -> FakeClock:
    """A clock that only the test moves."""
    return idempotency_clock


@pytest.fixture(autouse=True)
def draws() -> Iterator[random.Random]:
    """The process's random numbers: repeated with the seed that pytest-randomly gives the module `random`."""
    process = this_process()
    system, process.random = process.random, random.Random(random.getrandbits(64))
    yield process.random
    process.random = system


@pytest.fixture(autouse=True)
def late_releases(draws: random.Random) -> Iterator[None]:
    """Let no release outlive its test: its retries would draw another test's random numbers."""
    yield
    for thread in threading.enumerate():
        if thread.name == "idempotency-reaper-later":
            thread.join(BOUND_SECONDS)
            assert not thread.is_alive(), "a release for a dead process goes on after its test"


@pytest.fixture(autouse=True)
def outcomes(clock: FakeClock) -> Iterator[ManualOutcomes]:
    """The outcomes that the process keeps: tried on when the test says so, on the test's clock."""
    process = Process()
    process.clock = clock
    with running_as(process):
        manual = ManualOutcomes()
    _provide(manual)
    yield manual
    # Whatever a later test of another folder leaves unrecorded is none of this one's.
    _provide(UnrecordedOutcomes())


def _provide(outcomes: UnrecordedOutcomes) -> None:
    this_process().provide(UnrecordedOutcomes, outcomes)


@pytest.fixture
def store(idempotency_store: MemoryStore) -> MemoryStore:
    """An empty store on the test's clock."""
    return idempotency_store


@pytest.fixture
def bench(store: MemoryStore) -> Bench:
    """Deliveries to a guard over the store."""
    return Bench(store)


@pytest.fixture
def broken(store: MemoryStore) -> Broken:
    """Makes a bench whose store fails as planned."""
    return lambda **plan: Bench(FaultyStore(store, **plan))


@pytest.fixture
def seen(idempotency_events: list[Event]) -> list[Event]:
    """What the app's observer saw."""
    return idempotency_events


@pytest.fixture
def queue() -> str:
    """The name of a queue that no other test uses."""
    return f"unit-{uuid4().hex[:12]}"


@pytest.fixture
def app(store: MemoryStore, seen: list[Event], queue: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Celery]:
    """A Celery app on the in-memory broker and result backend, current in this thread, with no other app's tasks.

    What Celery keeps for the whole process, such as that a worker was made in it, is as it was after the test.
    """
    monkeypatch.setattr(_state, "_task_join_will_block", False)
    shared = {each for each in _state._on_app_finalizers if each.__module__ == "celery.app.builtins"}
    monkeypatch.setattr(_state, "_on_app_finalizers", shared)
    app = Celery("shop", broker="memory://", backend="cache+memory://", set_as_current=False)
    app.conf.update(
        task_default_queue=queue,
        idempotency_store=store,
        idempotency_observers=[seen.append],
    )
    monkeypatch.setattr(_state._tls, "current_app", app)
    yield app
    app.close()


@pytest.fixture
def worker(app: Celery, queue: str) -> Iterator[InlineWorker]:
    """A worker that runs the app's messages when the test says so."""
    worker = InlineWorker(app, queue)
    yield worker
    worker.close()


@pytest.fixture
def shop(app: Celery, worker: InlineWorker, seen: list[Event], store: MemoryStore) -> Shop:
    """A shop that sells nothing yet."""
    return Shop(app, worker, seen, store)


@pytest.fixture
def counting() -> Counting:
    """A body that was not run yet."""
    return Counting()
