"""The short road to DynamoDB: boto3 sends a process's first request, and that is the pattern of those that follow.

boto3 works out anew for each request what does not change in a process: the endpoint by its rules, the user agent, what
a parameter may be.  Here the requests after the first have their own body, time and signature only.
"""

import base64
import json
import zlib
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from http import HTTPStatus
from ssl import CERT_REQUIRED, SSLContext
from typing import Any, Final
from urllib.parse import urlsplit

from botocore.awsrequest import AWSPreparedRequest, HeadersDict
from botocore.exceptions import ClientError
from botocore.httpsession import create_urllib3_context, get_cert_path
from botocore.parsers import ResponseParserError
from botocore.utils import get_environ_proxies

from idempotent_tasks.stores.dynamodb_http import KeptConnections, Limits
from idempotent_tasks.stores.dynamodb_reply import Reply
from idempotent_tasks.stores.dynamodb_signature import DATE, TOKEN, Signer

__all__ = ["ShortRoad"]

#: After so many requests that could not be the pattern none is looked at any more: a proxy stays, for example.
MOST_UNLIKE: Final = 3
#: The one form of requests and answers that is written and read here.
_JSON: Final = "application/x-amz-json-1.0"
#: The header that names the operation, after a prefix.
_TARGET: Final = "x-amz-target"
#: Headers that each request has of its own, or that tell AWS's metrics and traces by whose call it is sent.
_OWN: Final = frozenset(
    {"authorization", "content-length", DATE, TOKEN, "amz-sdk-invocation-id", "amz-sdk-request", "x-amzn-trace-id"}
)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Pattern:
    """What all requests share."""

    url: str
    #: By name in lower case.
    headers: Mapping[str, str]
    #: What the operation's name follows in `_TARGET`.
    target: str
    signer: Signer
    connections: KeptConnections

    def request(
        self, name: str, parameters: Mapping[str, Any], credentials: Any, now: float
    ) -> tuple[Mapping[str, str], bytes]:
        """Return the headers and the body of a signed request of an operation."""
        body = _ENCODER.encode(parameters).encode()
        headers = {
            **self.headers,
            _TARGET: f"{self.target}.{name}",
            DATE: datetime.fromtimestamp(now, UTC).strftime("%Y%m%dT%H%M%SZ"),
            "content-length": str(len(body)),
        }
        if credentials.token:
            headers[TOKEN] = credentials.token
        headers["authorization"] = self.signer.authorization(headers, body, credentials.secret_key)
        return headers, body

    def suits(self, credentials: Any) -> bool:
        """Whether a request with these credentials would have the same pattern: others may be another account's."""
        has_token = TOKEN in self.signer.signed
        return credentials.access_key == self.signer.access_key and bool(credentials.token) is has_token


class ShortRoad:
    """Sends requests for one client of boto3's, in one process.

    What it cannot send as the client would, the client sends: through a proxy, with a certificate of the client's own,
    with another kind of signature or another form of body.  Handlers of botocore's event ``before-send`` see each
    request, and may answer it (as moto does); those of other events, and what wraps the client's methods, only see
    what the client itself sends.

    Args:
        client: a client for DynamoDB that nobody else uses, and that does not discover its endpoints.
        credentials: the client's (``botocore.credentials.Credentials``), or None for none.
        ca_bundle: the file with the authorities that it trusts, or None for botocore's own.
        now: returns DynamoDB's time in epoch seconds, as it is known after the first request: a machine whose clock is
            off by more than a signature may be old goes on.
    """

    def __init__(self, client: Any, credentials: Any, ca_bundle: str | None, now: Callable[[], float]) -> None:
        self._client = client
        self._credentials = credentials
        self._ca_bundle = ca_bundle
        self._now = now
        self._pattern: _Pattern | None = None
        #: How many of the client's requests had another form than this one's.
        self._unlike = 0
        self._connections: dict[str, KeptConnections] = {}
        #: The operations whose requests no handler but this road's own sees.
        self._unseen: set[str] = set()
        if credentials is not None:
            # Before any handler that adds something to this one request.
            client.meta.events.register_first("before-send.dynamodb.*", self._learn)

    def send(self, operation: str, parameters: Mapping[str, Any]) -> dict[str, Any]:
        """Send one request, once, and return its answer as the client's method would.

        Args:
            operation: the client's method, for example ``update_item``.
            parameters: its keyword arguments, which DynamoDB itself checks.

        Raises:
            botocore.exceptions.ClientError: DynamoDB's error.
            botocore.exceptions.BotoCoreError: as from the client.
        """
        pattern = self._pattern
        if pattern is not None:
            credentials = self._credentials.get_frozen_credentials()
            if pattern.suits(credentials):
                name = self._client.meta.method_to_api_mapping[operation]
                return self._sent(name, pattern, *pattern.request(name, parameters, credentials, self._now()))
            self._pattern = None
        answer: dict[str, Any] = getattr(self._client, operation)(**parameters)
        return answer

    def _sent(self, name: str, pattern: _Pattern, headers: Mapping[str, str], body: bytes) -> dict[str, Any]:
        if name in self._unseen:
            return _read(name, pattern.connections.exchange(headers, body))
        request = AWSPreparedRequest("POST", pattern.url, HeadersDict(headers), body, stream_output=False)
        handled = self._client.meta.events.emit(f"before-send.dynamodb.{name}", request=request)
        if [handler for handler, _ in handled] == [self._learn]:
            # It stays so: a client has the handlers that its session had when it was made, and nobody else has it.
            self._unseen.add(name)
        answered = next((answer for _, answer in handled if answer is not None), None)
        if answered is None:
            return _read(name, pattern.connections.exchange(request.headers, request.body))
        told = {header.lower(): value for header, value in answered.headers.items()}
        return _read(name, Reply(answered.status_code, told, answered.content, keeps=True))

    def _learn(self, request: Any, **_: Any) -> None:
        """Take what the client sends as the pattern, unless several of its requests could not be it."""
        if self._pattern is not None or self._unlike >= MOST_UNLIKE:
            return
        # Authorities that cannot be read are the client's to complain of, when it connects.
        with suppress(OSError):
            self._pattern = self._pattern_of(request)
        if self._pattern is None:
            self._unlike += 1

    def _pattern_of(self, request: Any) -> _Pattern | None:
        headers = {header.lower(): _text(value) for header, value in request.headers.items()}
        signer = Signer.learned(request, headers, self._credentials.get_frozen_credentials())
        target, _, _ = headers.get(_TARGET, "").rpartition(".")
        connections = self._connections_to(request.url)
        if signer is None or connections is None or not target or headers.get("content-type") != _JSON:
            return None
        shared = {header: value for header, value in headers.items() if header not in _OWN}
        return _Pattern(
            url=request.url,
            headers={"host": signer.host, "accept-encoding": "identity", **shared},
            target=target,
            signer=signer,
            connections=connections,
        )

    def _connections_to(self, url: str) -> KeptConnections | None:
        config = self._client.meta.config
        proxies = get_environ_proxies(url) if config.proxies is None else config.proxies
        # Beside proxies by scheme, the environment's have the hosts that are reached without one.
        if proxies.get(urlsplit(url).scheme) or config.client_cert:
            return None
        if url not in self._connections:
            limits = Limits(
                connect_timeout=config.connect_timeout,
                read_timeout=config.read_timeout,
                tcp_keepalive=bool(config.tcp_keepalive),
                max_pool_connections=config.max_pool_connections,
            )
            context = _trusting(self._ca_bundle) if url.startswith("https:") else None
            self._connections[url] = KeptConnections(url, limits, context)
        return self._connections[url]


def _trusting(ca_bundle: str | None) -> SSLContext:
    """Return the TLS context that botocore's own HTTP client has (``botocore.httpsession.URLLib3Session``)."""
    context: SSLContext = create_urllib3_context()
    context.load_verify_locations(get_cert_path(ca_bundle or True))
    context.verify_mode, context.check_hostname = CERT_REQUIRED, True
    return context


def _read(name: str, reply: Reply) -> dict[str, Any]:
    checksum = reply.headers.get("x-amz-crc32")
    if checksum is not None and checksum != str(zlib.crc32(reply.body)):
        raise ResponseParserError("the answer is not what was sent")
    about = {"ResponseMetadata": {"HTTPStatusCode": reply.status, "HTTPHeaders": reply.headers}}
    if reply.status < HTTPStatus.MULTIPLE_CHOICES:
        return {**_members(reply.body), **about}
    try:
        members = _members(reply.body)
    except ResponseParserError:
        # A gateway's page, in whatever form.
        members = {}
    # As NAMESPACE#NAME:ADDRESS, where only the name is always there.
    code = str(members.get("__type") or reply.headers.get("x-amzn-errortype") or reply.status)
    named = code.partition(":")[0].rpartition("#")[2]
    error = {"Code": named, "Message": members.get("message") or members.get("Message") or ""}
    raise ClientError({**members, **about, "Error": error}, name)


def _members(body: bytes) -> dict[str, Any]:
    try:
        members = _DECODER.decode(body.decode() or "{}")
    except ValueError as error:
        raise ResponseParserError("the answer is no JSON") from error
    if not isinstance(members, dict):
        raise ResponseParserError("the answer is no JSON object")
    return members


def _base64(value: Any) -> str:
    """Return a binary value (DynamoDB's type ``B``) as JSON has it."""
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
_DECODER: Final = json.JSONDecoder(object_hook=_binary)
