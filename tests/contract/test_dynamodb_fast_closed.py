"""When boto3 sends the next request: after whatever casts doubt on the template, and always where none can be had."""

import logging
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any
from unittest import mock

import boto3
import pytest
from botocore import UNSIGNED
from botocore.config import Config
from botocore.handlers import add_retry_headers

from idempotent_tasks import StoreError
from idempotent_tasks.core.clock import SystemClock
from idempotent_tasks.stores.dynamodb.client import Connection
from tests.conftest import REGION
from tests.contract.conftest import MovableClock
from tests.support.canned import JSON, Asked, Canned, Said, page, the_key_asked
from tests.support.fast_path import ask, client_requests, sign_at
from tests.testbed.forking import Child

HTML = ("Content-Type", "text/html")
ID = ("x-amzn-RequestId", "made-up")
#: AWS refuses a signature that is older or younger.
SIGNATURE_SECONDS = 300

#: Answers that are not DynamoDB's own, or of which botocore might make another request.
FOREIGN: dict[str, Said] = {
    "page": Said(page(b"<html>503</html>", HTML, status=503)),
    "page-with-200": Said(page(b"<html>welcome</html>", HTML)),
    "no-request-id": Said(page(b"{}", ("Content-Type", "Application/X-Amz-Json-1.0"))),
    "gateways-json": Said(page(b'{"message": "Forbidden"}', ("Content-Type", "application/json"), ID, status=403)),
    "cached": Said(page(b"{}", JSON, ("Age", "12"))),
    "through-a-proxy": Said(page(b"{}", JSON, ("Via", "1.1 squid"))),
    "redirect": Said(page(b"", JSON, ("Location", "http://127.0.0.1:9/"), status=307)),
    "nothing": Said(b"", ends=True),
    "garbage": Said(b"no HTTP at all\r\n\r\n", ends=True),
}
each_foreign = pytest.mark.parametrize("answer", FOREIGN.values(), ids=FOREIGN)


@pytest.fixture
def connection(canned: Canned, session: boto3.Session) -> Connection:
    """A connection whose fast path is open."""
    connection = Connection(endpoint_url=canned.endpoint, session=session, fast=True)
    ask(connection)
    return connection


class TestDoubt:
    """One answer, and the request after it."""

    @each_foreign
    def test_after_any_that_is_not_dynamodbs(self, connection: Connection, canned: Canned, answer: Said) -> None:
        """Boto3 sends the next one; the one after that follows a new template."""
        sent = client_requests(connection)
        usual = canned.answer
        canned.answer = lambda _: answer
        with suppress(StoreError):
            ask(connection)
        assert not sent
        canned.answer = usual
        ask(connection)
        assert sent == ["GetItem"]
        ask(connection)
        assert sent == ["GetItem"]

    @each_foreign
    def test_as_long_as_there_are_such(self, connection: Connection, canned: Canned, answer: Said) -> None:
        """However many: none of them is a template, and none of them ends the search for one."""
        sent = client_requests(connection)
        usual = canned.answer
        canned.answer = lambda _: answer
        for _ in range(6):
            with suppress(StoreError):
                ask(connection)
        assert sent == ["GetItem"] * 5
        canned.answer = usual
        ask(connection)
        ask(connection)
        assert sent == ["GetItem"] * 6

    def test_one_for_each_kind_of_request(self, connection: Connection, canned: Canned) -> None:
        """No template of before is left."""
        delete = partial(connection.request, "delete_item", TableName="table", Key={"id": {"S": "key"}})
        delete()
        sent = client_requests(connection)
        usual = canned.answer
        canned.answer = lambda _: FOREIGN["page"]
        with suppress(StoreError):
            ask(connection)
        canned.answer = usual
        for _ in range(2):
            delete()
            ask(connection)
        assert sent == ["DeleteItem", "GetItem"]

    @pytest.mark.parametrize(
        "code",
        ["ConditionalCheckFailedException", "ProvisionedThroughputExceededException", "ResourceNotFoundException"],
    )
    def test_an_error_of_dynamodbs_is_no_doubt(self, connection: Connection, canned: Canned, code: str) -> None:
        """It answered."""
        sent = client_requests(connection)
        canned.say(f'{{"__type": "{code}"}}'.encode(), status=400)
        for _ in range(3):
            with suppress(StoreError):
                ask(connection)
        assert not sent


class TestHeaders:
    """What may stand in a template."""

    @pytest.mark.parametrize(
        "name",
        ["traceparent", "baggage", "X-Gateway-Token", "Expect", "Cookie", "Host", "Accept-Encoding", "x-amz-new"],
    )
    def test_any_other_closes_the_path(self, canned: Canned, session: boto3.Session, name: str) -> None:
        """One that a later botocore adds by itself, too: it may be of one request only."""

        def add(request: Any, **more: Any) -> None:
            add_retry_headers(request, **more)
            request.headers[name] = "127.0.0.1" if name == "Host" else "one"

        connection = Connection(endpoint_url=canned.endpoint, session=session, fast=True)
        sent = client_requests(connection)
        with mock.patch("idempotent_tasks.stores.dynamodb.fast.hooks.Hooks.found", return_value=None):
            connection.client_of_this_process().meta.events.register("request-created.dynamodb", add)
            for _ in range(3):
                ask(connection)
        assert sent == ["GetItem"] * 3

    @pytest.mark.parametrize("value", ["attempt=2; max=3", "ttl=20261129T150000Z; attempt=1"])
    def test_a_later_try(self, canned: Canned, session: boto3.Session, value: str) -> None:
        """Its header is not that of a first one."""

        def change(request: Any, **_: Any) -> None:
            request.headers.replace_header("amz-sdk-request", value)

        connection = Connection(endpoint_url=canned.endpoint, session=session, fast=True)
        sent = client_requests(connection)
        with mock.patch("idempotent_tasks.stores.dynamodb.fast.hooks.Hooks.found", return_value=None):
            connection.client_of_this_process().meta.events.register_last("request-created", change)
            for _ in range(3):
                ask(connection)
        assert sent == ["GetItem"] * 3

    def test_each_request_has_an_invocation_of_its_own(self, connection: Connection, canned: Canned) -> None:
        """As boto3's have."""
        for _ in range(3):
            ask(connection)
        ids = [asked.headers["amz-sdk-invocation-id"] for asked in canned.requests]
        assert len(set(ids)) == len(ids) == 4
        assert len({asked.headers["amz-sdk-request"] for asked in canned.requests}) == 1

    def test_in_lambda(self, canned: Canned, session: boto3.Session, monkeypatch: pytest.MonkeyPatch) -> None:
        """Boto3 adds the trace of the invocation there, also if there was none when the first request was sent."""
        monkeypatch.setenv("AWS_LAMBDA_FUNCTION_NAME", "publisher")
        connection = Connection(endpoint_url=canned.endpoint, session=session, fast=True)
        for number in range(3):
            ask(connection)
            monkeypatch.setenv("_X_AMZN_TRACE_ID", f"Root={number}")
        assert [asked.headers["x-amzn-trace-id"] for asked in canned.requests] == [None, "Root=0", "Root=1"]


class TestAnnounced:
    """Each process says once which way its requests take, and why."""

    @pytest.fixture(autouse=True)
    def listen(self, caplog: pytest.LogCaptureFixture) -> None:
        """Hear what is said at level INFO."""
        caplog.set_level(logging.INFO, logger="idempotent_tasks")

    def test_the_fast_path(self, canned: Canned, session: boto3.Session, caplog: pytest.LogCaptureFixture) -> None:
        """After the first request, which showed that it is open."""
        connection = Connection(endpoint_url=canned.endpoint, session=session, fast=True)
        for key in range(5):
            ask(connection, f"{key}")
        connection.request("delete_item", TableName="table", Key={"id": {"S": "key"}})
        (message,) = caplog.messages
        assert "fast path" in message
        assert canned.endpoint in message
        assert caplog.records[0].levelno == logging.INFO

    @pytest.mark.parametrize(
        ("given", "why"),
        [
            ({"fast": False}, "fast=False"),
            ({"config": Config(endpoint_discovery_enabled=True)}, "discovered"),
            ({"config": Config(client_cert="client.pem")}, "certificate"),
            ({"config": Config(signature_version=UNSIGNED)}, "no credentials"),
        ],
        ids=["off", "discovery", "certificate", "unsigned"],
    )
    def test_why_it_is_closed(
        self,
        canned: Canned,
        session: boto3.Session,
        caplog: pytest.LogCaptureFixture,
        given: dict[str, Any],
        why: str,
    ) -> None:
        """Nothing is said again with the requests that follow."""
        connection = Connection(endpoint_url=canned.endpoint, session=session, **given)
        for _ in range(5):
            with suppress(StoreError):
                ask(connection)
        (message,) = caplog.messages
        assert "closed" in message
        assert why in message

    def test_a_ready_made_client(
        self, canned: Canned, session: boto3.Session, caplog: pytest.LogCaptureFixture
    ) -> None:
        """Its owner may have wrapped it."""
        connection = Connection(client=session.client("dynamodb", endpoint_url=canned.endpoint))
        ask(connection)
        ask(connection)
        (message,) = caplog.messages
        assert "client=" in message

    def test_a_handler(self, canned: Canned, caplog: pytest.LogCaptureFixture) -> None:
        """It is named."""
        own = boto3.Session(region_name=REGION)

        def trace(**_: Any) -> None:
            """Do nothing."""

        own.events.register("before-call", trace)
        connection = Connection(endpoint_url=canned.endpoint, session=own, fast=True)
        ask(connection)
        ask(connection)
        (message,) = caplog.messages
        assert "trace handles the event before-call" in message

    def test_a_gateway(self, canned: Canned, session: boto3.Session, caplog: pytest.LogCaptureFixture) -> None:
        """Its answers lack what DynamoDB's have."""
        canned.answer = lambda _: FOREIGN["no-request-id"]
        connection = Connection(endpoint_url=canned.endpoint, session=session, fast=True)
        for _ in range(2):
            with suppress(StoreError):
                ask(connection)
        (message,) = caplog.messages
        assert "x-amzn-requestid" in message

    def test_no_password_of_an_endpoint(self, canned: Canned, caplog: pytest.LogCaptureFixture) -> None:
        """What stands before its ``@`` is not shown."""
        place = canned.endpoint.removeprefix("http://")
        connection = Connection(endpoint_url=f"http://user:hidden@{place}", region=REGION, fast=True)
        with suppress(StoreError):
            ask(connection)
        assert "hidden" not in caplog.text


class TestRefusedTime:
    """A machine whose clock is off by more than a signature may be old, and a service that refuses it, as AWS does."""

    @pytest.fixture(params=[3600, -3600], ids=["ahead", "behind"])
    def clock(self, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> MovableClock:
        """The machine's clock, boto3's too."""
        clock = MovableClock()
        clock.advance(request.param)
        sign_at(monkeypatch, lambda: datetime.fromtimestamp(clock.now(), UTC))
        return clock

    @pytest.fixture(params=["InvalidSignatureException", "RequestExpired", "RequestTimeTooSkewed"])
    def strict(self, request: pytest.FixtureRequest, canned: Canned) -> Callable[[Asked], bool]:
        """Whether the server takes a request's time; it refuses the others."""

        def is_taken(asked: Asked) -> bool:
            signed_at = datetime.strptime(asked.headers["x-amz-date"], "%Y%m%dT%H%M%S%z")
            return abs((signed_at - datetime.now(UTC)).total_seconds()) < SIGNATURE_SECONDS

        def answer(asked: Asked) -> Said:
            date = ("Date", datetime.now(UTC).strftime("%a, %d %b %Y %H:%M:%S GMT"))
            if is_taken(asked):
                return Said(page(the_key_asked(asked), JSON, date))
            refusal = f'{{"__type": "{request.param}", "message": "Signature expired: it is now earlier"}}'
            return Said(page(refusal.encode(), JSON, date, status=400))

        canned.answer = answer
        return is_taken

    def test_one_request_is_refused(
        self, canned: Canned, session: boto3.Session, clock: MovableClock, strict: Callable[[Asked], bool]
    ) -> None:
        """None of those that follow, whoever sends them: of another kind, after a doubt, in a forked child."""
        connection = Connection(endpoint_url=canned.endpoint, session=session, fast=True, clock=clock)
        with pytest.raises(StoreError):
            ask(connection)
        ask(connection)
        ask(connection)
        connection.request("delete_item", TableName="table", Key={"id": {"S": "key"}})
        usual, canned.answer = canned.answer, lambda _: FOREIGN["page"]
        with pytest.raises(StoreError):
            ask(connection)
        canned.answer = usual
        ask(connection)
        ask(connection)
        assert Child(lambda: ask(connection) and None).result() is None
        assert [strict(asked) for asked in canned.requests] == [False] + [True] * 7

    def test_what_was_taken_for_dynamodbs_time(
        self, canned: Canned, session: boto3.Session, strict: Callable[[Asked], bool]
    ) -> None:
        """A gateway that dates DynamoDB's answers wrongly: the path does not go on with what DynamoDB refuses."""
        right = canned.answer
        wrong = ("Date", (datetime.now(UTC) + timedelta(hours=1)).strftime("%a, %d %b %Y %H:%M:%S GMT"))
        connection = Connection(endpoint_url=canned.endpoint, session=session, fast=True, clock=SystemClock())
        canned.answer = lambda asked: Said(page(the_key_asked(asked), JSON, wrong))
        for _ in range(3):
            ask(connection)
        canned.answer = right
        with pytest.raises(StoreError):
            ask(connection)
        for _ in range(3):
            ask(connection)
        assert [strict(asked) for asked in canned.requests[-4:]] == [False, True, True, True]
