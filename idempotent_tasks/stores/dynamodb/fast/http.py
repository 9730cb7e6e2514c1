"""HTTP connections to one place, kept open between requests and used by one thread at a time.

Every failure is raised as botocore's own HTTP client would raise it, so that both are handled alike.
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

from idempotent_tasks.retries import time_left

__all__ = [
    "IDLE_SECONDS",
    "IDLE_WITHOUT_SWEEPER",
    "ConnectionPool",
    "Limits",
    "Receiver",
    "Reply",
    "is_from_dynamodb",
    "read_reply",
]

#: An idle connection that is older is closed: NAT gateways and load balancers of AWS forget one after 350 s.
#: https://docs.aws.amazon.com/vpc/latest/userguide/nat-gateway-basics.html
IDLE_SECONDS: Final = 300.0
#: Where a burst leaves more idle connections than this, a thread looks after them until no more are left.
IDLE_WITHOUT_SWEEPER: Final = 2
#: How often that thread looks, in seconds.
SWEEP_SECONDS: Final = 1.0
#: What a cache or a gateway adds to an answer that passes through it, or that it gives in the server's place.
#: https://www.rfc-editor.org/rfc/rfc9111#section-5.1, https://www.rfc-editor.org/rfc/rfc9110#section-7.6.3
_IN_BETWEEN: Final = frozenset({"age", "via", "x-cache"})

#: Bytes asked for at a time.  Most answers have some hundred; one with an item has up to 400 KB.
_AT_ONCE: Final = 65_536
#: A status whose answers have a body, and one line for each header (RFC 9112).
_HEAD: Final = re.compile(rb"HTTP/1\.1 (200|[45]\d\d) [^\r\n]*\r\n((?:[!-9;-~]+:[^\r\n]*\r\n)+)\r\n")
_LINE: Final = re.compile(r"([!-9;-~]+):[ \t]*([^\r\n]*?)[ \t]*\r\n")


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What a connection is allowed, as in ``botocore.config.Config``."""

    #: Seconds until it must stand, and seconds for which the server may say nothing.
    connect_timeout: float | None
    read_timeout: float | None
    #: How many are kept open while nobody uses them.
    max_pool_connections: int


@dataclass(frozen=True, slots=True)
class Reply:
    """The answer to one request."""

    status: int
    #: By name in lower case.
    headers: dict[str, str]
    body: bytes
    #: Whether its connection can have another request.
    keeps: bool


@dataclass(frozen=True, slots=True, eq=False)
class _Idle:
    connection: HTTPConnection
    #: By the pool's monotonic time.
    since: float


class ConnectionPool:
    """Connections to the server of one URL, whose path and query all requests share.

    Args:
        url: where to, as ``https://HOST[:PORT]/``.
        limits: what each connection is allowed.
        make: returns a connection that is not open yet, with all that it needs to know of trust.
        monotonic: returns seconds, by a clock that nobody sets.
    """

    def __init__(
        self, url: str, limits: Limits, make: Callable[[], HTTPConnection], monotonic: Callable[[], float]
    ) -> None:
        parts = urlsplit(url)
        self._url = url
        self._target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        #: TLS has its own handshake after TCP's, and a time-out of the same length for it.
        self._handshakes = 2 if parts.scheme == "https" else 1
        self._limits = limits
        self._make = make
        self._monotonic = monotonic
        #: The one used last comes last, and is taken first: the others may grow old and be closed.
        self._idle: deque[_Idle] = deque()
        self._sweeper: threading.Thread | None = None
        finalize(self, _close, self._idle)

    def exchange(self, headers: Mapping[str, str], body: bytes) -> Reply:
        """Send one ``POST`` request, once, and return the answer.

        Connecting, sending and reading take no longer than the limits allow, nor together longer than the store call
        under way may still take (`idempotent_tasks.retries.time_left`), however slowly the server sends.

        Args:
            headers: of the request, ``content-length`` among them.
            body: of the request.

        Raises:
            botocore.exceptions.ConnectionError, botocore.exceptions.HTTPClientError: the network, TLS or a time-out.
        """
        message = self._message(headers, body)
        connection = self._kept() or self._opened()
        try:
            timed = _Timed(connection.sock, self._limits.read_timeout)
            # At once: a body in a packet of its own would cost both sides another wake-up.
            timed.sendall(message)
            reply = read_reply(timed)
        except BaseException as error:
            # Whatever came in between, a soft time limit too: the answer may still be on its way.
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
        """Close the idle connections that the server closed or that are too old, and return how many are left."""
        # Each is out of the pool while it is looked at: no two threads may wait for one, nor greenlets of eventlet's.
        for _ in range(len(self._idle)):
            idle = self._oldest()
            if idle is None:
                break
            self._idle.append(idle)
        # What was out of the pool while it was looked at was not counted.
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
        """Return a connection that nobody uses, if one is left that the server has not closed."""
        while True:
            try:
                idle = self._idle.pop()
            except IndexError:
                return None
            if not self._is_spent(idle):
                return idle.connection
            idle.connection.close()

    def _oldest(self) -> _Idle | None:
        """Take the oldest connection that is not spent, and close those that are older."""
        while True:
            try:
                idle = self._idle.popleft()
            except IndexError:
                return None
            if not self._is_spent(idle):
                return idle
            idle.connection.close()

    def _is_spent(self, idle: _Idle) -> bool:
        sock = idle.connection.sock
        if sock is None or self._monotonic() - idle.since > IDLE_SECONDS:
            return True
        try:
            # There is nothing to be read from an idle one but its end.
            return wait_for_read(sock, timeout=0)
        except (OSError, ValueError):
            # The process ends, and closes what it has.
            return True

    def _keep(self, connection: HTTPConnection) -> None:
        # Nobody else comes to the oldest ones as long as the others are enough.
        oldest = self._oldest()
        if oldest is not None:
            self._idle.appendleft(oldest)
        self._idle.append(_Idle(connection, self._monotonic()))
        self._trim()
        if len(self._idle) > IDLE_WITHOUT_SWEEPER and self._sweeper is None:
            self._sweeper = threading.Thread(
                target=_sweep, args=(ref(self),), name="idempotency-connections", daemon=True
            )
            try:
                self._sweeper.start()
            except RuntimeError:
                # The interpreter ends, or the system has no more threads.
                self._sweeper = None

    def _trim(self) -> None:
        """Close the oldest connections beyond the limit."""
        most = self._limits.max_pool_connections
        while len(self._idle) > most:
            surplus = self._oldest()
            if surplus is None:
                return
            if len(self._idle) < most:
                # Another thread has taken one at the same moment.
                self._idle.appendleft(surplus)
            else:
                surplus.connection.close()

    def _opened(self) -> HTTPConnection:
        left = time_left()
        if left <= 0:
            raise ConnectTimeoutError(endpoint_url=self._url, error="no time is left")
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
        """Return the error that botocore raises for one of connecting; None for one that is not of the network."""
        # An older urllib3 takes an error of the network for a time-out: the order matters.
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
    """An open connection, on which no wait is longer than one time-out, nor than the time that the call has left."""

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
        # Setting it is a call of the system's.
        if self._connection.gettimeout() != timeout:
            self._connection.settimeout(timeout)


def _or_infinite(timeout: float | None) -> float:
    return math.inf if timeout is None else timeout


def _or_none(timeout: float) -> float | None:
    return None if timeout == math.inf else timeout


def _sweep(pool: "ReferenceType[ConnectionPool]") -> None:
    """Look after a pool's idle connections until none is left, or nobody has the pool any more."""
    pause = threading.Event()
    while True:
        connections = pool()
        if connections is None:
            return
        if connections.sweep() == 0:
            connections._sweeper = None  # noqa: SLF001 - its own thread
            return
        del connections
        pause.wait(SWEEP_SECONDS)


def _close(connections: Iterable[_Idle]) -> None:
    for idle in connections:
        idle.connection.close()


class Receiver(Protocol):
    """What of a socket is needed to read from it."""

    def recv(self, size: int, /) -> bytes:
        """See `socket.socket.recv`."""
        ...

    def recv_into(self, buffer: Any, /) -> int:
        """See `socket.socket.recv_into`."""
        ...


def is_from_dynamodb(headers: Mapping[str, str]) -> bool:
    """Whether an answer is DynamoDB's own: its JSON, with its id of the request, and from no cache.

    Anything else (a gateway's page, a captive portal, a proxy's copy) proves nothing: neither the time, nor that the
    request reached DynamoDB.

    Args:
        headers: of the answer, by name in lower case.
    """
    is_json = headers.get("content-type", "").lower().startswith("application/x-amz-json-1.")
    return is_json and bool(headers.get("x-amzn-requestid")) and _IN_BETWEEN.isdisjoint(headers)


def read_reply(connection: Receiver) -> Reply:
    """Read the answer to the one request that was sent over a connection and has none.

    Raises:
        OSError: the network, TLS or a time-out.
        http.client.HTTPException: it ended too soon, or is no HTTP.
    """
    received = connection.recv(_AT_ONCE)
    head = _HEAD.match(received)
    if head is not None:
        lines = _LINE.findall(head[2].decode("latin-1"))
        headers = {name.lower(): value for name, value in lines}
        missing = _missing(headers, len(received) - head.end())
        if missing is not None and len(headers) == len(lines):
            return Reply(int(head[1]), headers, received[head.end() :] + _rest(connection, missing), keeps=True)
    return _any_reply(received, connection)


def _missing(headers: dict[str, str], had: int) -> int | None:
    """Return how many bytes a body lacks, or None if that takes more to tell than its length."""
    length = headers.get("content-length", "")
    alone = "transfer-encoding" not in headers and headers.get("connection", "keep-alive").lower() == "keep-alive"
    return int(length) - had if alone and length.isdecimal() and had <= int(length) else None


def _rest(connection: Receiver, missing: int) -> bytes:
    parts: list[bytes] = []
    while missing:
        part = connection.recv(min(missing, _AT_ONCE))
        if not part:
            raise IncompleteRead(b"".join(parts), missing)
        parts.append(part)
        missing -= len(part)
    return b"".join(parts)


def _any_reply(received: bytes, connection: Receiver) -> Reply:
    # It wants a socket to make a file of.
    source: Any = _Source(received, connection)
    with HTTPResponse(source, method="POST") as response:
        response.begin()
        headers = {name.lower(): value for name, value in response.getheaders()}
        return Reply(response.status, headers, response.read(), keeps=not response.will_close)


class _Source(RawIOBase):
    """What was received of an answer, and then what its connection still gives."""

    def __init__(self, received: bytes, connection: Receiver) -> None:
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
