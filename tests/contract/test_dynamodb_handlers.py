"""Handlers of botocore's event ``before-send``, the last who see a request: they see it on both roads."""

from typing import Any

import boto3
import pytest

from idempotent_tasks import DynamoDBStore
from idempotent_tasks.stores.dynamodb_client import Connection, Written
from tests.conftest import REGION
from tests.contract.conftest import MakeStore
from tests.support.guarding import grant
from tests.support.roads import answered, ask
from tests.support.wire import Wire


@pytest.fixture
def dynamodb_endpoint(roto: str) -> str:
    """The endpoint URL of one DynamoDB: what is sent does not depend on who answers."""
    return roto


def test_they_see_every_request(dynamodb: DynamoDBStore, make_store: MakeStore, fast: bool) -> None:
    """On both roads, under the same names, as it goes out."""
    session = boto3.Session(region_name=REGION)
    seen = []
    session.events.register("before-send", lambda event_name, request, **_: seen.append((event_name, request)))
    grant(make_store(fast=fast, session=session))
    assert [name for name, _ in seen] == ["before-send.dynamodb.GetItem", "before-send.dynamodb.UpdateItem"]
    assert all(dynamodb.table.encode() in request.body for _, request in seen)
    assert len({request.url for _, request in seen}) == 1


def test_they_may_answer(fast: bool) -> None:
    """Then nothing goes over the network, not after the first request either: as moto does."""
    session = boto3.Session(region_name=REGION)
    urls = answered(session, {"GetItem": b'{"Item": {"id": {"S": "made up"}}}'})
    connection = Connection(session=session, endpoint_url="http://dynamodb.invalid:8000", fast=fast)
    answers = [ask(connection) for _ in range(3)]
    assert urls == ["http://dynamodb.invalid:8000/"] * 3
    for answer in answers:
        assert isinstance(answer, Written)
        assert answer.answer["Item"] == {"id": {"S": "made up"}}


@pytest.mark.parametrize("event", ["before-send", "before-send.dynamodb.*", "before-send.dynamodb.UpdateItem"])
def test_they_may_add_a_header(
    dynamodb: DynamoDBStore, make_store: MakeStore, wire: Wire, fast: bool, event: str
) -> None:
    """Each request has the one that was added to it, and no other's."""
    session = boto3.Session(region_name=REGION)
    added: list[str] = []

    def trace(request: Any, **_: Any) -> None:
        if "X-Trace" not in request.headers:
            added.append(f"trace-{len(added)}")
            request.headers["X-Trace"] = added[-1]

    session.events.register(event, trace)
    store = make_store(fast=fast, session=session)
    for number in range(3):
        grant(store, key=f"shop.charge#{number}")
    store.get("shop.charge#0")
    traced = [request for request in wire.requests if not event.endswith("Item") or request.operation in event]
    assert [request.headers["x-trace"] for request in traced] == added
    assert all("x-trace" not in request.headers for request in wire.requests if request not in traced)
    assert len(added) == len(traced) >= 3
