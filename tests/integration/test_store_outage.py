"""A store that is down: for half a minute under load, and for as long as a policy has to decide what to do."""

import pytest

from idempotent_tasks import StoreUnavailableError
from tests.integration.conftest import MakeRig
from tests.support.wire import Wire

BY_ORDER = {"idempotency": {"key": "order"}}
on_redis = pytest.mark.parametrize("broker", ["redis"], indirect=True)
on_ministack = pytest.mark.parametrize("dynamodb_endpoint", ["ministack"], indirect=True)


@on_redis
@on_ministack
def test_hard_time_limit_does_not_strike_in_the_commit(make_guarded: MakeRig, wire: Wire) -> None:
    """A body that returned in an outage has its result, and `Unrecorded` says the rest, before its time limit kills it."""
    rig = make_guarded(wire.endpoint, visibility_seconds=30, tasks={"charge": {"time_limit": 5, **BY_ORDER}})
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
    rig = make_guarded(wire.endpoint, visibility_seconds=30, tasks={"charge": {"time_limit": 3, **BY_ORDER}})
    rig.start_worker()
    with wire.outage():
        published = rig.send("charge", "ord-1", 17)
        rig.journal.wait_for("Deferred", id=published.id)
    assert rig.result(published) == 17
    assert rig.journal.count("effect") == 1
