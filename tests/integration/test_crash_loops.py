"""Bodies that end their process again and again: counted by key, given up in the open, forgotten by a clean end."""

import pytest
from celery.exceptions import TimeLimitExceeded

from idempotent_tasks import CrashLoopError, DynamoDBStore
from tests.integration.conftest import MakeRig
from tests.support.rig import Rig
from tests.testbed.brokers import CHILD_LOSS_SECONDS
from tests.testbed.waiting import wait_for

BY_ORDER = {"key": "order", "max_crashes": 2}
LOGGED = {"idempotency_observers": ["tests.support.app:observe", "idempotent_tasks.events:log_event"]}

pytestmark = pytest.mark.parametrize("broker", ["redis"], indirect=True)


def attempts(rig: Rig, order: str) -> list[int]:
    """Return which attempts at an order ran, in order."""
    return [entry["attempt"] for entry in rig.journal.entries("started", key=order)]


def test_kills_of_children_and_workers_count_for_their_key(make_guarded: MakeRig) -> None:
    """A killed child and a killed worker are two crashes of one key; a key that crashed once beside it still runs."""
    tasks = {"charge": {"time_limit": 120, "idempotency": BY_ORDER}}
    rig = make_guarded(visibility_seconds=CHILD_LOSS_SECONDS, tasks=tasks, settings=LOGGED)
    rig.journal.shut("before-effect")
    first = rig.start_worker()
    rig.send("charge", "ord-1", 17)
    first.kill_child(rig.journal.wait_for("at-gate")["pid"])
    rig.journal.wait_for("started", times=2, key="ord-1")
    rig.send("charge", "ord-2", 18)
    rig.journal.wait_for("started", key="ord-2")
    first.kill()
    rig.journal.open("before-effect")
    second = rig.start_worker()
    given_up, alive = rig.send("charge", "ord-1", 17), rig.send("charge", "ord-2", 18)
    with pytest.raises(CrashLoopError, match=r"ended its process 2 times in a row.* publish the task again") as caught:
        rig.result(given_up)
    assert given_up.state == "FAILURE"
    assert rig.result(alive) == 18
    assert (attempts(rig, "ord-1"), attempts(rig, "ord-2")) == ([1, 2], [1, 2])
    told = [line for line in second.log().splitlines() if "ERROR" in line and f"charge[{given_up.id}] key" in line]
    assert len(told) == 1
    assert f"key {rig.journal.entries('CrashLooped')[0]['key']} crashes=2" in told[0]
    wait_for(lambda: str(caught.value) in second.log(), 10, "the worker's log has no CrashLoopError")


def test_hard_time_limits_count(make_guarded: MakeRig) -> None:
    """A body that its hard time limit kills in each delivery is given up after ``max_crashes``."""
    # Long enough for a busy machine to reach the body.
    options = {"time_limit": 3, "acks_on_failure_or_timeout": False, "idempotency": BY_ORDER}
    rig = make_guarded(tasks={"charge": options})
    rig.journal.shut("before-effect")
    rig.start_worker()
    published = rig.send("charge", "ord-1", 17)
    with pytest.raises(TimeLimitExceeded):
        rig.result(published)
    rig.journal.wait_for("CrashLooped", id=published.id, crashes=2)
    rig.journal.wait_for("over", id=published.id, state="FAILURE")
    with pytest.raises(CrashLoopError, match="2 times in a row"):
        rig.result(rig.app.AsyncResult(published.id))
    assert attempts(rig, "ord-1") == [1, 2]


def test_clean_ends_forget_the_crashes(make_guarded: MakeRig, store: DynamoDBStore) -> None:
    """A run after a crash that ends by an exception, or commits, starts the count again."""
    rig = make_guarded(visibility_seconds=CHILD_LOSS_SECONDS, tasks={"heed": {"idempotency": BY_ORDER}})
    # Held until the kill, however late it comes: a time limit would end the body as well.
    rig.journal.shut("attempt-1")
    worker = rig.start_worker()
    published = rig.send("heed", "ord-1", 17, 2)
    worker.kill_child(rig.journal.wait_for("at-gate")["pid"])
    with pytest.raises(ValueError, match="attempt 2 of ord-1"):
        rig.result(published)
    again = rig.send("heed", "ord-1", 17)
    worker.kill_child(rig.journal.wait_for("at-gate", times=2)["pid"])
    assert rig.result(again) == 17
    assert attempts(rig, "ord-1") == [1, 2, 1, 2]
    assert store.get(rig.journal.wait_for("Committed")["key"]).attempt == 0


def test_bodies_without_memory_count(make_guarded: MakeRig) -> None:
    """Celery ends the whole worker with such a body; the third one gives it up, and takes what waits behind it."""
    rig = make_guarded(tasks={"exhaust": {"idempotency": BY_ORDER}, "charge": {}})
    exhausted, healthy = rig.send("exhaust", "ord-1"), rig.send("charge", "ord-2", 18)
    for _ in range(2):
        worker = rig.start_worker()
        wait_for(lambda: worker.process.returncode is not None, 30, "the worker goes on")  # noqa: B023 - called here
    rig.start_worker()
    rig.journal.wait_for("CrashLooped", id=exhausted.id, crashes=2)
    rig.journal.wait_for("over", id=exhausted.id, state="FAILURE", times=3)
    with pytest.raises(CrashLoopError, match="2 times in a row"):
        rig.result(rig.app.AsyncResult(exhausted.id))
    assert rig.result(healthy) == 18
    assert attempts(rig, "ord-1") == [1, 2]
