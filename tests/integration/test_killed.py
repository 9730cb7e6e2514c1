"""Workers and pool children killed in every window between the claim and the acknowledgement."""

import celery
import pytest
from celery.exceptions import TimeLimitExceeded, WorkerLostError

from idempotent_tasks import CrashLoopError, DynamoDBStore, Status
from tests.integration.conftest import MakeRig
from tests.testbed.brokers import CHILD_LOSS_SECONDS

#: The shortest claims: they end with the task's hard time limit, in seconds.
BRIEF = {"time_limit": 4, "idempotency": {"key": "order", "grace": 0}}
#: Claims of a body without a time limit: renewed while the child lives, over 2 s after it died.
RENEWED = {"idempotency": {"key": "order", "lease": 2}}

on_redis = pytest.mark.parametrize("broker", ["redis"], indirect=True)


def test_worker_killed_after_claim_before_effect(make_guarded: MakeRig) -> None:
    """The claim of a dead worker expires, and its redelivered task runs: one effect, result stored."""
    rig = make_guarded(tasks={"charge": BRIEF})
    rig.journal.shut("before-effect")
    first = rig.start_worker(elsewhere_skew_seconds=0)
    published = rig.send("charge", "ord-1", 17)
    rig.journal.wait_for("at-gate")
    first.kill()
    rig.journal.open("before-effect")
    rig.start_worker()
    assert rig.result(published) == 17
    assert rig.journal.count("effect") == 1
    dead, alive = rig.journal.entries("started", id=published.id)
    assert alive["fence"] > dead["fence"]
    assert (dead["attempt"], alive["attempt"]) == (1, 2)


def test_child_killed_in_body(make_guarded: MakeRig) -> None:
    """The claim of a dead pool child is not renewed any more, and the rejected delivery runs: one effect."""
    rig = make_guarded(visibility_seconds=CHILD_LOSS_SECONDS, tasks={"charge": RENEWED})
    rig.journal.shut("before-effect")
    worker = rig.start_worker()
    published = rig.send("charge", "ord-1", 17)
    rig.journal.wait_for("Renewed", id=published.id)
    worker.kill_child(rig.journal.wait_for("at-gate")["pid"])
    rig.journal.open("before-effect")
    assert rig.result(published) == 17
    assert rig.journal.count("effect") == 1


def test_worker_killed_after_commit_before_ack(make_guarded: MakeRig) -> None:
    """A task redelivered after its commit returns the committed result: one effect, although nothing was stored."""
    rig = make_guarded(tasks={"charge": BRIEF})
    rig.journal.shut("Committed")
    first = rig.start_worker()
    published = rig.send("charge", "ord-1", 17)
    rig.journal.wait_for("at-gate", gate="Committed")
    first.kill()
    assert published.state == "PENDING"
    rig.journal.open("Committed")
    rig.start_worker()
    assert rig.result(published) == 17
    assert rig.journal.count("Replayed", id=published.id) >= 1
    assert rig.journal.count("effect") == 1


def test_deferred_duplicate_takes_over_from_a_killed_worker(make_guarded: MakeRig) -> None:
    """A duplicate waits for the run on another worker, which is killed: both publishers get one effect's result."""
    rig = make_guarded(tasks={"charge": RENEWED})
    rig.journal.shut("before-effect")
    first = rig.start_worker(1, elsewhere_skew_seconds=0)
    original = rig.send("charge", "ord-1", 17)
    rig.journal.wait_for("at-gate")
    rig.start_worker(1)
    duplicate = rig.send("charge", "ord-1", 17)
    rig.journal.wait_for("Deferred", id=duplicate.id)
    first.kill()
    rig.journal.open("before-effect")
    assert [rig.result(original), rig.result(duplicate)] == [17, 17]
    assert rig.journal.count("effect") == 1


def test_deferred_duplicate_is_the_only_copy_left(make_guarded: MakeRig) -> None:
    """The original's message is acknowledged early and lost with its child: the deferred duplicate does the work."""
    rig = make_guarded(tasks={"charge": {**RENEWED, "acks_late": False}})
    rig.journal.shut("before-effect")
    worker = rig.start_worker()
    original = rig.send("charge", "ord-1", 17)
    held = rig.journal.wait_for("at-gate")
    duplicate = rig.send("charge", "ord-1", 17)
    rig.journal.wait_for("Deferred", id=duplicate.id)
    worker.kill_child(held["pid"])
    rig.journal.open("before-effect")
    assert rig.result(duplicate) == 17
    with pytest.raises(WorkerLostError):
        rig.result(original)
    assert rig.journal.count("effect", id=duplicate.id) == rig.journal.count("effect") == 1


def test_hard_time_limit_frees_the_key(make_guarded: MakeRig, store: DynamoDBStore) -> None:
    """The hard time limit kills the child; a later publish with the same key runs."""
    rig = make_guarded(tasks={"charge": {**BRIEF, "time_limit": 30}})
    rig.journal.shut("before-effect")
    rig.start_worker()
    limited = rig.send("charge", "ord-1", 17, time_limit=2)
    key = rig.journal.wait_for("Claimed", id=limited.id)["key"]
    with pytest.raises(TimeLimitExceeded):
        rig.result(limited)
    assert store.get(key).status is Status.INPROGRESS
    rig.journal.open("before-effect")
    assert rig.result(rig.send("charge", "ord-1", 17)) == 17
    assert store.get(key).status is Status.COMPLETED
    assert rig.journal.count("effect") == 1


@pytest.mark.skipif(celery.__version__ < "5.5", reason="Celery 5.4 drops a message that ran into its time limit")
@on_redis
def test_hard_time_limit_then_redelivery(make_guarded: MakeRig) -> None:
    """A delivery that its hard time limit left unacknowledged comes back and runs: one effect, result stored."""
    options = {**BRIEF, "time_limit": 2, "acks_on_failure_or_timeout": False}
    rig = make_guarded(tasks={"charge": options})
    rig.journal.shut("before-effect")
    rig.start_worker()
    published = rig.send("charge", "ord-1", 17)
    with pytest.raises(TimeLimitExceeded):
        rig.result(published)
    rig.journal.open("before-effect")
    rig.journal.wait_for("Committed", id=published.id)
    rig.journal.wait_for("over", id=published.id, state="SUCCESS")
    assert rig.result(rig.app.AsyncResult(published.id)) == 17
    assert rig.journal.count("effect") == 1


@on_redis
def test_frozen_child_cannot_overwrite_its_successor(make_guarded: MakeRig) -> None:
    """A child that stood still past its claim wakes up after another committed: it yields, and returns that result."""
    rig = make_guarded(tasks={"charge": RENEWED})
    rig.journal.shut("before-effect")
    worker = rig.start_worker()
    zombie = rig.send("charge", "ord-1", "of the zombie")
    held = rig.journal.wait_for("at-gate")
    with worker.frozen_child(held["pid"]):
        rig.journal.open("before-effect")
        successor = rig.send("charge", "ord-1", "of the successor")
        assert rig.result(successor) == "of the successor"
    assert rig.result(zombie) == "of the successor"
    assert rig.journal.count("Superseded", id=zombie.id) == 1
    assert rig.journal.count("Committed") == 1


@on_redis
def test_body_that_kills_its_process_is_given_up(make_guarded: MakeRig) -> None:
    """A body that ends its process every time fails with `CrashLoopError` instead of coming back indefinitely."""
    policy = {"key": "order", "lease": 1, "max_crashes": 2}
    rig = make_guarded(visibility_seconds=CHILD_LOSS_SECONDS, tasks={"die": {"idempotency": policy}})
    rig.start_worker()
    with pytest.raises(CrashLoopError, match="2 times in a row"):
        rig.result(rig.send("die", "ord-1"))
    assert rig.journal.count("started") == 2
    assert rig.journal.count("CrashLooped", crashes=2) == 1
