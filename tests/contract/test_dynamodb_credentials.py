"""Credentials with either client: those that change while a worker runs or fail, and that none is ever shown."""

import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from errno import ENOENT
from typing import Any

import boto3
import botocore.session
import pytest
from billiard.exceptions import SoftTimeLimitExceeded
from botocore.credentials import Credentials, RefreshableCredentials
from botocore.exceptions import CredentialRetrievalError, EndpointConnectionError

from idempotent_tasks import StoreUnavailableError
from idempotent_tasks.errors import StoreError
from idempotent_tasks.stores.dynamodb.client import Connection
from tests.conftest import REGION
from tests.support.credential_services import direct
from tests.support.fast_path import ask, client_requests
from tests.testbed.wire import Request, Wire, answer, refuse

SECRET = "wJalrXUtnFEMI/K7MDENG"
TOKEN = "IQoJb3JpZ2luX2VjEHoaCX"


@pytest.fixture
def dynamodb_endpoint(roto: str) -> str:
    """The endpoint URL of one DynamoDB: what is sent does not depend on who answers."""
    return roto


@dataclass
class Rotation:
    """Temporary credentials whose every refresh brings the next ones."""

    #: What a refresh raises instead.
    failure: Exception | None = None
    refreshes: int = 0
    credentials: RefreshableCredentials = field(init=False)

    def __post_init__(self) -> None:
        self.credentials = RefreshableCredentials.create_from_metadata(self._next(), self._next, "made-up")

    def is_due(self) -> None:
        """Have the credentials expire now."""
        self.credentials._expiry_time = datetime.now(UTC) - timedelta(seconds=1)

    def _next(self) -> dict[str, str]:
        if self.failure is not None:
            raise self.failure
        self.refreshes += 1
        return {
            "access_key": f"ASIA{self.refreshes}",
            "secret_key": f"{SECRET}{self.refreshes}",
            "token": f"{TOKEN}{self.refreshes}",
            "expiry_time": (datetime.now(UTC) + timedelta(hours=1)).isoformat(),
        }


@pytest.fixture
def connect(wire: Wire, session: boto3.Session, fast: bool) -> Callable[[Any], Connection]:
    """Makes connections with given credentials; whatever they ask is refused, and that is an answer."""
    wire.break_all(answer(400, "ConditionalCheckFailedException"))

    def connected(credentials: Any) -> Connection:
        mine = botocore.session.Session()
        mine._credentials = credentials
        # What it knows of the service is read once.
        mine.register_component("data_loader", session._session.get_component("data_loader"))
        own = boto3.Session(botocore_session=mine, region_name=REGION)
        return Connection(endpoint_url=wire.endpoint, session=own, fast=fast)

    return connected


def access_key_of(request: Request) -> str:
    """Return the key that a request was signed with."""
    return request.headers["authorization"].partition("Credential=")[2].partition("/")[0]


def shown(error: BaseException) -> str:
    """Return all that a log shows of an error and its causes, except for the source lines."""
    return "".join(traceback.format_exception(error, limit=0))


def fails(connection: Connection) -> StoreError:
    """Send a request that must fail, check that nothing secret is told of it, and return its error."""
    with pytest.raises(StoreError) as caught:
        ask(connection)
    assert SECRET not in shown(caught.value)
    assert TOKEN not in shown(caught.value)
    return caught.value


class TestTemporary:
    """Credentials with a session token."""

    def test_the_token_goes_with_each_request(self, connect: Callable[[Any], Connection], wire: Wire) -> None:
        """And it is signed."""
        connection = connect(Credentials("ASIAKEY", SECRET, TOKEN))
        for _ in range(3):
            ask(connection)
        assert [request.headers.get("x-amz-security-token") for request in wire.requests] == [TOKEN] * 3
        assert all(";x-amz-security-token" in request.headers["authorization"] for request in wire.requests)

    def test_those_that_are_refreshed(self, connect: Callable[[Any], Connection], wire: Wire, fast: bool) -> None:
        """The first request with the new ones goes through the client, which may find another endpoint for them."""
        rotation = Rotation()
        connection = connect(rotation.credentials)
        sent = client_requests(connection)
        for _ in range(2):
            for _ in range(3):
                ask(connection)
            rotation.is_due()
        keys = [access_key_of(request) for request in wire.requests]
        tokens = [request.headers["x-amz-security-token"] for request in wire.requests]
        assert keys == ["ASIA1"] * 3 + ["ASIA2"] * 3
        assert tokens == [f"{TOKEN}1"] * 3 + [f"{TOKEN}2"] * 3
        assert len(sent) == (2 if fast else 6)

    def test_a_token_that_appears(self, connect: Callable[[Any], Connection], wire: Wire, fast: bool) -> None:
        """With the same access key: it is sent and signed from then on, and no more once it is gone."""
        credentials = Credentials("ASIAKEY", SECRET)
        connection = connect(credentials)
        sent = client_requests(connection)
        for token in (None, TOKEN, None):
            credentials.token = token
            ask(connection)
            ask(connection)
        assert [request.headers.get("x-amz-security-token") for request in wire.requests] == [
            None,
            None,
            TOKEN,
            TOKEN,
            None,
            None,
        ]
        assert all(
            ("x-amz-security-token" in request.headers) is (";x-amz-security-token" in request.headers["authorization"])
            for request in wire.requests
        )
        assert len(sent) == (3 if fast else 6)

    def test_a_token_and_a_secret_that_change(self, connect: Callable[[Any], Connection], wire: Wire) -> None:
        """With the same access key: the next request has them."""
        credentials = Credentials("ASIAKEY", SECRET, TOKEN)
        connection = connect(credentials)
        for number in range(3):
            credentials.token, credentials.secret_key = f"{TOKEN}{number}", f"{SECRET}{number}"
            ask(connection)
        assert [request.headers["x-amz-security-token"] for request in wire.requests] == [
            f"{TOKEN}{number}" for number in range(3)
        ]


class TestFailing:
    """Credentials that cannot be had."""

    @pytest.mark.parametrize(
        ("failure", "said"),
        [
            (CredentialRetrievalError(provider="made-up", error_msg="no role"), "the credentials from made-up"),
            (
                EndpointConnectionError(endpoint_url="http://169.254.169.254/latest"),
                "at 169.254.169.254 did not answer",
            ),
            (FileNotFoundError(ENOENT, "No such file or directory", "token"), "No such file or directory: 'token'"),
            (RuntimeError(f"still expired: {TOKEN}"), "cannot be had: RuntimeError;"),
            (KeyError(TOKEN), "cannot be had: KeyError;"),
        ],
        ids=["refused", "unreachable", "no-token-file", "expired", "bug"],
    )
    @pytest.mark.parametrize("requests", [0, 1, 2], ids=["first", "second", "third"])
    def test_those_that_cannot_be_refreshed(
        self,
        connect: Callable[[Any], Connection],
        requests: int,
        failure: Exception,
        said: str,
    ) -> None:
        """It may pass, whatever it is, with either client, at any request; once they are there the store works."""
        rotation = Rotation()
        connection = connect(rotation.credentials)
        for _ in range(requests):
            ask(connection)
        rotation.failure = failure
        rotation.is_due()
        with pytest.raises(StoreUnavailableError) as caught:
            ask(connection)
        assert type(caught.value.__cause__) is type(failure)
        assert said in str(caught.value)
        assert TOKEN not in str(caught.value)
        rotation.failure = None
        ask(connection)

    def test_none_at_all(self, wire: Wire, fast: bool, monkeypatch: pytest.MonkeyPatch) -> None:
        """Both clients say what is missing, each time, and nothing is kept of it: they work once it is there."""
        direct(monkeypatch, "dynamodb", wire.endpoint)
        wire.break_all(answer(400, "ConditionalCheckFailedException"))
        connection = Connection(region=REGION, fast=fast)
        with monkeypatch.context() as patch:
            for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
                patch.delenv(name)
            for _ in range(2):
                failed = fails(connection)
                assert type(failed) is StoreUnavailableError
                assert "no credentials were found; dynamodb:GetItem on table 'table'" in str(failed)
        assert not wire.requests
        ask(connection)
        assert access_key_of(wire.requests[0]) == "testing"

    @pytest.mark.parametrize("seconds_left", [300, 780], ids=["mandatory", "advisory"])
    def test_an_interrupt_in_a_refresh(
        self, connect: Callable[[Any], Connection], wire: Wire, seconds_left: int
    ) -> None:
        """A soft time limit comes out, also where botocore would go on with the credentials that it has."""
        rotation = Rotation()
        connection = connect(rotation.credentials)
        ask(connection)
        rotation.failure = SoftTimeLimitExceeded(5)
        rotation.credentials._expiry_time = datetime.now(UTC) + timedelta(seconds=seconds_left)
        with pytest.raises(SoftTimeLimitExceeded) as caught:
            ask(connection)
        assert caught.value is rotation.failure
        rotation.failure = KeyError()
        rotation.credentials._expiry_time = datetime.now(UTC) + timedelta(seconds=780)
        ask(connection)
        rotation.failure = None
        ask(connection)
        assert access_key_of(wire.requests[-1]) == "ASIA2"

    @pytest.mark.parametrize("requests", [0, 1], ids=["first", "second"])
    @pytest.mark.parametrize("code", [None, "UnrecognizedClientException", "InvalidSignatureException"])
    def test_what_is_told_of_a_request_that_failed(
        self, connect: Callable[[Any], Connection], wire: Wire, requests: int, code: str | None
    ) -> None:
        """Neither secret nor token is in the error, in its causes, or in what the connection prints of itself."""
        connection = connect(Credentials("ASIAKEY", SECRET, TOKEN))
        for _ in range(requests):
            ask(connection)
        wire.clear()
        wire.break_all(answer(403, code) if code else refuse)
        fails(connection)
        told = f"{connection!r} {vars(connection)} {vars(connection._fast_client) if connection._fast_client else ''}"
        assert SECRET not in told
        assert TOKEN not in told

    @pytest.mark.parametrize("end", ["\n", "\r", "\r\nX-Evil: 1"], ids=["lf", "cr", "header"])
    def test_a_token_that_is_no_header(self, connect: Callable[[Any], Connection], wire: Wire, end: str) -> None:
        """A line's end that was copied with it, for example: nothing is sent that has it."""
        credentials = Credentials("ASIAKEY", SECRET, TOKEN)
        connection = connect(credentials)
        ask(connection)
        wire.clear()
        credentials.token = f"{TOKEN}{end}"
        with pytest.raises(StoreError):
            ask(connection)
        assert not wire.requests
