"""The wire itself: a counter or a fault that lies would make every test above it worthless."""

import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from email.utils import parsedate_to_datetime
from typing import Any

import boto3
import pytest
from botocore.config import Config
from botocore.exceptions import ClientError, ConnectionClosedError, EndpointConnectionError, HTTPClientError

from tests.conftest import REGION
from tests.testbed.waiting import wait_for
from tests.testbed.wire import (
    CLEAR,
    FAULT_RATES,
    Fault,
    Request,
    Weather,
    Wire,
    cut,
    delay,
    delay_answer,
    hold,
    hold_answer,
    internal_error,
    lose_answer,
    refuse,
    shift_date,
    throttle,
)

on_ministack = pytest.mark.parametrize("dynamodb_endpoint", ["ministack"], indirect=True)


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
    """`refuse` breaks the connection before the write, until the wire is healed."""
    wire.break_all(refuse)
    with pytest.raises(ConnectionClosedError):
        put(client, items, "a")
    wire.heal()
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


def test_a_decider_sees_the_whole_request(client: Any, items: str, wire: Wire) -> None:
    """`Wire.decide_by` chooses by headers and body; what it lets pass is the next one's to decide."""
    headers: list[str] = []

    def decide(request: Request) -> Fault | None:
        headers.append(request.headers["authorization"])
        return throttle if request.body.get("Item") == {"id": {"S": "a"}} else None

    wire.decide_by(decide)
    wire.break_all(internal_error)
    for name, code in (("a", "ProvisionedThroughput"), ("b", "InternalServerError")):
        with pytest.raises(ClientError, match=code):
            put(client, items, name)
    wire.heal()
    put(client, items, "a")
    assert ["Credential=" in header for header in headers] == [True, True]


def test_the_date_of_an_answer_moves(client: Any, items: str, wire: Wire) -> None:
    """`shift_date` makes the server's clock wrong by the offset."""
    wire.break_all(shift_date(-3600))
    headers = put(client, items, "a")["ResponseMetadata"]["HTTPHeaders"]
    behind = time.time() - parsedate_to_datetime(headers["date"]).timestamp()
    assert 3590 < behind < 3620


def test_a_cut_answer_is_applied(client: Any, items: str, wire: Wire) -> None:
    """`cut` resets the connection in the middle of the answer, after the write."""
    wire.break_nth("PutItem", 1, cut)
    with pytest.raises(ConnectionClosedError) as caught:
        put(client, items, "a")
    # urllib3's words for a body that broke off; before the headers they are "Connection aborted".
    assert "Connection broken: ConnectionResetError" in str(caught.value.kwargs["error"])
    assert exists(client, items, "a")


def test_a_delayed_request_is_applied_later(client: Any, items: str, wire: Wire) -> None:
    """`delay` passes the request on after its seconds, `delay_answer` at once, and both answer."""
    for fault in (delay(0.3), delay_answer(0.3)):
        wire.clear()
        wire.break_nth("PutItem", 1, fault)
        begun = time.monotonic()
        put(client, items, "a")
        assert time.monotonic() - begun >= 0.3


def test_a_held_answer_is_applied_meanwhile(client: Any, items: str, wire: Wire) -> None:
    """`hold_answer` lets the write through and keeps its answer until the test lets it go."""
    go = threading.Event()
    wire.break_nth("PutItem", 1, hold_answer(go))
    writer = threading.Thread(target=put, args=(client, items, "a"))
    writer.start()
    wait_for(lambda: exists(client, items, "a"), 10, "the write never happened")
    assert writer.is_alive()
    go.set()
    writer.join(10)
    assert not writer.is_alive()


def test_an_outage_ends_and_leaves_the_other_faults(client: Any, items: str, wire: Wire) -> None:
    """During `Wire.outage` every request is refused and counted; afterwards the faults from before go on."""
    wire.break_nth("PutItem", 2, throttle)
    with wire.outage(), pytest.raises(ConnectionClosedError):
        put(client, items, "a")
    assert not exists(client, items, "a")
    with pytest.raises(ClientError, match="ProvisionedThroughput"):
        put(client, items, "a")
    put(client, items, "a")
    assert wire.operations() == ["PutItem", "GetItem", "PutItem", "PutItem"]


def test_an_unplugged_wire_refuses_connections(client: Any, items: str, wire: Wire) -> None:
    """While nobody listens an open connection is dead and a new one is refused; then the same endpoint works again."""
    endpoint = wire.endpoint
    put(client, items, "a")
    with wire.unplugged():
        for _ in range(2):
            with pytest.raises((EndpointConnectionError, ConnectionClosedError)):
                put(client, items, "b")
        with pytest.raises(EndpointConnectionError):
            put(client, items, "b")
    assert wire.endpoint == endpoint
    assert not exists(client, items, "b")
    assert wire.operations() == ["PutItem", "GetItem"]


def test_weather_repeats_by_its_seed() -> None:
    """The same seed decides the same, about each kind at its rate; what was decided is counted."""
    first, again, other = Weather(1), Weather(1), Weather(2)
    kinds = [first.choose()[0] for _ in range(2000)]
    assert kinds == [again.choose()[0] for _ in range(2000)]
    assert kinds != [other.choose()[0] for _ in range(2000)]
    assert first.counts == Counter(kinds)
    assert first.counts.total() == 2000
    for kind, rate in FAULT_RATES.items():
        assert 0.5 * rate < first.counts[kind] / 2000 < 1.5 * rate, kind


def test_weather_has_further_faults() -> None:
    """Kinds that it does not know come with their fault, and have a rate like any other."""
    weather = Weather(1, {**FAULT_RATES, "page": 0.5}, more={"page": throttle})
    chosen = [fault for kind, fault in (weather.choose() for _ in range(100)) if kind == "page"]
    assert 30 < len(chosen) == weather.counts["page"] < 70
    assert set(chosen) == {throttle}
    with pytest.raises(AssertionError, match="page"):
        Weather(1, {"page": 0.5})


@on_ministack
def test_weather_on_the_wire(client: Any, items: str, wire: Wire) -> None:
    """Each request meets what was chosen for it, from many threads at once."""
    weather = Weather(3, dict.fromkeys(FAULT_RATES, 0.1), delay_seconds=0.05)
    wire.break_all(weather)
    errors: Counter[str] = Counter()

    def write(name: int) -> None:
        try:
            put(client, items, str(name))
        except ClientError:
            errors["made up"] += 1
        except HTTPClientError:
            errors["broken"] += 1

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(write, range(100)))
    wire.heal()
    assert weather.counts.total() == 100
    assert errors["made up"] == weather.counts["throttle"] + weather.counts["internal_error"]
    assert errors.total() == 100 - weather.counts[CLEAR] - weather.counts["delay"], weather.counts
    unseen = sum(weather.counts[kind] for kind in ("refuse", "throttle", "internal_error"))
    assert sum(exists(client, items, str(name)) for name in range(100)) == 100 - unseen
