"""A store that is down: for half a minute under load, and for as long as a policy has to decide what to do."""

import time
from collections import Counter
from itertools import count

import pytest

from idempotent_tasks import StoreUnavailableError
from tests.integration.conftest import MakeRig
from tests.support.rig import Load
from tests.testbed.wire import Wire

BY_ORDER = {"idempotency": {"key": "order"}}
OUTAGE_SECONDS = 30.0
#: A claim is tried for at least so long before its delivery is deferred: 5 s less the longest pause, 2 s.
SHORTEST_TRY_SECONDS = 3.0
CONCURRENCY = 5

on_redis = pytest.mark.parametrize("broker", ["redis"], indirect=True)
on_ministack = pytest.mark.parametrize("dynamodb_endpoint", ["ministack"], indirect=True)


@on_redis
@on_ministack
def test_half_a_minute_under_load(make_guarded: MakeRig, wire: Wire) -> None:
    """Messages before, in and after an outage, bodies in flight when it starts: one effect a key, nothing lost.

    A claim that outlives the outage is kept and committed; one that does not is `Unrecorded`, with its result.
    """
    lease = {"idempotency": {"key": "left", "lease": 1.5 * OUTAGE_SECONDS}}
    rig = make_guarded(wire.endpoint, visibility_seconds=90, tasks={"charge": BY_ORDER, "add": lease})
    rig.start_worker(CONCURRENCY)
    load = Load(rig, lambda: Counter(wire.operations()))
    for key in ("before-1", "before-2", "before-3"):
        load.send(key, times=2)
    load.account()
    rig.journal.shut("before-effect")
    rig.journal.shut("add-1-2")
    outlives = load.send("outlives", time_limit=90)
    expires = load.send("expires", time_limit=12)
    kept = rig.send("add", 1, 2)
    rig.journal.wait_for("at-gate", times=3)
    with wire.outage():
        rig.journal.open("before-effect")
        _publish_for(OUTAGE_SECONDS / 2, load)
        with wire.unplugged():
            _publish_for(OUTAGE_SECONDS / 2, load)
    renewals = rig.journal.count("Renewed", id=kept.id)
    load.send("outlives")
    for key in ("before-1", "in-5", "in-6", "after-1"):
        load.send(key, times=2)
    rig.journal.wait_for("Renewed", id=kept.id, times=renewals + 1)
    rig.journal.open("add-1-2")
    assert rig.result(kept) == 3
    load.account()
    assert rig.journal.count("Committed", id=outlives.id) == rig.journal.count("Committed", id=kept.id) == 1
    assert rig.journal.count("effect", id=kept.id) == 1
    assert [each["id"] for each in rig.journal.entries("Unrecorded")] == [expires.id]
    deferrals = Counter(each["id"] for each in rig.journal.entries("Deferred", reason="StoreUnavailableError"))
    # Countdowns of 1, 2, 4 and 8 s, and five tries of the claim, fill the outage; so do a slot's tries.
    assert 1 <= max(deferrals.values()) <= 5, deferrals
    assert deferrals.total() <= CONCURRENCY * (OUTAGE_SECONDS / SHORTEST_TRY_SECONDS + 1), deferrals


def _publish_for(seconds: float, load: Load) -> None:
    """Publish a new key twice, and a key from before once, at a steady pace."""
    end = time.monotonic() + seconds
    for number in count(len(load.published)):
        load.send(f"in-{number}", times=2)
        load.send("before-2")
        if time.monotonic() > end:
            return
        time.sleep(1.5)


@on_redis
@on_ministack
def test_hard_time_limit_does_not_strike_in_the_commit(make_guarded: MakeRig, wire: Wire) -> None:
    """A body that returned in an outage has its result, and `Unrecorded` says the rest, before its limit kills it."""
    rig = make_guarded(wire.endpoint, visibility_seconds=30, tasks={"charge": {"time_limit": 8, **BY_ORDER}})
    rig.journal.shut("before-effect")
    rig.start_worker()
    published = rig.send("charge", "ord-1", 17)
    rig.journal.wait_for("at-gate")
    with wire.outage():
        rig.journal.open("before-effect")
        assert rig.result(published) == 17
    assert rig.journal.count("Unrecorded", id=published.id) == rig.journal.count("effect") == 1


@on_redis
@on_ministack
def test_hard_time_limit_does_not_strike_in_the_claim(make_guarded: MakeRig, wire: Wire) -> None:
    """A delivery that cannot claim within a short time limit is deferred, not failed and lost: its body runs later."""
    rig = make_guarded(wire.endpoint, visibility_seconds=30, tasks={"charge": BY_ORDER})
    rig.start_worker(1)
    assert rig.result(rig.send("charge", "warm-up", 1)) == 1
    with wire.outage():
        published = rig.send("charge", "ord-1", 17, time_limit=4)
        rig.journal.wait_for("Deferred", id=published.id)
    assert rig.result(published) == 17
    assert rig.journal.count("effect", key="ord-1") == 1


@on_redis
@on_ministack
def test_policies_of_an_outage(make_guarded: MakeRig, wire: Wire) -> None:
    """Under ``raise`` a delivery that cannot claim fails without a body; under ``run`` its body runs unguarded."""
    policies = {
        "charge": {"idempotency": {"key": "order", "on_store_error": "raise"}},
        "retry": {"idempotency": {"key": "order", "on_store_error": "run"}},
    }
    rig = make_guarded(wire.endpoint, visibility_seconds=30, tasks=policies)
    rig.start_worker()
    with wire.unplugged():
        failing = rig.send("charge", "ord-1", 17)
        running = rig.send("retry", "ord-2", 0)
        with pytest.raises(StoreUnavailableError):
            rig.result(failing)
        assert rig.result(running) == 1
    assert [each["key"] for each in rig.journal.entries("effect")] == ["ord-2"]
    assert rig.journal.entries("started", key="ord-2")[0]["fence"] == 0
    assert rig.journal.count("Deferred") == 0
