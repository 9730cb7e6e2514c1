"""Claims far longer than these tests, whose holders die: the parent process frees them, and the next delivery runs."""

import signal

import pytest
from celery.exceptions import TaskRevokedError, TimeLimitExceeded

from tests.integration.conftest import MakeRig
from tests.support.brokers import CHILD_LOSS_SECONDS

#: A claim lives for two minutes, unless somebody releases it.
LONG = {"time_limit": 120, "idempotency": {"key": "order"}}

on_redis = pytest.mark.parametrize("broker", ["redis"], indirect=True)


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
    rig = make_guarded(tasks={"charge": {"time_limit": 2, "idempotency": {"key": "order", "grace": 120}}})
    rig.journal.shut("before-effect")
    rig.start_worker()
    with pytest.raises(TimeLimitExceeded):
        rig.result(rig.send("charge", "ord-1", 17))
    rig.journal.open("before-effect")
    assert rig.result(rig.send("charge", "ord-1", 17)) == 17
    assert rig.journal.count("effect") == 1


@on_redis
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL], ids=["SIGTERM", "SIGKILL"])
def test_revoked_with_terminate_frees_the_key(make_guarded: MakeRig, number: signal.Signals) -> None:
    """A revoke with terminate ends the run and frees its key; the operator's act is no crash."""
    rig = make_guarded(tasks={"charge": LONG}, settings={"worker_enable_remote_control": True})
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
def test_cold_shutdown_frees_what_it_kills(make_guarded: MakeRig) -> None:
    """A worker told to shut down cold frees the keys of the bodies that it kills: the next worker runs them."""
    rig = make_guarded(tasks={"charge": LONG})
    rig.journal.shut("before-effect")
    worker = rig.start_worker()
    published = rig.send("charge", "ord-1", 17)
    rig.journal.wait_for("at-gate")
    worker.process.end_by(signal.SIGQUIT, 30.0)
    rig.journal.open("before-effect")
    rig.start_worker()
    assert rig.result(published) == 17
    assert rig.journal.count("effect") == 1
