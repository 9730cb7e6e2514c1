"""Workers killed as a whole, with claims far longer than these tests: their successors on the machine need not wait."""

import pytest

from tests.integration.conftest import MakeRig

#: A claim lives for two minutes, unless somebody releases it.
LONG = {"time_limit": 120, "idempotency": {"key": "order"}}
#: A claim that is renewed, and lives for two minutes after the last renewal.
LEASED = {"idempotency": {"key": "order", "lease": 120}}

on_redis = pytest.mark.parametrize("broker", ["redis"], indirect=True)


def test_worker_killed_in_a_body_is_succeeded_at_once(make_guarded: MakeRig) -> None:
    """The redelivery finds that the holder's process has ended, frees the key and runs; the crash counts."""
    rig = make_guarded(tasks={"charge": LONG})
    rig.journal.shut("before-effect")
    first = rig.start_worker()
    published = rig.send("charge", "ord-1", 17)
    rig.journal.wait_for("at-gate")
    first.kill()
    rig.journal.open("before-effect")
    rig.start_worker()
    assert rig.result(published) == 17
    assert rig.journal.count("effect") == 1
    assert rig.journal.count("Released", reason="HolderEnded", id=published.id) == 1
    assert [each["attempt"] for each in rig.journal.entries("started")] == [1, 2]


@on_redis
@pytest.mark.parametrize("pool", ["threads", "solo", "gevent", "eventlet"])
def test_worker_of_another_pool_is_succeeded_at_once(make_guarded: MakeRig, pool: str) -> None:
    """The same where bodies share the worker's process, which nobody watches."""
    rig = make_guarded(tasks={"charge": LEASED})
    rig.journal.shut("before-effect")
    first = rig.start_worker(pool=pool)
    published = rig.send("charge", "ord-1", 17)
    rig.journal.wait_for("at-gate")
    first.kill()
    rig.journal.open("before-effect")
    rig.start_worker(pool=pool)
    # Most of these pools sweep Redis for unacknowledged messages at their start only.
    assert rig.result(rig.send("charge", "ord-1", 17)) == 17
    assert rig.journal.count("effect") == 1
    assert rig.journal.count("Released", reason="HolderEnded", id=published.id) == 1


@on_redis
def test_a_frozen_holder_has_not_ended(make_guarded: MakeRig) -> None:
    """A process that stands still will go on: its key is not taken before its claim expires."""
    rig = make_guarded(visibility_seconds=60, tasks={"charge": {"idempotency": {"key": "order", "lease": 5}}})
    rig.journal.shut("before-effect")
    worker = rig.start_worker()
    published = rig.send("charge", "ord-1", 17)
    held = rig.journal.wait_for("at-gate")
    with worker.frozen_child(held["pid"]):
        duplicate = rig.send("charge", "ord-1", 18)
        rig.journal.wait_for("Deferred", id=duplicate.id)
    rig.journal.open("before-effect")
    assert [rig.result(published), rig.result(duplicate)] == [17, 17]
    assert rig.journal.count("effect") == 1
    assert rig.journal.count("Released") == 0
