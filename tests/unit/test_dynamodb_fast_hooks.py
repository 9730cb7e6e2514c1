"""What is hooked into a client of boto3's: nothing by itself, and whatever somebody else puts there, at any time."""

import functools
import http.client
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any
from unittest import mock

import boto3
import botocore.auth
import botocore.client
import botocore.endpoint
import botocore.handlers
import botocore.history
import botocore.httpsession
import botocore.signers
import pytest
import urllib3.connectionpool
import wrapt
from botocore.awsrequest import AWSHTTPConnection, AWSHTTPConnectionPool
from botocore.config import Config
from botocore.stub import Stubber

from idempotent_tasks.stores.dynamodb.fast.hooks import Hooks

OPERATION = "UpdateItem"
#: Every event that botocore emits for a request.
EVENTS = (
    "provide-client-params",
    "before-parameter-build",
    "before-endpoint-resolution",
    "before-call",
    "request-created",
    "choose-signer",
    "before-sign",
    "before-send",
    "before-parse",
    "response-received",
    "needs-retry",
    "after-call",
    "after-call-error",
)
#: Methods that a request passes, some of them inherited.
METHODS: list[tuple[type, str]] = [
    (botocore.client.BaseClient, "_make_api_call"),
    (botocore.client.BaseClient, "_convert_to_request_dict"),
    (botocore.endpoint.Endpoint, "make_request"),
    (botocore.endpoint.Endpoint, "prepare_request"),
    (botocore.endpoint.Endpoint, "_send"),
    (botocore.httpsession.URLLib3Session, "send"),
    (botocore.signers.RequestSigner, "sign"),
    (botocore.auth.SigV4Auth, "add_auth"),
    (urllib3.connectionpool.HTTPConnectionPool, "urlopen"),
    (http.client.HTTPConnection, "putrequest"),
    (http.client.HTTPConnection, "getresponse"),
]


@pytest.fixture(scope="module")
def session() -> boto3.Session:
    """A session with nothing but botocore's own in it."""
    return boto3.Session("AKIAKEY", "secret", region_name="eu-west-1")


@pytest.fixture
def client(session: boto3.Session) -> Any:
    """A client of the session, which only this test uses."""
    return session.client("dynamodb", endpoint_url="http://localhost:8000")


def handler(**_: Any) -> None:
    """Do nothing."""


def wrapper(wrapped: Callable[..., Any], _: Any, args: Any, kwargs: Any) -> Any:
    """Do nothing else, as a tracer's."""
    return wrapped(*args, **kwargs)


@pytest.mark.parametrize(
    "config",
    [
        Config(),
        Config(retries={"mode": "legacy"}),
        Config(retries={"mode": "adaptive"}),
        Config(signature_version="v4"),
    ],
    ids=["usual", "legacy", "adaptive", "v4"],
)
def test_nothing_is_hooked_into_a_new_client(session: boto3.Session, config: Config) -> None:
    """Whatever botocore itself registers for the configuration."""
    hooks = Hooks(session.client("dynamodb", config=config))
    assert [hooks.found(operation) for operation in ("GetItem", "UpdateItem", "Scan")] == [None] * 3


class TestHandlers:
    """Handlers of botocore's events."""

    @pytest.mark.parametrize("event", EVENTS)
    @pytest.mark.parametrize("pattern", ["{}", "{}.dynamodb", "{}.dynamodb.UpdateItem", "{}.*.UpdateItem"])
    def test_one_that_comes_later(self, client: Any, event: str, pattern: str) -> None:
        """It is seen at the next request, and so is that it is gone."""
        hooks = Hooks(client)
        assert hooks.found(OPERATION) is None
        client.meta.events.register(pattern.format(event), handler)
        assert f"handler handles the event {event}" in (hooks.found(OPERATION) or "")
        client.meta.events.unregister(pattern.format(event), handler)
        assert hooks.found(OPERATION) is None

    @pytest.mark.parametrize("event", EVENTS)
    def test_one_of_the_session(self, event: str) -> None:
        """A client has it from its beginning."""
        session = boto3.Session("AKIAKEY", "secret", region_name="eu-west-1")
        session.events.register(event, handler)
        assert Hooks(session.client("dynamodb")).found(OPERATION) is not None

    def test_one_of_an_event_that_botocore_may_have_one_day(self, client: Any) -> None:
        """What is not known to have nothing to do with a request may have."""
        client.meta.events.register("before-flight.dynamodb", handler)
        assert Hooks(client).found(OPERATION) is not None

    @pytest.mark.parametrize("event", ["before-send.s3", "before-send.dynamodb.PutItem", "docs.dynamodb", "getattr"])
    def test_one_that_sees_no_such_request(self, client: Any, event: str) -> None:
        """Of another service or operation, or of no request at all."""
        client.meta.events.register(event, handler)
        assert Hooks(client).found(OPERATION) is None

    @pytest.mark.parametrize(
        "hidden",
        [
            functools.wraps(botocore.handlers.add_retry_headers)(lambda **_: None),
            functools.partial(handler),
            wrapt.FunctionWrapper(botocore.handlers.add_retry_headers, wrapper),
            mock.Mock(),
            type("Handler", (), {"__call__": lambda _self, **_: None})(),
        ],
        ids=["wraps", "partial", "proxy", "mock", "object"],
    )
    def test_one_that_looks_like_botocores(self, client: Any, hidden: Any) -> None:
        """It shows the name or the module of what it wraps."""
        client.meta.events.register("before-call", hidden)
        assert Hooks(client).found(OPERATION) is not None

    def test_botocores_own_in_a_place_of_somebodys_choice(self, client: Any) -> None:
        """To leave requests unsigned, for example."""
        client.meta.events.register("choose-signer.dynamodb.*", botocore.handlers.disable_signing)
        assert Hooks(client).found(OPERATION) is not None

    def test_botocores_own_stand_in(self, client: Any) -> None:
        """Its answers are made up."""
        hooks = Hooks(client)
        with Stubber(client):
            assert hooks.found(OPERATION) is not None
        assert hooks.found(OPERATION) is None


@contextmanager
def replaced(cls: type, name: str) -> Iterator[None]:
    """Put a function of ours in a method's place, which calls it and has its name."""
    original = vars(cls)[name]

    @functools.wraps(original)
    def traced(*args: Any, **kwargs: Any) -> Any:
        return original(*args, **kwargs)

    with mock.patch.object(cls, name, traced):
        yield


@contextmanager
def proxied(cls: type, name: str) -> Iterator[None]:
    """Put a proxy in a method's place, which equals it."""
    with mock.patch.object(cls, name, wrapt.FunctionWrapper(vars(cls)[name], wrapper)):
        yield


class TestWrappers:
    """What stands around the methods that send a request."""

    @pytest.mark.parametrize("wrap", [replaced, proxied])
    @pytest.mark.parametrize(("cls", "name"), METHODS, ids=[f"{cls.__name__}.{name}" for cls, name in METHODS])
    def test_each_method(
        self, client: Any, wrap: Callable[[type, str], AbstractContextManager[None]], cls: type, name: str
    ) -> None:
        """Before the client was made, or after it; and it may be taken away again."""
        before = Hooks(client)
        assert before.found(OPERATION) is None
        with wrap(cls, name):
            assert cls.__qualname__ in (before.found(OPERATION) or "")
            late = Hooks(client)
            assert late.found(OPERATION) is not None
        assert before.found(OPERATION) is None
        assert late.found(OPERATION) is None

    @pytest.mark.parametrize(
        "part",
        [lambda client: client, lambda client: client._endpoint, lambda client: client._endpoint.http_session],
        ids=["client", "endpoint", "http-session"],
    )
    @pytest.mark.parametrize("early", [True, False])
    def test_a_method_of_this_client_alone(self, client: Any, part: Callable[[Any], Any], early: bool) -> None:
        """Put on the object, not on its class."""
        hooks = Hooks(client)
        target = part(client)
        name = next(name for name in ("update_item", "make_request", "send") if hasattr(type(target), name))
        setattr(target, name, lambda **_: None)
        assert (Hooks(client) if early else hooks).found(OPERATION) is not None

    @pytest.mark.parametrize(
        ("cls", "name"),
        [(AWSHTTPConnectionPool, "urlopen"), (AWSHTTPConnection, "putrequest"), (None, "_make_api_call")],
        ids=["pool", "connection", "client"],
    )
    def test_a_method_in_the_place_of_an_inherited_one(self, client: Any, cls: type | None, name: str) -> None:
        """Put on the class that is used, where the class has none of its own."""
        hooks = Hooks(client)
        assert hooks.found(OPERATION) is None
        with mock.patch.object(cls or type(client), name):
            assert hooks.found(OPERATION) is not None
        assert hooks.found(OPERATION) is None

    def test_another_http_session(self, client: Any) -> None:
        """One that goes elsewhere, or trusts others."""
        hooks = Hooks(client)
        client._endpoint.http_session = botocore.httpsession.URLLib3Session(verify=False)
        assert hooks.found(OPERATION) is not None

    def test_a_client_that_is_none_of_botocores(self, client: Any) -> None:
        """A proxy of a client, from a session that traces."""
        assert Hooks(wrapt.ObjectProxy(client)).found(OPERATION) is not None

    def test_another_class_of_connections(self, client: Any) -> None:
        """A recorder's, which plays back what it recorded."""
        hooks = Hooks(client)
        recorder = type("Recorder", (AWSHTTPConnection,), {"__module__": "recorder"})
        with mock.patch.object(AWSHTTPConnectionPool, "ConnectionCls", recorder):
            assert hooks.found(OPERATION) is not None
        assert hooks.found(OPERATION) is None

    def test_botocores_history(self, client: Any) -> None:
        """Where it is recorded, every request is in it."""
        hooks = Hooks(client)
        with mock.patch.object(botocore.history.HISTORY_RECORDER, "_enabled", new=True):
            assert hooks.found(OPERATION) is not None
        assert hooks.found(OPERATION) is None

    def test_a_botocore_of_another_shape(self, client: Any) -> None:
        """What cannot be looked at is not taken for empty."""
        hooks = Hooks(client)
        del client.meta.events._emitter._lookup_cache
        assert "another shape" in (hooks.found(OPERATION) or "")
        del client._endpoint.http_session
        assert "another shape" in (Hooks(client).found(OPERATION) or "")
