"""A server that returns no old item with a refusal is asked for it, and the record may have changed in between."""

from typing import Any

import pytest

from idempotent_tasks import DynamoDBStore, StoreUnavailableError
from idempotent_tasks.core.records import Vanished
from tests.support.guarding import KEY, done, grant, request_by
from tests.testbed.wire import Answer, Forward, Wire

RETENTION = 3600


@pytest.fixture
def dynamodb_endpoint(roto: str) -> str:
    """The server that returns no old item with a refusal."""
    return roto


def test_a_record_that_is_gone_by_then_is_claimed(dynamodb: DynamoDBStore, wire: Wire, raw: Any) -> None:
    """Refused, then deleted: the claim asks again and is granted."""
    grant(dynamodb)
    wire.clear()

    def delete_first(forward: Forward) -> Answer:
        raw.delete_item(TableName=dynamodb.table, Key={"id": {"S": KEY}})
        return forward()

    wire.break_nth("GetItem", 1, delete_first)
    assert grant(dynamodb, "two").attempt == 1
    assert wire.operations() == ["UpdateItem", "GetItem", "UpdateItem"]


def test_a_record_that_is_released_by_then_is_claimed(dynamodb: DynamoDBStore, wire: Wire, raw: Any) -> None:
    """Refused, then free: the claim asks again instead of answering busy for a claim that is none."""
    claim = grant(dynamodb)
    other = DynamoDBStore(dynamodb.table, client=raw)
    wire.clear()

    def release_first(forward: Forward) -> Answer:
        other.release(claim, "Retry")
        return forward()

    wire.break_nth("GetItem", 1, release_first)
    assert grant(dynamodb, "two").fence == claim.fence + 1


def test_a_record_that_comes_and_goes(dynamodb: DynamoDBStore, wire: Wire, raw: Any) -> None:
    """A claim does not ask indefinitely: it is unavailable for now, and names the key."""
    grant(dynamodb)
    [item] = raw.scan(TableName=dynamodb.table)["Items"]
    wire.clear()

    def hide(forward: Forward) -> Answer:
        raw.delete_item(TableName=dynamodb.table, Key={"id": {"S": KEY}})
        reply = forward()
        raw.put_item(TableName=dynamodb.table, Item=item)
        return reply

    wire.break_when(lambda operation, _: operation == "GetItem", hide)
    with pytest.raises(StoreUnavailableError) as caught:
        dynamodb.claim(request_by("two"))
    assert caught.value.key == KEY
    assert wire.operations().count("UpdateItem") < 10


def test_a_record_that_is_gone_before_a_commit_has_vanished(dynamodb: DynamoDBStore, wire: Wire) -> None:
    """The commit of a claim whose record was deleted reads once and finds nothing."""
    claim = grant(dynamodb)
    dynamodb.forget(KEY)
    wire.clear()
    assert dynamodb.commit(claim, done(), RETENTION) == Vanished()
    assert wire.operations() == ["UpdateItem", "GetItem"]
