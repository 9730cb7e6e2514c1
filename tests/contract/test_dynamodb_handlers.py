"""Handlers of botocore's events, and wrappers of its methods: they see and change each request, with either client."""

import functools
import http.client
import itertools
from typing import Any
from unittest import mock

import boto3
import botocore.client
import botocore.endpoint
import botocore.httpsession
import pytest

from idempotent_tasks import DynamoDBStore
from idempotent_tasks.stores.dynamodb.client import Connection, Succeeded
from tests.conftest import REGION
from tests.contract.conftest import MakeStore
from tests.support.canned import Canned, canned_server
from tests.support.fast_path import answered, ask, client_requests
from tests.support.guarding import KEY, grant
from tests.testbed.wire import Wire


@pytest.fixture
def dynamodb_endpoint(roto: str) -> str:
    """The endpoint URL of one DynamoDB: what is sent does not depend on who answers."""
    return roto


def test_they_see_every_request(dynamodb: DynamoDBStore, make_store: MakeStore, fast: bool) -> None:
    """With either client, under the same names, as it goes out."""
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
        assert isinstance(answer, Succeeded)
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


#: By event: the names of the headers' holder among a handler's arguments.
HOLDERS = {"before-call": "params", "request-created": "request", "before-sign": "request", "before-send": "request"}
WRAPPED: list[tuple[type, str]] = [
    (botocore.client.BaseClient, "_make_api_call"),
    (botocore.endpoint.Endpoint, "make_request"),
    (botocore.httpsession.URLLib3Session, "send"),
    (http.client.HTTPConnection, "putrequest"),
]


class TestEachRequest:
    """What one request had is not what the next one has."""

    @pytest.mark.parametrize("event", HOLDERS)
    @pytest.mark.parametrize("late", [True, False], ids=["late", "early"])
    def test_a_header_of_its_own(self, canned: Canned, fast: bool, event: str, late: bool) -> None:
        """A trace's id, or the token of the hour, also of a handler that comes when the fast path is open."""
        session = boto3.Session(region_name=REGION)
        connection = Connection(endpoint_url=canned.endpoint, session=session, fast=fast)
        numbers = itertools.count()

        def trace(**given: Any) -> None:
            holder = given[HOLDERS[event]]
            headers = holder["headers"] if isinstance(holder, dict) else holder.headers
            headers["traceparent"] = f"trace-{next(numbers)}"

        if late:
            for _ in range(3):
                ask(connection)
            canned.requests.clear()
        emitter = connection.client_of_this_process().meta.events if late else session.events
        emitter.register(f"{event}.dynamodb", trace)
        for _ in range(4):
            ask(connection)
        assert [asked.headers["traceparent"] for asked in canned.requests] == [f"trace-{n}" for n in range(4)]

    @pytest.mark.parametrize("late", [True, False], ids=["late", "early"])
    def test_another_place(self, canned: Canned, fast: bool, late: bool) -> None:
        """Another region, or a test's recorder."""
        session = boto3.Session(region_name=REGION)
        connection = Connection(endpoint_url=canned.endpoint, session=session, fast=fast)

        with canned_server() as there:

            def move(request: Any, **_: Any) -> None:
                request.url = f"{there.endpoint}/"

            if late:
                for _ in range(3):
                    ask(connection)
                canned.requests.clear()
            emitter = connection.client_of_this_process().meta.events if late else session.events
            emitter.register("before-send.dynamodb", move)
            for _ in range(4):
                ask(connection)
            assert len(there.requests) == 4
        assert not canned.requests

    def test_another_body(self, canned: Canned, fast: bool) -> None:
        """A tenant's prefix before each key, for example."""
        session = boto3.Session(region_name=REGION)

        def prefix(params: Any, **_: Any) -> None:
            params["Key"] = {"id": {"S": f"tenant#{params['Key']['id']['S']}"}}

        session.events.register("provide-client-params.dynamodb.GetItem", prefix)
        connection = Connection(endpoint_url=canned.endpoint, session=session, fast=fast)
        for number in range(3):
            ask(connection, f"{number}")
        assert [asked.parameters["Key"]["id"]["S"] for asked in canned.requests] == [f"tenant#{n}" for n in range(3)]

    @pytest.mark.parametrize(("cls", "name"), WRAPPED, ids=[f"{cls.__name__}.{name}" for cls, name in WRAPPED])
    def test_a_wrapper_sees_it(self, canned: Canned, fast: bool, cls: type, name: str) -> None:
        """One that comes when the fast path is open, for as long as it is there."""
        connection = Connection(endpoint_url=canned.endpoint, region=REGION, fast=fast)
        for _ in range(3):
            ask(connection)
        seen = []
        original = getattr(cls, name)

        @functools.wraps(original)
        def traced(*args: Any, **kwargs: Any) -> Any:
            seen.append(name)
            return original(*args, **kwargs)

        with mock.patch.object(cls, name, traced):
            for _ in range(4):
                ask(connection)
            assert len(seen) == 4
        ask(connection)
        sent = client_requests(connection)
        ask(connection)
        assert len(sent) == (0 if fast else 1)

    def test_it_is_open_again_when_they_are_gone(self, dynamodb: DynamoDBStore, make_store: MakeStore) -> None:
        """After one more request of boto3's, which is the new template."""
        store = make_store(fast=True)
        grant(store)
        events = store.connection.client_of_this_process().meta.events
        sent = client_requests(store.connection)

        def see(**_: Any) -> None:
            """Do nothing."""

        for _ in range(2):
            events.register("before-sign", see)
            store.get(KEY)
            events.unregister("before-sign", see)
            store.get(KEY)
            sent.clear()
            store.get(KEY)
            assert not sent
