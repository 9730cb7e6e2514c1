"""What the processes of a prefork pool must not share."""

import json

import pytest

from idempotent_tasks import DynamoDBStore
from tests.integration.conftest import MakeRig
from tests.testbed.wire import Wire


@pytest.mark.parametrize("broker", ["redis"], indirect=True)
@pytest.mark.parametrize("dynamodb_endpoint", ["ministack"], indirect=True)
def test_children_share_no_connection_and_no_owner_token(
    make_guarded: MakeRig, wire: Wire, store: DynamoDBStore
) -> None:
    """Each child talks to the store over connections of its own, none of them the parent's; owners differ."""
    rig = make_guarded(wire.endpoint)
    wire.clear()
    rig.journal.shut("before-effect")
    rig.start_worker(2)
    parents = {request.client_port for request in wire.requests}
    published = [rig.send("charge", order) for order in ("ord-1", "ord-2")]
    rig.journal.wait_for("at-gate", times=2)
    rig.journal.open("before-effect")
    for each in published:
        rig.result(each)
    claims = [rig.journal.wait_for("Claimed", id=each.id) for each in published]
    ports = [{r.client_port for r in wire.requests if each.id in json.dumps(r.body)} for each in published]
    owners = [store.get(claim["key"]).owner for claim in claims]
    assert claims[0]["pid"] != claims[1]["pid"]
    assert parents, "the parent checks the table before it forks, over a connection that a child could inherit"
    assert all(ports)
    assert not ports[0] & ports[1]
    assert not (ports[0] | ports[1]) & parents
    assert len(set(owners)) == 2
