"""A real worker, and what happens on the wire between it and its store."""

import pytest

from tests.integration.conftest import MakeRig
from tests.testbed.wire import Wire, lose_answer, refuse

BY_ORDER = {"idempotency": {"key": "order"}}
on_redis = pytest.mark.parametrize("broker", ["redis"], indirect=True)
on_ministack = pytest.mark.parametrize("dynamodb_endpoint", ["ministack"], indirect=True)


@on_ministack
def test_store_down_defers_the_delivery(make_guarded: MakeRig, wire: Wire) -> None:
    """While the store is down no body runs and no message is lost; when it is back the body runs once."""
    rig = make_guarded(wire.endpoint, tasks={"charge": BY_ORDER})
    rig.start_worker()
    wire.break_all(refuse)
    published = rig.send("charge", "ord-1", 17)
    rig.journal.wait_for("Deferred", id=published.id, reason="StoreUnavailableError")
    assert rig.journal.count("started") == 0
    wire.heal()
    assert rig.result(published) == 17
    assert rig.journal.count("effect") == 1


@on_redis
@on_ministack
@pytest.mark.parametrize("ordinal", [1, 2], ids=["claim", "commit"])
def test_lost_answer_is_no_conflict(make_guarded: MakeRig, wire: Wire, ordinal: int) -> None:
    """A write that was applied and whose answer was lost is recognised when it is tried again: one run, no deferral."""
    rig = make_guarded(wire.endpoint, tasks={"charge": BY_ORDER})
    rig.start_worker(1)
    assert rig.result(rig.send("charge", "warm-up", 1)) == 1
    wire.clear()
    wire.break_nth("UpdateItem", ordinal, lose_answer)
    published = rig.send("charge", "ord-1", 17)
    assert rig.result(published) == 17
    assert wire.operations() == ["UpdateItem"] * 3
    assert rig.journal.count("effect", key="ord-1") == rig.journal.count("Committed", id=published.id) == 1
    assert rig.journal.count("Deferred") == rig.journal.count("Superseded") == 0


@on_redis
def test_first_run_costs_two_requests_and_a_replay_one(
    make_guarded: MakeRig, wire: Wire, request: pytest.FixtureRequest
) -> None:
    """On the wire: claim and commit; then one refused claim, and a read where the store returns no old item."""
    refusal = {"ministack": ["UpdateItem"], "roto": ["UpdateItem", "GetItem"]}
    rig = make_guarded(wire.endpoint, tasks={"charge": BY_ORDER})
    rig.start_worker(1)
    assert rig.result(rig.send("charge", "warm-up", 1)) == 1
    wire.clear()
    assert rig.result(rig.send("charge", "ord-1", 17)) == 17
    assert wire.operations() == ["UpdateItem", "UpdateItem"]
    wire.clear()
    assert rig.result(rig.send("charge", "ord-1", 17)) == 17
    assert wire.operations() == refusal[request.node.callspec.params["dynamodb_endpoint"]]
