"""Whole workers that stand still past the expiry of their claims, and go on after another took the key over."""

import time

import pytest

from idempotent_tasks import DynamoDBStore, Record, Status
from tests.integration.conftest import MakeRig
from tests.support.rig import Rig
from tests.testbed.waiting import wait_for

#: Claims over 2 s after their process stood still.
RENEWED = {"idempotency": {"key": "order", "lease": 2}}
#: Claims over at the hard time limit, which is enforced by a parent process that stands still too.
LIMITED = {"time_limit": 3, "idempotency": {"key": "order", "grace": 0}}

pytestmark = pytest.mark.parametrize("broker", ["redis"], indirect=True)


def identity(record: Record) -> tuple[object, ...]:
    """Return what only the key's owner may change."""
    return (record.status, record.owner, record.fence, record.task_id, record.data)


def key_of(rig: Rig) -> str:
    """Return the only key that was claimed."""
    (key,) = {each["key"] for each in rig.journal.entries("Claimed")}
    return str(key)


def test_zombie_after_its_successor_finished(make_guarded: MakeRig, store: DynamoDBStore) -> None:
    """The zombie's body is told that its claim is lost, its commit changes nothing, its result is the successor's."""
    rig = make_guarded(visibility_seconds=60, tasks={"heed": RENEWED})
    rig.journal.shut("attempt-1")
    worker = rig.start_worker(1)
    zombie = rig.send("heed", "ord-1", "of the zombie")
    rig.journal.wait_for("at-gate")
    with worker.frozen():
        rig.start_worker(1)
        successor = rig.send("heed", "ord-1", "of the successor")
        assert rig.result(successor) == "of the successor"
        committed = store.get(key_of(rig))
    rig.journal.wait_for("Lost", id=zombie.id)
    rig.journal.open("attempt-1")
    assert rig.result(zombie) == "of the successor"
    assert rig.journal.count("heeded", id=zombie.id, lost=True) == 1
    assert rig.journal.count("heeded", id=successor.id, lost=False) == 1
    assert rig.journal.count("Superseded", id=zombie.id) == rig.journal.count("Committed") == 1
    assert identity(store.get(key_of(rig))) == identity(committed)
    assert (committed.task_id, committed.status) == (successor.id, Status.COMPLETED)
    behind, ahead = sorted(rig.journal.entries("effect"), key=lambda entry: entry["fence"])
    assert (behind["id"], ahead["id"]) == (zombie.id, successor.id)


@pytest.mark.parametrize("policy", [RENEWED, LIMITED], ids=["its body raises", "its time limit strikes"])
def test_zombie_that_fails_after_its_redelivery_finished(
    make_guarded: MakeRig, store: DynamoDBStore, policy: dict[str, object]
) -> None:
    """The zombie's failure frees nothing, and the one task id of both deliveries keeps the successor's result."""
    rig = make_guarded(tasks={"heed": policy})
    rig.journal.shut("attempt-1")
    worker = rig.start_worker(1)
    published = rig.send("heed", "ord-1", 17, 1)
    rig.journal.wait_for("at-gate")
    with worker.frozen():
        rig.start_worker(1)
        assert rig.result(published) == 17
        committed = store.get(key_of(rig))
    if policy is RENEWED:
        rig.journal.wait_for("Lost", id=published.id)
        rig.journal.open("attempt-1")
        rig.journal.wait_for("over", id=published.id, state="FAILURE")
    else:
        wait_for(lambda: "Hard time limit" in worker.log(), 20, "the time limit did not strike")
    replayed = rig.send("heed", "ord-1", 18)
    assert rig.result(replayed) == 17
    assert identity(store.get(key_of(rig))) == identity(committed)
    assert rig.app.AsyncResult(published.id).state == "SUCCESS"
    assert all(each["reason"].startswith("ValueError, then Lost") for each in rig.journal.entries("Released"))
    assert rig.journal.count("effect") == rig.journal.count("Committed") == 1


@pytest.mark.parametrize("failing_attempt", [0, 1], ids=["commits", "fails"])
def test_zombie_while_its_successor_runs(make_guarded: MakeRig, store: DynamoDBStore, failing_attempt: int) -> None:
    """A zombie that commits late gets the successor's result, one that fails has its own error; neither disturbs."""
    rig = make_guarded(visibility_seconds=60, tasks={"heed": RENEWED})
    for attempt in (1, 2):
        rig.journal.shut(f"attempt-{attempt}")
    worker = rig.start_worker(1)
    zombie = rig.send("heed", "ord-1", "of the zombie", failing_attempt)
    rig.journal.wait_for("at-gate")
    with worker.frozen():
        rig.start_worker(1)
        successor = rig.send("heed", "ord-1", "of the successor")
        rig.journal.wait_for("at-gate", gate="attempt-2")
    rig.journal.open("attempt-1")
    if failing_attempt:
        with pytest.raises(ValueError, match="attempt 1 of ord-1"):
            rig.result(zombie)
    else:
        rig.journal.wait_for("Deferred", id=zombie.id, reason="busy")
        assert rig.journal.count("Superseded", id=zombie.id) == 1
    running = store.get(key_of(rig))
    assert (running.status, running.task_id) == (Status.INPROGRESS, successor.id)
    assert running.in_progress_expiration
    rig.journal.open("attempt-2")
    late = rig.send("heed", "ord-1", "too late") if failing_attempt else zombie
    assert [rig.result(successor), rig.result(late)] == ["of the successor"] * 2
    assert rig.journal.count("Committed", id=successor.id) == rig.journal.count("Committed") == 1


def test_zombie_without_a_successor(make_guarded: MakeRig, store: DynamoDBStore) -> None:
    """A worker that stood still past its claim while nobody took the key goes on as if nothing had been."""
    rig = make_guarded(visibility_seconds=60, tasks={"heed": RENEWED})
    rig.journal.shut("attempt-1")
    worker = rig.start_worker(1)
    published = rig.send("heed", "ord-1", 17)
    rig.journal.wait_for("at-gate")
    with worker.frozen():
        expiry = store.get(key_of(rig)).held_until
        wait_for(lambda: time.time() > expiry + 0.5, 20, "the claim did not expire")
        rig.journal.open("attempt-1")
    assert rig.result(published) == 17
    assert rig.result(rig.send("heed", "ord-1", 18)) == 17
    assert rig.journal.count("effect") == rig.journal.count("Committed", id=published.id) == 1
    assert rig.journal.count("Lost") == rig.journal.count("Superseded") == 0
