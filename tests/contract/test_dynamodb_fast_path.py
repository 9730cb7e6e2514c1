"""The fast path to DynamoDB: what boto3's client sends, what goes past it, and that both are the same requests."""

import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import boto3
import pytest
from botocore.config import Config

from idempotent_tasks import DynamoDBStore, Record, Status, StoreMisconfiguredError
from idempotent_tasks.core.records import Claim, Outcome
from idempotent_tasks.stores.dynamodb.client import Connection, Succeeded
from idempotent_tasks.stores.dynamodb.fast.client import MAX_REJECTED_TEMPLATES, FastClient
from tests.conftest import REGION
from tests.contract.conftest import MakeStore, MovableClock
from tests.support.fast_path import answered, ask, client_requests, sign_at
from tests.support.guarding import KEY, done, grant, request_by
from tests.testbed.wire import Request, Wire

HOUR_SECONDS = 3600
#: What two requests never share, by name in lower case.
OWN_HEADERS = {"authorization", "x-amz-date", "amz-sdk-invocation-id", "amz-sdk-request"}

OTHER = Record(key="shop.charge#other", status=Status.COMPLETED, expiration=4_000_000_000, owner="o", data='"é"')
BYTES = Outcome(status=Status.COMPLETED, codec="pickle", data=b"\x80\x05\x00\xff")

#: Every call that sends something, on a claim that is held.
CALLS: dict[str, Callable[[DynamoDBStore, Claim], object]] = {
    "claim": lambda store, _: store.claim(request_by("two", key="shop.charge#two")),
    "commit": lambda store, claim: store.commit(claim, done('"déjà vu"'), HOUR_SECONDS),
    "commit-bytes": lambda store, claim: store.commit(claim, BYTES, HOUR_SECONDS),
    "release": lambda store, claim: store.release(claim, "Retry"),
    "renew": lambda store, claim: store.renew(claim, 60, HOUR_SECONDS),
    "restore": lambda store, _: store.restore(OTHER),
    "get": lambda store, _: store.get(KEY),
    "forget": lambda store, _: store.forget(KEY),
    "note-deferral": lambda store, _: store.note_deferral(KEY, "one", "token", 2**42, ["past"]),
    "note-dispatch": lambda store, _: store.note_dispatch(KEY, "id-one"),
}


@pytest.fixture
def dynamodb_endpoint(roto: str) -> str:
    """The endpoint URL of one DynamoDB: what is sent does not depend on who answers."""
    return roto


@pytest.fixture
def store(dynamodb: DynamoDBStore, make_store: MakeStore, fast: bool) -> DynamoDBStore:
    """A store over a table that exists; it has sent nothing yet."""
    return make_store(fast=fast)


class TestWhoSends:
    """What the client sends, and what goes past it."""

    def test_the_first_request_shows_the_way(self, store: DynamoDBStore, wire: Wire, fast: bool) -> None:
        """The client sends one request of each operation; those that follow go past it."""
        sent = client_requests(store.connection)
        grant(store)
        store.get(KEY)
        store.forget(KEY)
        grant(store)
        store.forget(KEY)
        assert wire.operations() == ["GetItem", "UpdateItem", "GetItem", "DeleteItem", "UpdateItem", "DeleteItem"]
        assert sent == (["GetItem", "UpdateItem", "DeleteItem"] if fast else wire.operations())

    def test_each_table_has_a_first_request(self, store: DynamoDBStore, wire: Wire) -> None:
        """A table's account may be another one, and with it the endpoint."""
        sent = client_requests(store.connection)
        store.connection.request("get_item", TableName=store.table, Key={"id": {"S": "one"}})
        for _ in range(2):
            with suppress(StoreMisconfiguredError):
                store.connection.request("get_item", TableName="another", Key={"id": {"S": "one"}})
        assert sent == ["GetItem"] * (2 if store.connection._fast_client else 3)

    def test_what_answers_otherwise_than_in_items_the_client_sends(self, store: DynamoDBStore, wire: Wire) -> None:
        """A table's description has times in it, which botocore reads as such."""
        sent = client_requests(store.connection)
        for _ in range(3):
            answer = store.connection.request("describe_table", TableName=store.table)
            assert isinstance(answer, Succeeded)
            assert isinstance(answer.answer["Table"]["CreationDateTime"], datetime)
        assert sent == ["DescribeTable"] * 3

    @pytest.mark.parametrize("value", ["true", "false"])
    def test_a_url_may_choose(self, dynamodb: DynamoDBStore, wire: Wire, value: str) -> None:
        """The parameter ``fast`` of a store's URL is the constructor's."""
        store = DynamoDBStore.from_url(
            f"dynamodb://{REGION}/{dynamodb.table}?endpoint_url={wire.endpoint}&fast={value}"
        )
        sent = client_requests(store.connection)
        grant(store)
        store.forget(KEY)
        grant(store)
        assert sent == ["GetItem", "UpdateItem", "DeleteItem", *([] if value == "true" else ["UpdateItem"])]

    def test_a_ready_made_client_sends_all(self, dynamodb: DynamoDBStore, session: boto3.Session, wire: Wire) -> None:
        """What its owner wrapped around it sees every request."""
        client = session.client("dynamodb", endpoint_url=wire.endpoint)
        store = DynamoDBStore(dynamodb.table, client=client, fast=True)
        sent = client_requests(store.connection)
        grant(store)
        store.get(KEY)
        assert sent == wire.operations() == ["GetItem", "UpdateItem", "GetItem"]

    @pytest.mark.parametrize(
        "config",
        [Config(client_cert="client.pem"), Config(endpoint_discovery_enabled=True)],
        ids=["client-certificate", "endpoint-discovery"],
    )
    def test_what_the_road_cannot_do_the_client_does(
        self, dynamodb: DynamoDBStore, make_store: MakeStore, wire: Wire, config: Config
    ) -> None:
        """With a client's own certificate, or where AWS says which endpoint to ask, the fast path stays closed."""
        store = make_store(fast=True, config=config)
        sent = client_requests(store.connection)
        grant(store)
        store.get(KEY)
        assert sent == wire.operations() == ["GetItem", "UpdateItem", "GetItem"]

    def test_it_is_not_tried_indefinitely(
        self, dynamodb: DynamoDBStore, make_store: MakeStore, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Where the client's requests are no template, a few of them show it."""
        looked_at: list[object] = []

        def look(_client: FastClient, name: str, _parameters: object, _sent: object) -> None:
            looked_at.append(name)
            raise ValueError("no template")

        monkeypatch.setattr(FastClient, "_template", look)
        store = make_store(fast=True)
        for number in range(MAX_REJECTED_TEMPLATES + 1):
            grant(store, key=f"shop.charge#{number}")
        assert len(looked_at) == MAX_REJECTED_TEMPLATES

    def test_discovery_that_the_environment_asks_for(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """The client asks AWS which endpoint to use, and again when that answer is old: the fast path stays closed."""
        monkeypatch.setenv("AWS_ENDPOINT_DISCOVERY_ENABLED", "true")
        session = boto3.Session(region_name=REGION)
        found = b'{"Endpoints": [{"Address": "found.example", "CachePeriodInMinutes": 1}]}'
        hosts = answered(session, {"DescribeEndpoints": found})
        connection = Connection(session=session, region=REGION, fast=True)
        sent = client_requests(connection)
        for _ in range(3):
            ask(connection)
        assert sent.count("GetItem") == 3
        assert hosts[-1] == "https://found.example"


class TestSameRequest:
    """A request of the fast path's beside what boto3 sends for the same call."""

    @pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
    def test_each_call(
        self,
        dynamodb: DynamoDBStore,
        make_store: MakeStore,
        wire: Wire,
        monkeypatch: pytest.MonkeyPatch,
        call: Callable[[DynamoDBStore, Claim], object],
    ) -> None:
        """Body and headers are equal, but for what no two requests share."""
        calls: list[tuple[str, Mapping[str, Any]]] = []
        send = FastClient.send

        def noted(client: FastClient, operation: str, parameters: Mapping[str, Any]) -> dict[str, Any]:
            calls.append((operation, parameters))
            return send(client, operation, parameters)

        store = make_store(fast=True)
        claim = grant(store)
        store.restore(replace(OTHER, key="shop.charge#first"))
        store.forget("shop.charge#first")
        wire.clear()
        sent = client_requests(store.connection)
        monkeypatch.setattr(FastClient, "send", noted)
        call(store, claim)
        assert not sent
        assert len(wire.requests) == len(calls) == 1
        ((operation, parameters),) = calls
        client = store.connection.client_of_this_process()
        # Of two equal writes the second is refused.
        with suppress(client.exceptions.ConditionalCheckFailedException):
            getattr(client, operation)(**parameters)
        ours, botos = wire.requests
        assert list(ours.headers) == list(botos.headers)
        assert ours.operation == botos.operation
        assert ours.body == botos.body
        assert _shared_headers(ours) == _shared_headers(botos)

    def test_each_request_is_signed_of_its_own(self, store: DynamoDBStore, wire: Wire) -> None:
        """No signature is sent twice, and each names its own day and the region."""
        for number in range(3):
            grant(store, key=f"shop.charge#{number}")
        signatures = [request.headers["authorization"] for request in wire.requests]
        assert len(set(signatures)) == len(signatures) == 4
        assert all(
            f"{request.headers['x-amz-date'][:8]}/{REGION}/dynamodb/" in signature
            for request, signature in zip(wire.requests, signatures, strict=True)
        )


def _shared_headers(request: Request) -> dict[str, str]:
    return {name: value for name, value in request.headers.items() if name not in OWN_HEADERS}


@pytest.mark.usefixtures("dynamodb")
@pytest.mark.parametrize("skew_seconds", [HOUR_SECONDS, -HOUR_SECONDS], ids=["ahead", "behind"])
def test_a_machine_whose_clock_is_off(
    make_store: MakeStore,
    wire: Wire,
    fast: bool,
    skew_seconds: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """boto3 signs with the machine's time, which AWS refuses; the fast path with DynamoDB's as it was answered."""
    clock = MovableClock()
    clock.offset_seconds = skew_seconds
    offset = timedelta(seconds=skew_seconds)
    sign_at(monkeypatch, lambda: datetime.now(UTC) + offset)
    store = make_store(fast=fast, clock=clock)
    grant(store)
    store.get(KEY)
    first, *_, last = (_signed_at(request) - time.time() for request in wire.requests)
    assert first == pytest.approx(skew_seconds, abs=5)
    assert last == pytest.approx(0 if fast else skew_seconds, abs=5)


def _signed_at(request: Request) -> float:
    return datetime.strptime(request.headers["x-amz-date"], "%Y%m%dT%H%M%S%z").timestamp()


def test_a_trace_of_one_invocation(store: DynamoDBStore, wire: Wire, monkeypatch: pytest.MonkeyPatch) -> None:
    """In AWS Lambda boto3 names the invocation that asks: no later request names that of the first."""
    monkeypatch.setenv("AWS_LAMBDA_FUNCTION_NAME", "worker")
    monkeypatch.setenv("_X_AMZN_TRACE_ID", "Root=1")
    grant(store)
    store.forget(KEY)
    monkeypatch.setenv("_X_AMZN_TRACE_ID", "Root=2")
    store.forget(KEY)
    assert wire.requests[0].headers["x-amzn-trace-id"] == "Root=1"
    assert wire.requests[-1].headers.get("x-amzn-trace-id") == "Root=2"


class TestProxy:
    """Networks whose only way out is a proxy; the host asked for exists nowhere else."""

    ENDPOINT = "http://dynamodb.invalid:8000"

    def test_one_in_the_config(self, dynamodb: DynamoDBStore, make_store: MakeStore, wire: Wire, fast: bool) -> None:
        """Every request asks the proxy for the whole URL."""
        config = Config(proxies={"http": wire.endpoint})
        grant(make_store(fast=fast, endpoint_url=self.ENDPOINT, config=config))
        assert [request.target for request in wire.requests] == [f"{self.ENDPOINT}/"] * 2

    @pytest.mark.usefixtures("dynamodb")
    @pytest.mark.parametrize("name", ["HTTP_PROXY", "http_proxy"])
    def test_one_in_the_environment(
        self,
        make_store: MakeStore,
        wire: Wire,
        fast: bool,
        name: str,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        """The variables that other programs read hold here too."""
        monkeypatch.setenv(name, wire.endpoint)
        grant(make_store(fast=fast, endpoint_url=self.ENDPOINT))
        assert [request.target for request in wire.requests] == [f"{self.ENDPOINT}/"] * 2

    def test_one_that_is_not_for_this_host(
        self, store: DynamoDBStore, wire: Wire, fast: bool, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """What NO_PROXY names is asked without it, and the fast path is open."""
        monkeypatch.setenv("HTTP_PROXY", "http://proxy.invalid:3128")
        sent = client_requests(store.connection)
        grant(store)
        store.get(KEY)
        assert [request.target for request in wire.requests] == ["/"] * 3
        assert len(sent) == (2 if fast else 3)
