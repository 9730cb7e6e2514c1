"""Every way in which a worker's parent process ends while bodies run, under claims far longer than these tests."""

import signal
from signal import SIGINT, SIGKILL, SIGQUIT, SIGTERM

import celery
import pytest
from celery.result import AsyncResult

from tests.integration.conftest import MakeRig
from tests.support.rig import Rig, Worker
from tests.testbed.waiting import wait_for

#: A claim lives for two minutes, unless somebody releases it.
LONG = {"time_limit": 120, "idempotency": {"key": "order"}}
EXIT_SECONDS = 30.0

on_redis = pytest.mark.parametrize("broker", ["redis"], indirect=True)
#: Older kombu gives an unacknowledged message of Redis back only when a worker starts after its visibility timeout.
on_rabbitmq = pytest.mark.parametrize("broker", ["rabbitmq"], indirect=True)
#: Celery 5.4 may have begun to wait for its bodies by then: they go on, end and are committed.
hears_while_it_stops = pytest.mark.skipif(
    celery.__version__ < "5.5", reason="Celery 5.4 does not hear a second signal while it stops"
)


def running(rig: Rig, task: str) -> tuple[Worker, list[AsyncResult]]:
    """Return a worker, and the two tasks whose bodies it holds open."""
    rig.journal.shut("before-effect")
    worker = rig.start_worker()
    published = [rig.send(task, order, order) for order in ("ord-1", "ord-2")]
    rig.journal.wait_for("at-gate", times=2)
    rig.journal.wait_for("accepted", times=2)
    return worker, published


def take_over(rig: Rig, published: list[AsyncResult]) -> None:
    """Start another worker: both tasks run at once, with one effect each."""
    rig.journal.open("before-effect")
    rig.start_worker()
    assert [rig.result(each) for each in published] == ["ord-1", "ord-2"]
    assert rig.journal.count("effect") == 2
    assert rig.journal.count("Deferred") == 0


@pytest.mark.parametrize(
    ("numbers", "environment"),
    [
        pytest.param([SIGQUIT], {}, id="quit"),
        pytest.param([SIGINT, SIGINT], {}, id="interrupted-twice", marks=hears_while_it_stops),
        pytest.param([SIGTERM, SIGQUIT], {}, id="quit-while-it-stops", marks=hears_while_it_stops),
        pytest.param([SIGTERM], {"REMAP_SIGTERM": "SIGQUIT"}, id="remapped"),
    ],
)
@on_redis
def test_cold_shutdown_frees_what_it_kills(
    make_guarded: MakeRig,
    monkeypatch: pytest.MonkeyPatch,
    numbers: list[signal.Signals],
    environment: dict[str, str],
) -> None:
    """The parent frees the keys of children that die without a word: the next worker runs them, and it is no crash."""
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    rig = make_guarded(tasks={"brittle": LONG})
    worker, published = running(rig, "brittle")
    worker.shut_down(*numbers)
    assert {each["pid"] for each in rig.journal.entries("Released")} == {worker.process.pid}
    take_over(rig, published)
    assert {each["attempt"] for each in rig.journal.entries("started")} == {1}


def test_cold_shutdown_gives_its_messages_back(make_guarded: MakeRig) -> None:
    """On every broker what a cold shutdown kills runs on the next worker, not when its claim is over."""
    rig = make_guarded(tasks={"charge": LONG})
    worker, published = running(rig, "charge")
    worker.shut_down(SIGQUIT)
    take_over(rig, published)


@pytest.mark.skipif(celery.__version__ < "5.5", reason="the soft shutdown came with Celery 5.5")
@on_redis
def test_soft_shutdown_frees_what_it_kills_at_last(make_guarded: MakeRig) -> None:
    """A body that ends within the soft shutdown's time has its effect, one that does not runs on the next worker."""
    rig = make_guarded(tasks={"brittle": LONG}, settings={"worker_soft_shutdown_timeout": 3})
    rig.journal.shut("before-effect")
    rig.journal.shut("add-1-2")
    worker = rig.start_worker()
    killed, finished = rig.send("brittle", "ord-1", 17), rig.send("add", 1, 2)
    rig.journal.wait_for("at-gate", times=2)
    worker.process.send(SIGQUIT)
    rig.journal.open("add-1-2")
    worker.process.end_by(SIGTERM, EXIT_SECONDS)
    rig.journal.open("before-effect")
    rig.start_worker()
    assert [rig.result(killed), rig.result(finished)] == [17, 3]
    assert rig.journal.count("effect", id=killed.id) == rig.journal.count("effect", id=finished.id) == 1
    assert rig.journal.count("Deferred") == 0


@on_redis
def test_warm_shutdown_that_is_asked_for_twice_stays_warm(make_guarded: MakeRig) -> None:
    """A second SIGTERM kills nothing: the bodies end, are committed and acknowledged, and no key is freed early."""
    rig = make_guarded(tasks={"brittle": LONG})
    worker, published = running(rig, "brittle")
    worker.process.send(SIGTERM)
    worker.process.send(SIGTERM)
    rig.journal.open("before-effect")
    worker.process.end_by(SIGTERM, EXIT_SECONDS)
    assert worker.process.returncode == 0
    assert [rig.result(each) for each in published] == ["ord-1", "ord-2"]
    assert rig.journal.count("effect") == rig.journal.count("started") == rig.journal.count("Committed") == 2
    assert rig.journal.count("Released") == 0


@on_rabbitmq
def test_orphan_finishes_and_its_redelivery_replays(make_guarded: MakeRig) -> None:
    """A child that outlives its killed parent goes on: the redelivery waits for it, and takes its result."""
    rig = make_guarded(tasks={"outlive": LONG})
    worker, published = running(rig, "outlive")
    worker.process.end_by(SIGKILL)
    rig.start_worker()
    rig.journal.wait_for("Deferred", times=2)
    rig.journal.open("before-effect")
    assert [rig.result(each) for each in published] == ["ord-1", "ord-2"]
    assert rig.journal.count("effect") == rig.journal.count("started") == 2
    rig.journal.wait_for("Replayed", times=2)


@on_rabbitmq
def test_children_die_with_their_killed_parent(make_guarded: MakeRig) -> None:
    """Nobody is left to free the keys: they are free when nobody renewed them for one lease."""
    rig = make_guarded(tasks={"charge": {"idempotency": {"key": "order", "lease": 2}}})
    worker, published = running(rig, "charge")
    worker.process.end_by(SIGKILL)
    wait_for(lambda: not worker.children(), EXIT_SECONDS, "the children outlive their parent")
    rig.journal.open("before-effect")
    rig.start_worker()
    assert [rig.result(each) for each in published] == ["ord-1", "ord-2"]
    assert rig.journal.count("effect") == 2


@on_redis
def test_memory_error_ends_the_worker_and_frees_the_key(make_guarded: MakeRig) -> None:
    """Celery stops a worker one of whose bodies raised `MemoryError`; the next worker runs that task at once."""
    rig = make_guarded(tasks={"leave": LONG})
    worker = rig.start_worker()
    published = rig.send("leave", "ord-1", "MemoryError")
    worker.process.wait_for_exit(EXIT_SECONDS)
    rig.start_worker()
    # The backend has held the first run's failure since before the second began.
    rig.journal.wait_for("Committed", id=published.id)
    assert rig.journal.count("effect") == 1
    assert rig.journal.count("Deferred") == 0
