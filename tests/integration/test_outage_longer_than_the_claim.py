"""DynamoDB is away for longer than a claim lives, while a body ends: its process stores the outcome when it is back."""

import time
from signal import SIGQUIT, SIGTERM

import pytest
from celery.result import AsyncResult

from tests.integration.conftest import MakeRig
from tests.support.rig import Rig, Worker
from tests.testbed.waiting import wait_for
from tests.testbed.wire import Request, Wire, refuse

LEASE_SECONDS = 3.0
LEASED = {"idempotency": {"key": "order", "lease": LEASE_SECONDS}}
EXIT_SECONDS = 30.0
#: A process that ends waits for 5 s; the rest is for a busy machine.
SLACK_SECONDS = 15.0

pytestmark = [
    pytest.mark.parametrize("broker", ["redis"], indirect=True),
    pytest.mark.parametrize("dynamodb_endpoint", ["ministack"], indirect=True),
]


def begin(rig: Rig) -> AsyncResult:
    """Publish a task, and return it when its body is before its effect."""
    rig.journal.shut("before-effect")
    published = rig.send("charge", "ord-1", 17)
    rig.journal.wait_for("at-gate")
    return published


def end_unrecorded(rig: Rig, published: AsyncResult) -> None:
    """Let the body end, in an outage, and return when its process keeps the outcome."""
    rig.journal.open("before-effect")
    assert rig.result(published) == 17
    assert rig.journal.wait_for("Unrecorded", id=published.id)["kept"]


def end_warm(rig: Rig, worker: Worker) -> None:
    """Ask a worker that has acknowledged its messages to shut down, and return when it has heard."""
    rig.journal.wait_for("acknowledged")
    worker.process.send(SIGTERM)
    wait_for(lambda: "Warm shutdown" in worker.log(), EXIT_SECONDS, "the worker does not hear")


def test_twice_the_claims_life(make_guarded: MakeRig, wire: Wire) -> None:
    """Two publishes of one key: one effect, and one result for both."""
    rig = make_guarded(wire.endpoint, visibility_seconds=60, tasks={"charge": LEASED})
    rig.start_worker()
    published = begin(rig)
    began = time.monotonic()
    with wire.outage():
        end_unrecorded(rig, published)
        rig.journal.shut("before-claim")
        duplicate = rig.send("charge", "ord-1", 18)
        rig.journal.wait_for("at-gate", gate="before-claim")
        wait_for(lambda: time.monotonic() - began > 2 * LEASE_SECONDS, EXIT_SECONDS, "time stands still")
    late = rig.journal.wait_for("RecordedLate", id=published.id)
    rig.journal.open("before-claim")
    assert rig.result(duplicate) == 17
    assert late["pid"] == rig.journal.entries("started")[0]["pid"]
    assert rig.journal.count("started") == rig.journal.count("effect") == rig.journal.count("Replayed") == 1


def test_another_run_comes_first(make_guarded: MakeRig, wire: Wire) -> None:
    """The second delivery has claimed the key when the late outcome arrives: its own outcome is the only one."""
    rig = make_guarded(wire.endpoint, visibility_seconds=60, tasks={"charge": LEASED})
    rig.start_worker()
    published = begin(rig)
    with wire.outage():
        end_unrecorded(rig, published)
        wire.decide_by(lambda request: refuse if stores(request, "17") else None)
    duplicate = rig.send("charge", "ord-1", 18)
    assert rig.result(duplicate) == 18
    wire.heal()
    rig.journal.wait_for("Superseded", id=published.id)
    assert rig.result(rig.send("charge", "ord-1", 19)) == 18
    assert rig.journal.count("effect") == 2
    assert rig.journal.count("RecordedLate") == 0


def stores(request: Request, data: str) -> bool:
    """Return whether a request writes an outcome with these data."""
    return {"S": data} in request.body.get("ExpressionAttributeValues", {}).values()


@pytest.mark.parametrize("pool", ["prefork", "threads", "solo", "gevent", "eventlet"])
def test_warm_shutdown_waits_a_little(make_guarded: MakeRig, wire: Wire, pool: str) -> None:
    """DynamoDB is back within seconds: the outcome is stored before the process ends, and a new worker replays it."""
    rig = make_guarded(wire.endpoint, visibility_seconds=60, tasks={"charge": LEASED})
    worker = rig.start_worker(1, pool=pool)
    published = begin(rig)
    with wire.outage():
        end_unrecorded(rig, published)
        end_warm(rig, worker)
    assert worker.process.wait_for_exit(EXIT_SECONDS) == 0
    rig.journal.wait_for("RecordedLate", id=published.id)
    rig.start_worker()
    assert rig.result(rig.send("charge", "ord-1", 18)) == 17
    assert rig.journal.count("effect") == 1


@pytest.mark.parametrize("pool", ["prefork", "threads"])
def test_warm_shutdown_in_a_long_outage_ends(make_guarded: MakeRig, wire: Wire, pool: str) -> None:
    """The process gives up after a while and says so: the next delivery runs the body again."""
    rig = make_guarded(wire.endpoint, visibility_seconds=60, tasks={"charge": LEASED})
    worker = rig.start_worker(1, pool=pool)
    published = begin(rig)
    with wire.outage():
        end_unrecorded(rig, published)
        end_warm(rig, worker)
        assert worker.process.wait_for_exit(SLACK_SECONDS) == 0
    first, last = rig.journal.entries("Unrecorded", id=published.id)
    assert (first["kept"], last["kept"], last["reason"]) == (True, False, "ProcessEnds")
    rig.start_worker()
    assert rig.result(rig.send("charge", "ord-1", 18)) == 18


def test_cold_shutdown_does_not_wait(make_guarded: MakeRig, wire: Wire) -> None:
    """A worker that is told to end at once, and runs its bodies itself, does; the outcome is lost with it."""
    rig = make_guarded(wire.endpoint, visibility_seconds=60, tasks={"charge": LEASED})
    worker = rig.start_worker(1, pool="threads")
    published = begin(rig)
    with wire.outage():
        end_unrecorded(rig, published)
        rig.journal.wait_for("acknowledged")
        worker.process.end_by(SIGQUIT, EXIT_SECONDS)
    assert rig.journal.count("Unrecorded", id=published.id) == 1


def test_a_process_that_is_replaced_waits_too(make_guarded: MakeRig, wire: Wire) -> None:
    """``worker_max_tasks_per_child``: the outcome is stored, and the next task runs in another process."""
    settings = {"worker_max_tasks_per_child": 1}
    rig = make_guarded(wire.endpoint, visibility_seconds=60, tasks={"charge": LEASED}, settings=settings)
    rig.start_worker(1)
    published = begin(rig)
    with wire.outage():
        end_unrecorded(rig, published)
        following = rig.send("charge", "ord-2", 19)
    rig.journal.wait_for("RecordedLate", id=published.id)
    assert rig.result(following) == 19
    assert rig.result(rig.send("charge", "ord-1", 18)) == 17
    assert len({each["pid"] for each in rig.journal.entries("started")}) == 2
    assert rig.journal.count("effect") == 2
