"""Claims far longer than these tests, whose holders die: the parent process frees them, and the next delivery runs."""

import os
import signal
import threading

import celery
import pytest
from celery.exceptions import TaskRevokedError, TimeLimitExceeded

from idempotent_tasks import CrashLoopError, DynamoDBStore
from tests.integration.conftest import MakeRig
from tests.testbed.brokers import CHILD_LOSS_SECONDS
from tests.testbed.waiting import wait_for
from tests.testbed.wire import Wire, hold

#: A claim lives for two minutes, unless somebody releases it.
LONG = {"time_limit": 120, "idempotency": {"key": "order"}}

BOUND_SECONDS = 30.0

on_redis = pytest.mark.parametrize("broker", ["redis"], indirect=True)
on_ministack = pytest.mark.parametrize("dynamodb_endpoint", ["ministack"], indirect=True)
#: What lets a test revoke a task, or ask a worker for something else.
CONTROLLED = {"worker_enable_remote_control": True}


def test_child_killed_in_its_body_is_succeeded_at_once(make_guarded: MakeRig) -> None:
    """A killed pool child's claim is released before its delivery comes back: one effect, and the crash counts."""
    rig = make_guarded(visibility_seconds=CHILD_LOSS_SECONDS, tasks={"charge": LONG})
    rig.journal.shut("before-effect")
    worker = rig.start_worker()
    published = rig.send("charge", "ord-1", 17)
    worker.kill_child(rig.journal.wait_for("at-gate")["pid"])
    rig.journal.open("before-effect")
    assert rig.result(published) == 17
    assert rig.journal.count("effect") == 1
    assert rig.journal.count("Deferred") == 0
    assert [each["attempt"] for each in rig.journal.entries("started")] == [1, 2]


@pytest.mark.skipif(not hasattr(os, "pidfd_open"), reason="Linux only: this Python has no pidfd_open")
@pytest.mark.parametrize("broker", ["redis", "rabbitmq"], indirect=True)
def test_end_of_a_child_is_noticed_where_celery_overlooks_it(make_guarded: MakeRig) -> None:
    """Celery, told too early that a child has ended, would look again seconds later; this worker never would."""
    rig = make_guarded(tasks={"charge": LONG})
    rig.journal.shut("before-effect")
    worker = rig.start_worker(blind_to_exits=True)
    published = rig.send("charge", "ord-1", 17)
    worker.kill_child(rig.journal.wait_for("at-gate")["pid"])
    rig.journal.open("before-effect")
    assert rig.result(published) == 17
    assert [each["attempt"] for each in rig.journal.entries("started")] == [1, 2]


@on_redis
def test_child_killed_after_commit_keeps_its_outcome(make_guarded: MakeRig) -> None:
    """The release for a child that died after its commit changes nothing: the redelivery replays."""
    rig = make_guarded(visibility_seconds=CHILD_LOSS_SECONDS, tasks={"charge": LONG})
    rig.journal.shut("Committed")
    worker = rig.start_worker()
    published = rig.send("charge", "ord-1", 17)
    worker.kill_child(rig.journal.wait_for("at-gate", gate="Committed")["pid"])
    rig.journal.open("Committed")
    assert rig.result(published) == 17
    rig.journal.wait_for("Replayed", id=published.id)
    assert rig.journal.count("effect") == 1


@on_redis
def test_hard_time_limit_frees_the_key_at_once(make_guarded: MakeRig) -> None:
    """After a hard time limit a new publish runs now, not when the grace of two minutes is over."""
    rig = make_guarded(tasks={"charge": {"time_limit": 30, "idempotency": {"key": "order", "grace": 120}}})
    rig.journal.shut("before-effect")
    rig.start_worker()
    with pytest.raises(TimeLimitExceeded):
        rig.result(rig.send("charge", "ord-1", 17, time_limit=2))
    rig.journal.open("before-effect")
    assert rig.result(rig.send("charge", "ord-1", 17)) == 17
    assert rig.journal.count("effect") == 1


@on_redis
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL], ids=["SIGTERM", "SIGKILL"])
def test_revoked_with_terminate_frees_the_key(make_guarded: MakeRig, number: signal.Signals) -> None:
    """A revoke with terminate ends the run and frees its key; the operator's act is no crash."""
    rig = make_guarded(tasks={"charge": LONG}, settings=CONTROLLED)
    rig.journal.shut("before-effect")
    rig.start_worker()
    revoked = rig.send("charge", "ord-1", 17)
    rig.journal.wait_for("at-gate")
    revoked.revoke(terminate=True, signal=number.name)
    with pytest.raises(TaskRevokedError):
        rig.result(revoked)
    rig.journal.wait_for("Released", id=revoked.id, reason="Terminated")
    rig.journal.open("before-effect")
    assert rig.result(rig.send("charge", "ord-1", 17)) == 17
    assert rig.journal.count("effect") == 1
    assert rig.journal.entries("started")[-1]["attempt"] == 1


@on_redis
def test_revoked_while_it_waits_frees_nothing(make_guarded: MakeRig) -> None:
    """A delivery that is terminated while it waits for a busy key leaves the holder's claim alone."""
    waiting = {"key": "order", "on_busy": "wait", "wait_timeout": 60}
    rig = make_guarded(tasks={"charge": {"time_limit": 120, "idempotency": waiting}}, settings=CONTROLLED)
    rig.journal.shut("before-effect")
    rig.start_worker()
    holder = rig.send("charge", "ord-1", 17)
    rig.journal.wait_for("at-gate")
    # The other process makes its client now: Python drops a signal's exit that falls into a finalizer of the imports.
    rig.result(rig.send("add", 1, 2))
    waiter = rig.send("charge", "ord-1", 17)
    rig.journal.wait_for("begun", id=waiter.id)
    waiter.revoke(terminate=True)
    with pytest.raises(TaskRevokedError):
        rig.result(waiter)
    successor = rig.send("charge", "ord-1", 17)
    rig.journal.wait_for("begun", id=successor.id)
    rig.journal.open("before-effect")
    assert [rig.result(holder), rig.result(successor)] == [17, 17]
    assert rig.journal.count("effect", task="charge") == rig.journal.count("started", task="charge") == 1
    assert rig.journal.count("Released") == 0


@pytest.mark.skipif(celery.__version__ < "5.5", reason="Celery 5.4 drops a message that ran into its time limit")
@on_redis
def test_hard_time_limit_gives_the_message_back_at_once(make_guarded: MakeRig) -> None:
    """Where the task asks for it, the redelivery after a hard time limit runs now, and it counts as a crash."""
    policy = {"key": "order", "grace": 120}
    options = {"time_limit": 2, "acks_on_failure_or_timeout": False, "idempotency": policy}
    rig = make_guarded(visibility_seconds=CHILD_LOSS_SECONDS, tasks={"charge": options})
    rig.journal.shut("before-effect")
    rig.start_worker()
    published = rig.send("charge", "ord-1", 17)
    rig.journal.wait_for("started", times=2, id=published.id)
    rig.journal.open("before-effect")
    rig.journal.wait_for("Committed", id=published.id)
    assert rig.journal.count("effect") == 1
    assert rig.journal.entries("started")[1]["attempt"] == 2


@on_redis
@on_ministack
def test_child_killed_before_its_claim_is_succeeded_at_once(make_guarded: MakeRig, wire: Wire) -> None:
    """The redelivery does not wait for a claim that is still on its way; the claim then finds the key finished."""
    rig = make_guarded(wire.endpoint, visibility_seconds=CHILD_LOSS_SECONDS, tasks={"charge": LONG})
    worker = rig.start_worker()
    arrives = threading.Event()
    wire.clear()
    wire.break_nth("UpdateItem", 1, hold(arrives, BOUND_SECONDS * 2))
    published = rig.send("charge", "ord-1", 17)
    begun = rig.journal.wait_for("begun", id=published.id)
    wait_for(lambda: "UpdateItem" in wire.operations(), BOUND_SECONDS, "no claim on the wire")
    worker.kill_child(begun["pid"])
    assert rig.result(published) == 17
    arrives.set()
    assert rig.result(rig.send("charge", "ord-1", 18)) == 17
    assert rig.journal.count("effect") == 1


@on_redis
@on_ministack
def test_claim_that_lands_after_its_childs_release_is_released_again(
    make_guarded: MakeRig, wire: Wire, store: DynamoDBStore
) -> None:
    """The claim of a dead child may reach the store after its release found none: it does not hold the key for long."""
    rig = make_guarded(wire.endpoint, tasks={"charge": LONG}, settings=CONTROLLED)
    rig.start_worker()
    arrives = threading.Event()
    wire.clear()
    wire.break_nth("UpdateItem", 1, hold(arrives, BOUND_SECONDS))
    revoked = rig.send("charge", "ord-1", 17)
    rig.journal.wait_for("begun", id=revoked.id)
    wait_for(lambda: "UpdateItem" in wire.operations(), BOUND_SECONDS, "no claim on the wire")
    revoked.revoke(terminate=True, signal="SIGKILL")
    wait_for(lambda: wire.operations().count("UpdateItem") >= 2, BOUND_SECONDS, "no release on the wire")
    arrives.set()
    assert rig.result(rig.send("charge", "ord-1", 18)) == 18
    assert rig.journal.count("effect") == 1


@on_redis
@on_ministack
def test_worker_goes_on_while_the_store_keeps_its_releases_waiting(make_guarded: MakeRig, wire: Wire) -> None:
    """Two children die at once and the store does not answer for them: the event loop handles the next task."""
    rig = make_guarded(wire.endpoint, visibility_seconds=CHILD_LOSS_SECONDS, tasks={"charge": LONG})
    rig.journal.shut("before-effect")
    worker = rig.start_worker()
    answers = threading.Event()
    wire.clear()
    wire.break_when(lambda operation, nth: operation == "UpdateItem" and nth in {3, 4}, hold(answers, BOUND_SECONDS))
    lost = [rig.send("charge", order, order) for order in ("ord-1", "ord-2")]
    rig.journal.wait_for("at-gate", times=2)
    for held in rig.journal.entries("at-gate"):
        worker.kill_child(held["pid"])
    wait_for(lambda: wire.operations().count("UpdateItem") >= 4, BOUND_SECONDS, "no two releases on the wire")
    rig.journal.open("before-effect")
    assert rig.result(rig.send("charge", "ord-3", "ord-3")) == "ord-3"
    answers.set()
    assert [rig.result(each) for each in lost] == ["ord-1", "ord-2"]
    assert rig.journal.count("effect") == 3


@on_redis
def test_body_that_leaves_its_process_is_succeeded_at_once(make_guarded: MakeRig) -> None:
    """A body that ends its process, even with status 0, has lost it: its delivery runs again, and the crash counts."""
    rig = make_guarded(visibility_seconds=CHILD_LOSS_SECONDS, tasks={"leave": LONG})
    rig.start_worker()
    published = {way: rig.send("leave", way, way) for way in ("os._exit", "os._exit(0)", "segfault")}
    for way, each in published.items():
        assert rig.result(each) == way
        assert [run["attempt"] for run in rig.journal.entries("started", key=way)] == [1, 2]
    assert rig.journal.count("effect") == 3


@on_redis
def test_body_that_always_exits_is_given_up(make_guarded: MakeRig) -> None:
    """``sys.exit()`` takes a process with each run, and is delivered again; a crash loop like any other, it ends."""
    options = {"time_limit": 120, "idempotency": {"key": "order", "max_crashes": 2}}
    rig = make_guarded(visibility_seconds=CHILD_LOSS_SECONDS, tasks={"leave": options})
    rig.start_worker()
    once, always = rig.send("leave", "ord-1", "sys.exit"), rig.send("leave", "ord-2", "sys.exit", 99)
    assert rig.result(once) == "sys.exit"
    with pytest.raises(CrashLoopError, match="2 times in a row"):
        rig.result(always)
    assert [rig.journal.count("started", key=order) for order in ("ord-1", "ord-2")] == [2, 2]


@on_redis
def test_pool_that_renews_its_processes_cuts_no_body_short(make_guarded: MakeRig) -> None:
    """A restart and a shrinking of the pool leave a running body alone, as does the recycling after each task."""
    settings = {**CONTROLLED, "worker_pool_restarts": True}
    rig = make_guarded(tasks={"charge": LONG}, settings=settings)
    rig.journal.shut("before-effect")
    worker = rig.start_worker(3, "--max-tasks-per-child", "1", "--max-memory-per-child", "1")
    held = rig.send("charge", "ord-1", 1)
    rig.journal.wait_for("at-gate")
    for command, arguments in (("pool_shrink", {"n": 1}), ("pool_restart", {})):
        [answer] = rig.app.control.broadcast(
            command, arguments, destination=[worker.name], reply=True, timeout=BOUND_SECONDS, limit=1
        )
        assert "ok" in answer[worker.name], answer
    rig.journal.open("before-effect")
    assert rig.result(held) == 1
    assert [rig.result(rig.send("charge", f"ord-{nth}", nth)) for nth in (2, 3)] == [2, 3]
    assert rig.journal.count("effect") == rig.journal.count("started") == 3
    assert rig.journal.count("Released") == 0
    assert len({run["pid"] for run in rig.journal.entries("started")}) == 3
