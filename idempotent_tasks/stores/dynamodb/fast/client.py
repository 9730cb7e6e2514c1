"""A fast DynamoDB client: boto3 sends the first request of each kind, which is the template of the others.

For each request boto3 computes again what does not change in a process: the endpoint by its rules, the user agent, the
validation of parameters.  Here only body, time and signature are computed for each.
"""

import base64
import json
import logging
import os
import zlib
from collections.abc import Mapping
from contextlib import suppress
from contextvars import ContextVar
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import lru_cache
from http import HTTPStatus
from http.client import HTTPConnection
from queue import Empty, Full
from typing import Any, Final

from botocore.exceptions import ClientError
from botocore.parsers import ResponseParserError

from idempotent_tasks.stores.dynamodb.fast.hooks import Hooks
from idempotent_tasks.stores.dynamodb.fast.http import ConnectionPool, Limits, Reply, is_from_dynamodb
from idempotent_tasks.stores.dynamodb.fast.sigv4 import DATE, TOKEN, Signer, SigningTime

__all__ = ["FAST_OPERATIONS", "FastClient", "log_path"]

logger = logging.getLogger("idempotent_tasks")

#: The client's methods whose requests are sent here.  ``TableName`` is the only parameter that determines the endpoint,
#: and their answers consist of numbers, text and items.
FAST_OPERATIONS: Final = frozenset({"delete_item", "get_item", "put_item", "query", "scan", "update_item"})
#: After so many requests that could not be a template no other is tried: the cause is permanent, such as a proxy.
MAX_REJECTED_TEMPLATES: Final = 3
#: The content type that is written and read here.
_JSON: Final = "application/x-amz-json-1.0"
#: The headers that a template may have, in lower case: those that all its requests share, and those that are computed
#: for each.  Any other header may be specific to the one request, which can be no template then.
_CONSTANT: Final = frozenset({"content-type", "user-agent", "x-amz-target", "amz-sdk-request"})
_INVOCATION: Final = "amz-sdk-invocation-id"
_COMPUTED: Final = frozenset({"authorization", "content-length", DATE, TOKEN, _INVOCATION})
#: The parameter with the attribute of each name in an expression.
_NAMES: Final = "ExpressionAttributeNames"
#: How many texts that requests share are kept: more than this library has kinds of requests.
MOST_TEXTS: Final = 128
#: How the header ``amz-sdk-request`` of a first try begins.
_FIRST_TRY: Final = "attempt=1"
#: An environment variable of AWS Lambda, where boto3 adds the invocation's trace to each request.
_LAMBDA: Final = "AWS_LAMBDA_FUNCTION_NAME"


class _UnusableError(Exception):
    """A request cannot be a template; the message says why."""


@dataclass(frozen=True, slots=True)
class _Sent:
    """The requests that boto3 sends in one call, and the credentials when it began."""

    credentials: Any = field(repr=False)
    requests: list[Any] = field(default_factory=list)


#: What boto3 sends in the call under way.
_sent_by_client: ContextVar[_Sent | None] = ContextVar("idempotency_sent_by_client", default=None)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Template:
    """The request template of one operation on one table."""

    #: In DynamoDB's spelling, such as ``UpdateItem``.
    operation: str
    #: Each header's name as boto3 spells it, and in lower case; in boto3's order.
    names: tuple[tuple[str, str], ...]
    #: Header values by name in lower case.
    constant: Mapping[str, str]
    signer: Signer
    pool: ConnectionPool
    #: Those that the template was signed with; with others boto3 might send another request.
    credentials: Any = field(repr=False)

    def request(self, parameters: Mapping[str, Any], now: float) -> tuple[Mapping[str, str], bytes]:
        """Return the headers and the body of a signed request."""
        body = _body_of(parameters)
        headers = {
            **self.constant,
            DATE: _timestamp(int(now)),
            "content-length": str(len(body)),
            _INVOCATION: _invocation(),
        }
        if self.credentials.token:
            headers[TOKEN] = self.credentials.token
        headers["authorization"] = self.signer.authorization(headers, body, self.credentials.secret_key)
        return {shown: headers[name] for shown, name in self.names}, body


class FastClient:
    """Sends requests in place of a boto3 client, where they are provably what that would send.

    The boto3 client sends the first request of each kind, and all those that a foreign handler or wrapper might see or
    change (`Hooks`), that go through a proxy or with a client certificate, or that have a header which may be specific
    to one request.  It also sends the next request after an answer that is not DynamoDB's own, after any network or TLS
    error, and after a change of the credentials.

    Args:
        client: a boto3 client for DynamoDB that nobody else uses, and that does not discover its endpoints.
        time: the time to sign requests with, kept when the client is replaced.
        endpoint: what log lines call the endpoint.
    """

    def __init__(self, client: Any, time: SigningTime, endpoint: str) -> None:
        self._client = client
        self._endpoint = endpoint
        self._time = time
        self._hooks = Hooks(client)
        self._credentials = client._request_signer._credentials  # noqa: SLF001 - those that the client signs with
        #: By the client's method and the table's name.
        self._templates: dict[tuple[str, Any], _Template] = {}
        #: By URL.
        self._pools: dict[str, ConnectionPool] = {}
        #: How many of the client's requests could not be a template.
        self._rejected = 0
        #: The reasons that were logged, each once.
        self._logged: set[str | None] = set()
        # Before any handler that adds something to one request only.
        client.meta.events.register_first("before-send.dynamodb.*", self._before_send)

    def send(self, operation: str, parameters: Mapping[str, Any]) -> dict[str, Any]:
        """Send one request, once, and return its answer as the client's method would.

        Args:
            operation: the client's method, for example ``update_item``.
            parameters: its keyword arguments, which DynamoDB itself checks.

        Raises:
            botocore.exceptions.ClientError: DynamoDB's error.
            botocore.exceptions.BotoCoreError: as from the client.
        """
        template = self._templates.get((operation, parameters.get("TableName")))
        if template is None:
            return self.send_by_client(operation, parameters)
        if self._hooks.found(template.operation) is not None or self._frozen_credentials() != template.credentials:
            self._templates.clear()
            return self.send_by_client(operation, parameters)
        try:
            headers, body = template.request(parameters, self._time.now())
            answer = _read(template.operation, template.pool.exchange(headers, body))
        except ClientError as error:
            self._inspect(error.response)
            raise
        except BaseException:
            self._templates.clear()
            raise
        self._inspect(answer)
        return answer

    def send_by_client(self, operation: str, parameters: Mapping[str, Any]) -> dict[str, Any]:
        """Send a request by boto3 and, if possible, keep it as a template; arguments and errors as for `send`."""
        sent = _Sent(self._frozen_credentials())
        token = _sent_by_client.set(sent)
        try:
            answer: dict[str, Any] = getattr(self._client, operation)(**parameters)
        except ClientError as error:
            self._inspect(error.response)
            self._keep_template(operation, parameters, sent, error.response)
            raise
        finally:
            _sent_by_client.reset(token)
        self._inspect(answer)
        self._keep_template(operation, parameters, sent, answer)
        return answer

    def _frozen_credentials(self) -> Any:
        return self._credentials and self._credentials.get_frozen_credentials()

    def _inspect(self, answer: Mapping[str, Any]) -> None:
        """Drop all templates if an answer is not DynamoDB's own, such as a gateway's."""
        if _is_genuine(answer):
            self._time.observe(answer)
        else:
            self._templates.clear()

    def _before_send(self, request: Any, **_: Any) -> None:
        """Record a request of boto3's; sign it again by `SigningTime` once DynamoDB has refused a signature's time."""
        sent = _sent_by_client.get()
        if sent is None:
            return
        if self._time.refused:
            self._sign_again(request, sent.credentials)
        sent.requests.append(request)

    def _sign_again(self, request: Any, credentials: Any) -> None:
        headers = _by_name(request)
        signer = credentials and Signer.from_request(request, headers, credentials)
        if signer:
            headers |= {"host": signer.host, DATE: _timestamp(int(self._time.now()))}
            authorization = signer.authorization(headers, request.body, credentials.secret_key)
            for header, value in (("X-Amz-Date", headers[DATE]), ("Authorization", authorization)):
                del request.headers[header]
                request.headers[header] = value

    def _keep_template(
        self, operation: str, parameters: Mapping[str, Any], sent: _Sent, answer: Mapping[str, Any]
    ) -> None:
        if operation not in FAST_OPERATIONS or self._rejected >= MAX_REJECTED_TEMPLATES:
            return
        name = self._client.meta.method_to_api_mapping[operation]
        closed = self._hooks.found(name)
        if closed is None and not _is_genuine(answer):
            closed = "the answer was not DynamoDB's own: a gateway's, or without an x-amzn-requestid"
        if closed is None:
            try:
                self._templates[operation, parameters.get("TableName")] = self._template(name, parameters, sent)
                # With a urllib3 of other attributes they stay open, as they do without this library.
                with suppress(AttributeError, LookupError, TypeError):
                    self._close_idle()
            except (_UnusableError, AttributeError, LookupError, TypeError, ValueError) as error:
                # The answer counts, also where a version of botocore or urllib3 has other attributes.
                self._rejected += 1
                closed = str(error)
        if closed not in self._logged:
            self._logged.add(closed)
            log_path(self._endpoint, closed)

    def _template(self, name: str, parameters: Mapping[str, Any], sent: _Sent) -> _Template:
        """Make a template of the one request that boto3 sent in a call.

        Raises:
            _UnusableError: this module would send other bytes, to another server, or signed in another way.
        """
        if sent.credentials is None:
            raise _UnusableError("there are no credentials to sign with")
        if len(sent.requests) != 1:
            raise _UnusableError(f"boto3 sent {len(sent.requests)} requests in one call")
        (request,) = sent.requests
        headers = _by_name(request)
        others = headers.keys() - _CONSTANT - _COMPUTED
        if others:
            raise _UnusableError(
                f"boto3's request has the header {min(others)!r}, which may be of this one request only"
            )
        if headers.get("content-type") != _JSON or not headers.get("amz-sdk-request", _FIRST_TRY).startswith(
            _FIRST_TRY
        ):
            raise _UnusableError("boto3's request has another form")
        if _LAMBDA in os.environ:
            raise _UnusableError("in AWS Lambda boto3 adds the trace of the invocation to each request")
        if request.body != _body_of(parameters):
            raise _UnusableError("boto3 writes the body in another way")
        signer = Signer.from_request(request, headers, sent.credentials)
        if signer is None:
            raise _UnusableError("boto3's request is signed in another way, or not at all")
        default = (("Host", "host"), ("Accept-Encoding", "accept-encoding"))
        return _Template(
            operation=name,
            names=(*default, *((_text(header), _text(header).lower()) for header in request.headers)),
            constant={
                "host": signer.host,
                "accept-encoding": "identity",
                **{header: value for header, value in headers.items() if header in _CONSTANT},
            },
            signer=signer,
            pool=self._pool_for(request.url),
            credentials=sent.credentials,
        )

    def _pool_for(self, url: str) -> ConnectionPool:
        """Return a pool of connections that the client's HTTP session makes: same addresses, same TLS settings.

        A CA bundle file is read for each connection, as by the session itself.
        """
        config = self._client.meta.config
        session = self._client._endpoint.http_session  # noqa: SLF001 - boto3 has no other way to it
        if session._proxy_config.proxy_url_for(url):  # noqa: SLF001
            raise _UnusableError("requests go through a proxy")
        if config.client_cert or session._cert_file or session._key_file:  # noqa: SLF001
            raise _UnusableError("the client has a certificate of its own")

        def make() -> HTTPConnection:
            pool = session._manager.connection_from_url(url)  # noqa: SLF001
            session._setup_ssl_cert(pool, url, session._verify)  # noqa: SLF001
            connection: HTTPConnection = pool._new_conn()  # noqa: SLF001
            return connection

        # A urllib3 of other attributes raises now, not at the next request.
        make().close()
        if url not in self._pools:
            limits = Limits(
                connect_timeout=config.connect_timeout,
                read_timeout=config.read_timeout,
                max_pool_connections=config.max_pool_connections,
            )
            self._pools[url] = ConnectionPool(url, limits, make, self._time.monotonic)
        return self._pools[url]

    def _close_idle(self) -> None:
        """Close boto3's idle connections: a burst of first requests leaves many that nothing else closes."""
        pools = self._client._endpoint.http_session._manager.pools  # noqa: SLF001 - boto3 has no other way to them
        for idle in [pool.pool for pool in map(pools.get, pools.keys()) if pool is not None]:
            taken = []
            with suppress(Empty):
                # All of them: an empty place may be above a connection, where threads take and return theirs meanwhile.
                while True:
                    taken.append(idle.get_nowait())
            for connection in taken:
                if connection is not None:
                    # It opens itself again when it is used.
                    connection.close()
                with suppress(Full):
                    idle.put_nowait(connection)


def log_path(endpoint: str, closed: str | None) -> None:
    """Log whether this process's requests take the fast path.

    Args:
        endpoint: what the log line calls the endpoint.
        closed: why requests go through boto3, or None if they take the fast path.
    """
    if closed is None:
        logger.info("Requests to DynamoDB at %s take the fast path; boto3 sends the first of each kind.", endpoint)
    else:
        logger.info("boto3 sends every request to DynamoDB at %s; the fast path is closed: %s.", endpoint, closed)


def _is_genuine(answer: Mapping[str, Any]) -> bool:
    """Return whether an answer is DynamoDB's own, and no redirect."""
    about = answer.get("ResponseMetadata", {})
    is_redirect = HTTPStatus.MULTIPLE_CHOICES <= about.get("HTTPStatusCode", 0) < HTTPStatus.BAD_REQUEST
    return not is_redirect and is_from_dynamodb(about.get("HTTPHeaders", {}))


def _by_name(request: Any) -> dict[str, str]:
    return {_text(header).lower(): _text(value) for header, value in request.headers.items()}


def _invocation() -> str:
    """Return a random UUID (version 4), in a third of the time that `uuid.uuid4` takes."""
    digits = os.urandom(16).hex()
    return f"{digits[:8]}-{digits[8:12]}-4{digits[13:16]}-a{digits[17:20]}-{digits[20:]}"


# All requests of one second share it.
@lru_cache(maxsize=2)
def _timestamp(second: int) -> str:
    return datetime.fromtimestamp(second, UTC).strftime("%Y%m%dT%H%M%SZ")


def _read(name: str, reply: Reply) -> dict[str, Any]:
    checksum = reply.headers.get("x-amz-crc32")
    if checksum is not None and checksum != str(zlib.crc32(reply.body)):
        raise ResponseParserError("the answer is not what was sent")
    metadata = {"HTTPStatusCode": reply.status, "HTTPHeaders": reply.headers}
    if "x-amzn-requestid" in reply.headers:
        metadata["RequestId"] = reply.headers["x-amzn-requestid"]
    about = {"ResponseMetadata": metadata}
    if reply.status < HTTPStatus.MULTIPLE_CHOICES:
        return {**_members(reply.body), **about}
    try:
        members = _members(reply.body)
    except ResponseParserError:
        # A gateway's page, in whatever form.
        members = {}
    # Of the form NAMESPACE#NAME:ADDRESS, where namespace and address may be absent.
    code = str(members.get("__type") or reply.headers.get("x-amzn-errortype") or reply.status)
    named = code.partition(":")[0].rpartition("#")[2]
    error = {"Code": named, "Message": members.get("message") or members.get("Message") or ""}
    raise ClientError({**members, **about, "Error": error}, name)


def _members(body: bytes) -> dict[str, Any]:
    # A call back for each object of an answer costs more than reading them all.
    decoder = _BINARY_DECODER if any(sign in body for sign in _SIGNS_OF_BINARY) else _DECODER
    try:
        members = decoder.decode(body.decode() or "{}")
    except ValueError as error:
        raise ResponseParserError("the answer is no JSON") from error
    if not isinstance(members, dict):
        raise ResponseParserError("the answer is no JSON object")
    return members


def _body_of(parameters: Mapping[str, Any]) -> bytes:
    """Return a request's parameters as `json.dumps` writes them, putting together what is kept of earlier requests."""
    members = [f"{_text_of(name)}: {_value_of(name, value)}" for name, value in parameters.items()]
    return f"{{{', '.join(members)}}}".encode()


def _value_of(name: str, value: Any) -> str:
    if type(value) is str:
        return _text_of(value)
    return _names_of(tuple(value.items())) if name == _NAMES else _ENCODER.encode(value)


# Expressions and the names in them are most of a request, and the same in all requests of one kind.
@lru_cache(maxsize=MOST_TEXTS)
def _text_of(text: str) -> str:
    return _ENCODER.encode(text)


@lru_cache(maxsize=MOST_TEXTS)
def _names_of(names: tuple[tuple[str, str], ...]) -> str:
    return _ENCODER.encode(dict(names))


def _base64(value: Any) -> str:
    """Encode a binary value (DynamoDB's type ``B``) in base64 for JSON."""
    return base64.b64encode(value).decode()


def _binary(found: dict[str, Any]) -> dict[str, Any]:
    match found:
        case {"B": str(text)}:
            return {"B": base64.b64decode(text)}
        case {"BS": list(texts)}:
            return {"BS": [base64.b64decode(text) for text in texts]}
    return found


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value


#: Made once: `json.dumps` and `json.loads` make one for each call that has options.
_ENCODER: Final = json.JSONEncoder(default=_base64)
_DECODER: Final = json.JSONDecoder()
_BINARY_DECODER: Final = json.JSONDecoder(object_hook=_binary)
#: One of them is in each answer with a binary value: its type's name begins so, or has an escape for a letter.
_SIGNS_OF_BINARY: Final = (b'"B', b"\\u")
