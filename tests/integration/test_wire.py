"""The wire itself: a counter or a fault that lies would make every test above it worthless."""

import threading
import time
from email.utils import parsedate_to_datetime
from typing import Any

import boto3
import pytest
from botocore.config import Config
from botocore.exceptions import ClientError, ConnectionClosedError

from tests.conftest import REGION
from tests.support.waiting import wait_for
from tests.support.wire import Wire, hold, internal_error, lose_answer, refuse, shift_date, throttle


@pytest.fixture
def client(wire: Wire) -> Any:
    """A DynamoDB client behind the wire that never retries."""
    config = Config(retries={"total_max_attempts": 1}, connect_timeout=5, read_timeout=10)
    return boto3.client("dynamodb", endpoint_url=wire.endpoint, region_name=REGION, config=config)


@pytest.fixture
def items(client: Any, table: str, wire: Wire) -> str:
    """An empty table; the requests that made it are forgotten."""
    client.create_table(
        TableName=table,
        KeySchema=[{"AttributeName": "id", "KeyType": "HASH"}],
        AttributeDefinitions=[{"AttributeName": "id", "AttributeType": "S"}],
        BillingMode="PAY_PER_REQUEST",
    )
    wire.clear()
    return table


def put(client: Any, table: str, name: str) -> Any:
    """Write one item."""
    return client.put_item(TableName=table, Item={"id": {"S": name}})


def exists(client: Any, table: str, name: str) -> bool:
    """Return whether the item is there."""
    return "Item" in client.get_item(TableName=table, Key={"id": {"S": name}})


def test_requests_are_counted_in_order(client: Any, items: str, wire: Wire) -> None:
    """Each request is written down once, with its operation, its ordinal and its body."""
    put(client, items, "a")
    put(client, items, "b")
    assert exists(client, items, "b")
    assert wire.operations() == ["PutItem", "PutItem", "GetItem"]
    assert [request.ordinal for request in wire.requests] == [1, 2, 1]
    assert wire.requests[1].body["Item"] == {"id": {"S": "b"}}


def test_a_lost_answer_is_applied(client: Any, items: str, wire: Wire) -> None:
    """`lose_answer` breaks the connection after the write."""
    wire.break_nth("PutItem", 2, lose_answer)
    put(client, items, "a")
    with pytest.raises(ConnectionClosedError):
        put(client, items, "b")
    assert exists(client, items, "b")


def test_a_refused_request_is_not_applied(client: Any, items: str, wire: Wire) -> None:
    """`refuse` breaks the connection before the write, until the wire is mended."""
    wire.break_all(refuse)
    with pytest.raises(ConnectionClosedError):
        put(client, items, "a")
    wire.mend()
    assert not exists(client, items, "a")


@pytest.mark.parametrize(
    ("fault", "code"),
    [(throttle, "ProvisionedThroughputExceededException"), (internal_error, "InternalServerError")],
    ids=["throttle", "internal_error"],
)
def test_a_made_up_error_has_the_code_of_dynamodb(client: Any, items: str, wire: Wire, fault: Any, code: str) -> None:
    """The SDK reads a made-up answer as DynamoDB's own error, and nothing is written."""
    wire.break_nth("PutItem", 1, fault)
    with pytest.raises(ClientError) as caught:
        put(client, items, "a")
    assert caught.value.response["Error"]["Code"] == code
    assert not exists(client, items, "a")


def test_a_held_request_waits_for_the_event(client: Any, items: str, wire: Wire) -> None:
    """`hold` keeps a request from the server until the test lets it go."""
    go = threading.Event()
    wire.break_nth("PutItem", 1, hold(go))
    writer = threading.Thread(target=put, args=(client, items, "a"))
    writer.start()
    wait_for(wire.operations, 10, "the request never came over the wire")
    assert not exists(client, items, "a")
    go.set()
    writer.join(10)
    assert exists(client, items, "a")


def test_the_date_of_an_answer_moves(client: Any, items: str, wire: Wire) -> None:
    """`shift_date` makes the server's clock wrong by the offset."""
    wire.break_all(shift_date(-3600))
    headers = put(client, items, "a")["ResponseMetadata"]["HTTPHeaders"]
    behind = time.time() - parsedate_to_datetime(headers["date"]).timestamp()
    assert 3590 < behind < 3620
