"""A minimal HTTP client: a pool of connections to one URL, each kept open and used by one thread at a time.

Errors are raised as botocore's HTTP client raises them, so that both are handled alike.
"""

import math
import re
import threading
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPException, HTTPResponse, IncompleteRead
from io import BufferedReader, RawIOBase
from ssl import SSLError
from typing import Any, Final, Protocol
from urllib.parse import urlsplit
from weakref import ReferenceType, finalize, ref

from botocore.exceptions import (
    BotoCoreError,
    ConnectionClosedError,
    ConnectTimeoutError,
    EndpointConnectionError,
    HTTPClientError,
    ReadTimeoutError,
)
from botocore.exceptions import SSLError as BotoSSLError
from urllib3.exceptions import ConnectTimeoutError as URLLib3ConnectTimeoutError
from urllib3.exceptions import HTTPError, NewConnectionError
from urllib3.exceptions import SSLError as URLLib3SSLError
from urllib3.util import wait_for_read

from idempotent_tasks.core.retry import time_left
from idempotent_tasks.stores.aws_errors import NoTimeLeftError

__all__ = [
    "IDLE_SECONDS",
    "IDLE_WITHOUT_SWEEPER",
    "ConnectionPool",
    "Limits",
    "Reply",
    "is_from_dynamodb",
    "read_reply",
]

#: Seconds after which an idle connection is closed: NAT gateways and load balancers of AWS forget it after 350 s.
#: https://docs.aws.amazon.com/vpc/latest/userguide/nat-gateway-basics.html
IDLE_SECONDS: Final = 300.0
#: Where a burst leaves more idle connections than this, a thread closes those that expire until none are left.
IDLE_WITHOUT_SWEEPER: Final = 2
#: The seconds between two looks of that thread.
SWEEP_SECONDS: Final = 1.0
#: Headers of answers that a cache or a gateway has passed on, or has given in the server's place.
#: https://www.rfc-editor.org/rfc/rfc9111#section-5.1, https://www.rfc-editor.org/rfc/rfc9110#section-7.6.3
_IN_BETWEEN: Final = frozenset({"age", "via", "x-cache"})

#: Bytes to receive at a time.  Most answers have some hundred; one with an item has up to 400 KB.
_AT_ONCE: Final = 65_536
#: A head that is read without `http.client`: a status with a body, and one line for each header (RFC 9112).
_HEAD: Final = re.compile(rb"HTTP/1\.1 (200|[45]\d\d) [^\r\n]*\r\n((?:[!-9;-~]+:[^\r\n]*\r\n)+)\r\n")
_LINE: Final = re.compile(r"([!-9;-~]+):([^\r\n]*)\r\n")
#: What may stand around the value of a header.
_BLANKS: Final = " \t"


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Time-outs and size of a connection pool, as in ``botocore.config.Config``."""

    #: Seconds to connect, and seconds to wait for each part of the answer; None for no limit.
    connect_timeout: float | None
    read_timeout: float | None
    #: How many idle connections are kept open.
    max_pool_connections: int


@dataclass(frozen=True, slots=True)
class Reply:
    """The answer to one HTTP request."""

    status: int
    #: By name in lower case.
    headers: dict[str, str]
    body: bytes
    #: Whether its connection can be used again.
    keeps: bool


@dataclass(frozen=True, slots=True, eq=False)
class _Idle:
    connection: HTTPConnection
    #: In the pool's monotonic seconds.
    since: float


class ConnectionPool:
    """A connection pool for requests to one URL; thread-safe.

    Args:
        url: the whole URL of each request, as ``https://HOST[:PORT]/``.
        limits: time-outs and the number of idle connections.
        make: returns a connection that is not open yet, with its TLS settings.
        monotonic: returns the seconds of a monotonic clock.
    """

    def __init__(
        self, url: str, limits: Limits, make: Callable[[], HTTPConnection], monotonic: Callable[[], float]
    ) -> None:
        parts = urlsplit(url)
        self._url = url
        self._target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        #: TLS does a handshake after TCP's, with a time-out of the same length.
        self._handshakes = 2 if parts.scheme == "https" else 1
        self._limits = limits
        self._make = make
        self._monotonic = monotonic
        #: The most recently used comes last, and is taken first, so that the others can expire.
        self._idle: deque[_Idle] = deque()
        self._sweeper: threading.Thread | None = None
        finalize(self, _close, self._idle)

    def exchange(self, headers: Mapping[str, str], body: bytes) -> Reply:
        """Send one ``POST`` request, once, and return the answer.

        Each wait ends within the limits, and all together within the time that is left for the store call under way
        (`idempotent_tasks.core.retry.time_left`), however slowly the server sends.

        Args:
            headers: the request's, ``content-length`` among them.
            body: the request's.

        Raises:
            botocore.exceptions.ConnectionError, botocore.exceptions.HTTPClientError: the network, TLS or a time-out.
        """
        message = self._message(headers, body)
        left = time_left()
        if left <= 0:
            raise HTTPClientError(error=NoTimeLeftError())
        connection = self._kept() or self._opened(left)
        try:
            timed = _Timed(connection.sock, self._limits.read_timeout)
            # Head and body in one call: a packet for the body would cost both sides another wake-up.
            timed.sendall(message)
            reply = read_reply(timed)
        except BaseException as error:
            # After any error, a soft time limit too: the answer may still be on its way.
            connection.close()
            if isinstance(error, TimeoutError):
                raise ReadTimeoutError(endpoint_url=self._url, error=error) from error
            if isinstance(error, SSLError):
                raise BotoSSLError(endpoint_url=self._url, error=error) from error
            if isinstance(error, OSError | HTTPException):
                raise ConnectionClosedError(endpoint_url=self._url, error=error) from error
            raise
        if reply.keeps:
            self._keep(connection)
        else:
            connection.close()
        return reply

    def sweep(self) -> int:
        """Close the idle connections that expired or that the server closed, and return how many are left."""
        # Each is out of the pool while it is looked at: eventlet refuses two greenlets that wait for one socket.
        for _ in range(len(self._idle)):
            idle = self._oldest()
            if idle is None:
                break
            self._idle.append(idle)
        # What was out of the pool meanwhile was not counted by another thread's `_trim`.
        self._trim()
        return len(self._idle)

    def _message(self, headers: Mapping[str, str], body: bytes) -> bytes:
        lines = [f"POST {self._target} HTTP/1.1"]
        lines += [f"{name}: {value}" for name, value in headers.items()]
        head = "\r\n".join(lines)
        if max(head.count("\n"), head.count("\r")) >= len(lines):
            raise ValueError("a header of the request has more than one line")
        return b"".join((head.encode("latin-1"), b"\r\n\r\n", body))

    def _kept(self) -> HTTPConnection | None:
        """Take the most recently used idle connection that is still open, or None."""
        while True:
            try:
                idle = self._idle.pop()
            except IndexError:
                return None
            if not self._is_expired(idle):
                return idle.connection
            idle.connection.close()

    def _oldest(self) -> _Idle | None:
        """Take the oldest idle connection from the pool, or None, after closing the expired ones before it."""
        while True:
            try:
                idle = self._idle.popleft()
            except IndexError:
                return None
            if not self._is_expired(idle):
                return idle
            idle.connection.close()

    def _is_expired(self, idle: _Idle) -> bool:
        sock = idle.connection.sock
        if sock is None or self._monotonic() - idle.since > IDLE_SECONDS:
            return True
        try:
            # The only thing to be read from an idle connection is its end.
            return wait_for_read(sock, timeout=0)
        except (OSError, ValueError):
            # The process ends and closes its sockets.
            return True

    def _keep(self, connection: HTTPConnection) -> None:
        # As long as the others are enough, this is all that closes the oldest ones.
        oldest = self._oldest()
        if oldest is not None:
            self._idle.appendleft(oldest)
        self._idle.append(_Idle(connection, self._monotonic()))
        self._trim()
        self._start_sweeper()

    def _start_sweeper(self) -> None:
        """Start the thread that closes expired connections if more than `IDLE_WITHOUT_SWEEPER` are idle."""
        if len(self._idle) > IDLE_WITHOUT_SWEEPER and self._sweeper is None:
            self._sweeper = threading.Thread(
                target=_sweep, args=(ref(self),), name="idempotency-connections", daemon=True
            )
            try:
                self._sweeper.start()
            except RuntimeError:
                # The interpreter ends, or the system has no thread left.
                self._sweeper = None

    def _trim(self) -> None:
        """Close the oldest idle connections beyond `Limits.max_pool_connections`."""
        most = self._limits.max_pool_connections
        while len(self._idle) > most:
            surplus = self._oldest()
            if surplus is None:
                return
            if len(self._idle) < most:
                # Another thread has taken one meanwhile.
                self._idle.appendleft(surplus)
            else:
                surplus.connection.close()

    def _opened(self, left: float) -> HTTPConnection:
        """Connect within the seconds left."""
        connection = self._make()
        timeout = min(_or_infinite(self._limits.connect_timeout), left / self._handshakes)
        connection.timeout = _or_none(timeout)
        try:
            connection.connect()
        except BaseException as error:
            connection.close()
            translated = self._translated(error)
            if translated is None:
                raise
            raise translated from error
        return connection

    def _translated(self, error: BaseException) -> BotoCoreError | None:
        """Return botocore's error for one that was raised while connecting; None where that is no network error."""
        # The order matters: in an older urllib3 `NewConnectionError` is a subclass of the time-out.
        if isinstance(error, NewConnectionError):
            return EndpointConnectionError(endpoint_url=self._url, error=error)
        if isinstance(error, TimeoutError | URLLib3ConnectTimeoutError):
            return ConnectTimeoutError(endpoint_url=self._url, error=error)
        # urllib3's own `CertificateError` is a `ValueError`.
        if isinstance(error, SSLError | URLLib3SSLError | ValueError):
            return BotoSSLError(endpoint_url=self._url, error=error)
        if isinstance(error, OSError):
            return EndpointConnectionError(endpoint_url=self._url, error=error)
        if isinstance(error, HTTPError):
            return HTTPClientError(error=error)
        return None


class _Timed:
    """A socket on which no wait exceeds the time-out or the time left for the call."""

    def __init__(self, connection: Any, timeout: float | None) -> None:
        self._connection = connection
        self._timeout = _or_infinite(timeout)

    def sendall(self, message: bytes) -> None:
        self._limit()
        self._connection.sendall(message)

    def recv(self, size: int) -> bytes:
        self._limit()
        received: bytes = self._connection.recv(size)
        return received

    def recv_into(self, buffer: Any) -> int:
        self._limit()
        received: int = self._connection.recv_into(buffer)
        return received

    def _limit(self) -> None:
        left = min(self._timeout, time_left())
        if left <= 0:
            raise TimeoutError("no time is left for the answer")
        timeout = _or_none(left)
        # Setting it is a system call.
        if self._connection.gettimeout() != timeout:
            self._connection.settimeout(timeout)


def _or_infinite(timeout: float | None) -> float:
    return math.inf if timeout is None else timeout


def _or_none(timeout: float) -> float | None:
    return None if timeout == math.inf else timeout


def _sweep(pool: "ReferenceType[ConnectionPool]") -> None:
    """Close a pool's expired connections every second, until none are left or the pool is garbage-collected."""
    pause = threading.Event()
    while True:
        connections = pool()
        if connections is None:
            return
        if connections.sweep() == 0:
            connections._sweeper = None  # noqa: SLF001 - its own thread
            # A burst that has ended meanwhile has counted on this one.
            connections._start_sweeper()  # noqa: SLF001
            return
        del connections
        pause.wait(SWEEP_SECONDS)


def _close(connections: Iterable[_Idle]) -> None:
    for idle in connections:
        idle.connection.close()


class _Receiver(Protocol):
    """The socket methods that `read_reply` calls."""

    def recv(self, size: int, /) -> bytes:
        """See `socket.socket.recv`."""
        ...

    def recv_into(self, buffer: Any, /) -> int:
        """See `socket.socket.recv_into`."""
        ...


def is_from_dynamodb(headers: Mapping[str, str]) -> bool:
    """Return whether an answer is DynamoDB's own: its JSON type, a request id, and no trace of a cache.

    Anything else (a gateway's page, a captive portal, a proxy's copy) proves neither the time, nor that the request
    reached DynamoDB.

    Args:
        headers: the answer's, by name in lower case.
    """
    is_json = headers.get("content-type", "").lower().startswith("application/x-amz-json-1.")
    return is_json and bool(headers.get("x-amzn-requestid")) and _IN_BETWEEN.isdisjoint(headers)


def read_reply(connection: _Receiver) -> Reply:
    """Read the HTTP answer to the request just sent on a connection.

    The usual form of DynamoDB's answers is parsed here, any other by `http.client`.

    Raises:
        OSError: the network, TLS or a time-out.
        http.client.HTTPException: the answer is truncated, or is no HTTP.
    """
    received = connection.recv(_AT_ONCE)
    head = _HEAD.match(received)
    if head is not None:
        lines = _LINE.findall(head[2].decode("latin-1"))
        headers = {name.lower(): value.strip(_BLANKS) for name, value in lines}
        missing = _missing(headers, len(received) - head.end())
        if missing is not None and len(headers) == len(lines):
            return Reply(int(head[1]), headers, received[head.end() :] + _rest(connection, missing), keeps=True)
    return _any_reply(received, connection)


def _missing(headers: dict[str, str], had: int) -> int | None:
    """Return how many bytes of a body are still to come; None where ``content-length`` does not say."""
    length = headers.get("content-length", "")
    alone = "transfer-encoding" not in headers and headers.get("connection", "keep-alive").lower() == "keep-alive"
    return int(length) - had if alone and length.isdecimal() and had <= int(length) else None


def _rest(connection: _Receiver, missing: int) -> bytes:
    parts: list[bytes] = []
    while missing:
        part = connection.recv(min(missing, _AT_ONCE))
        if not part:
            raise IncompleteRead(b"".join(parts), missing)
        parts.append(part)
        missing -= len(part)
    return b"".join(parts)


def _any_reply(received: bytes, connection: _Receiver) -> Reply:
    # `HTTPResponse` calls ``makefile`` of a socket.
    source: Any = _Source(received, connection)
    with HTTPResponse(source, method="POST") as response:
        response.begin()
        headers = {name.lower(): value for name, value in response.getheaders()}
        return Reply(response.status, headers, response.read(), keeps=not response.will_close)


class _Source(RawIOBase):
    """A stream of an answer: first the bytes that were received already, then those of the connection."""

    def __init__(self, received: bytes, connection: _Receiver) -> None:
        self._received = received
        self._connection = connection

    def makefile(self, _mode: str) -> BufferedReader:
        return BufferedReader(self)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any, /) -> int:
        if not self._received:
            return self._connection.recv_into(buffer)
        room = memoryview(buffer)
        part, self._received = self._received[: len(room)], self._received[len(room) :]
        room[: len(part)] = part
        return len(part)
