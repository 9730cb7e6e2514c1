"""Pools whose bodies share the worker's process: leases that one thread renews, and nobody to release for the dead."""

import signal
import time

import pytest
from celery.exceptions import TimeLimitExceeded

from tests.integration.conftest import MakeRig
from tests.testbed.brokers import CHILD_LOSS_SECONDS
from tests.testbed.wire import Wire

LEASE_SECONDS = 2.0
#: A claim is renewed three times a lease: so many renewals take longer than two leases.
RENEWALS = 7
#: A deferral waits for at least a second; the rest is for a busy machine.
SLACK_SECONDS = 4.0
#: Bodies side by side, and the connections to DynamoDB that a process keeps at most (``OUR_CONFIG``).
MANY = 50
LEASED = {"idempotency": {"key": "order", "lease": LEASE_SECONDS}}

pytestmark = pytest.mark.parametrize("broker", ["redis"], indirect=True)
each_pool = pytest.mark.parametrize("pool", ["threads", "solo", "gevent", "eventlet"])


@each_pool
def test_long_body_keeps_its_claim_and_a_dead_one_loses_it(make_guarded: MakeRig, pool: str) -> None:
    """A body longer than its lease is never joined by a duplicate, which takes over one lease after the worker died."""
    rig = make_guarded(visibility_seconds=CHILD_LOSS_SECONDS, tasks={"charge": LEASED})
    rig.journal.shut("before-effect")
    first = rig.start_worker(1, pool=pool, elsewhere_skew_seconds=0)
    original = rig.send("charge", "ord-1", 17)
    rig.journal.wait_for("at-gate")
    second = rig.start_worker(1, pool=pool)
    duplicate = rig.send("charge", "ord-1", 17)
    rig.journal.wait_for("Deferred", id=duplicate.id, reason="busy")
    rig.journal.wait_for("Renewed", id=original.id, times=RENEWALS)
    assert rig.journal.count("started") == 1
    first.kill()
    killed_at = time.monotonic()
    rig.journal.open("before-effect")
    heir = rig.journal.wait_for("started", times=2)
    assert time.monotonic() - killed_at < LEASE_SECONDS + SLACK_SECONDS
    assert (heir["id"], heir["pid"], heir["attempt"]) == (duplicate.id, second.process.pid, 2)
    assert rig.result(duplicate) == 17
    assert rig.result(rig.send("charge", "ord-1", 17)) == 17
    assert rig.journal.count("Released", reason="HolderEnded") == 0
    assert rig.journal.count("Replayed") >= 1
    assert rig.journal.count("effect") == 1


@each_pool
def test_warm_shutdown_finishes_bodies_that_one_renewer_keeps(make_guarded: MakeRig, pool: str) -> None:
    """Bodies side by side have claims of their own and one renewer, which goes on until the last of them is done."""
    bodies = 1 if pool == "solo" else 3
    rig = make_guarded(visibility_seconds=CHILD_LOSS_SECONDS, tasks={"charge": LEASED})
    rig.journal.shut("before-effect")
    worker = rig.start_worker(bodies, pool=pool)
    published = [rig.send("charge", f"ord-{number}", number) for number in range(bodies)]
    for each in published:
        rig.journal.wait_for("Renewed", id=each.id)
    worker.process.send(signal.SIGTERM)
    for each in published:
        rig.journal.wait_for("Renewed", id=each.id, times=RENEWALS)
    rig.journal.open("before-effect")
    assert [rig.result(each) for each in published] == list(range(bodies))
    assert worker.process.wait_for_exit() == 0
    renewals = rig.journal.entries("Renewed")
    assert {each.id for each in published} in [
        {entry["id"] for entry in renewals if entry["thread"] == renewer}
        for renewer in {entry["thread"] for entry in renewals}
    ]
    for each in published:
        claimed, started, effect = (
            rig.journal.entries(event, id=each.id) for event in ("Claimed", "started", "effect")
        )
        assert len(claimed) == len(started) == len(effect) == 1
        seen = [(entry["record"], entry["fence"]) for entry in started + effect]
        assert seen == [(claimed[0]["key"], claimed[0]["fence"])] * 2
    assert rig.journal.count("Deferred") == rig.journal.count("Lost") == 0


@pytest.mark.parametrize("dynamodb_endpoint", ["ministack"], indirect=True)
@pytest.mark.parametrize("pool", ["threads", "gevent", "eventlet"])
def test_many_bodies_share_one_clients_connections(make_guarded: MakeRig, wire: Wire, pool: str) -> None:
    """However many bodies run side by side, and however often, a process has no more connections than it may keep.

    That is as many for its client, which the first requests go through, as for the fast path that the others take.
    """
    # Greenlets acknowledge side by side, each on a connection to Redis; kombu allows ten.
    transport = {"max_connections": 2 * MANY}
    rig = make_guarded(wire.endpoint, transport=transport, tasks={"charge": {"idempotency": {"key": "order"}}})
    wire.clear()
    rig.start_worker(MANY, pool=pool)
    for wave in range(2):
        rig.journal.shut("before-effect")
        published = [rig.send("charge", f"ord-{wave}-{number}", number) for number in range(MANY)]
        rig.journal.wait_for("at-gate", times=MANY * (wave + 1))
        rig.journal.open("before-effect")
        assert [rig.result(each) for each in published] == list(range(MANY))
    requests = [request for request in wire.requests if request.operation == "UpdateItem"]
    assert len(requests) >= 4 * MANY
    connections = {request.client_port for request in wire.requests}
    print(f"{pool}: {len(wire.requests)} requests over {len(connections)} connections")  # noqa: T201
    assert len(connections) <= 2 * MANY


@pytest.mark.parametrize(("pool", "error"), [("gevent", TimeLimitExceeded)])
def test_gevents_time_limit_frees_the_key(make_guarded: MakeRig, pool: str, error: type[Exception]) -> None:
    """The limit that gevent raises in a body releases its claim, which had a minute to live, and a new publish runs."""
    rig = make_guarded(tasks={"charge": {"time_limit": 1, "idempotency": {"key": "order"}}})
    rig.journal.shut("before-effect")
    rig.start_worker(pool=pool)
    published = rig.send("charge", "ord-1", 17)
    with pytest.raises(error):
        rig.result(published)
    rig.journal.open("before-effect")
    assert rig.result(rig.send("charge", "ord-1", 17)) == 17
    assert rig.journal.count("effect") == 1


@pytest.mark.parametrize("pool", ["gevent", "eventlet"])
def test_terminated_greenlet_frees_the_key(make_guarded: MakeRig, pool: str) -> None:
    """A revoke with terminate ends the greenlet and releases its claim, which had a minute to live."""
    options = {"idempotency": {"key": "order"}}
    rig = make_guarded(tasks={"charge": options}, settings={"worker_enable_remote_control": True})
    rig.journal.shut("before-effect")
    rig.start_worker(pool=pool)
    revoked = rig.send("charge", "ord-1", 17)
    rig.journal.wait_for("at-gate")
    revoked.revoke(terminate=True)
    rig.journal.wait_for("Released", id=revoked.id)
    rig.journal.open("before-effect")
    assert rig.result(rig.send("charge", "ord-1", 17)) == 17
    assert rig.journal.count("effect") == 1
    assert rig.journal.entries("started")[-1]["attempt"] == 1
