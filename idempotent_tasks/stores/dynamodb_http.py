"""HTTP connections to one place, kept open between requests and used by one thread at a time.

Every failure is raised as botocore's own HTTP client would raise it, so that both are handled alike.
"""

import socket
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from ssl import SSLContext, SSLError
from typing import Any, Final
from urllib.parse import urlsplit
from weakref import finalize

from botocore.exceptions import ConnectionClosedError, ConnectTimeoutError, EndpointConnectionError, ReadTimeoutError
from botocore.exceptions import SSLError as BotoSSLError
from urllib3.util import wait_for_read

from idempotent_tasks.stores.dynamodb_reply import Reply, read_reply

__all__ = ["KeptConnections", "Limits"]

_CLASSES: Final = {"http": HTTPConnection, "https": HTTPSConnection}


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What a connection is allowed, as in ``botocore.config.Config``."""

    #: Seconds until it must stand, and seconds for which the server may say nothing.
    connect_timeout: float | None
    read_timeout: float | None
    tcp_keepalive: bool
    #: How many are kept open while nobody uses them.
    max_pool_connections: int


class KeptConnections:
    """Connections to the server of one URL, whose path and query all requests share.

    Args:
        url: where to, as ``https://HOST[:PORT]/``.
        limits: what each connection is allowed.
        context: proves the server's identity; for ``https`` only.
    """

    def __init__(self, url: str, limits: Limits, context: SSLContext | None) -> None:
        parts = urlsplit(url)
        self._url = url
        self._target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        self._place: tuple[str, int | None] = (parts.hostname or "", parts.port)
        self._class = _CLASSES[parts.scheme]
        self._options: dict[str, Any] = {} if context is None else {"context": context}
        self._limits = limits
        #: The one used last comes first: the others may grow old and be closed.
        self._idle: deque[HTTPConnection] = deque()
        finalize(self, _close, self._idle)

    def exchange(self, headers: Mapping[str, str], body: bytes) -> Reply:
        """Send one ``POST`` request, once, and return the answer.

        Args:
            headers: of the request, ``content-length`` among them.
            body: of the request.

        Raises:
            botocore.exceptions.ConnectionError, botocore.exceptions.HTTPClientError: the network, TLS or a time-out.
        """
        message = self._message(headers, body)
        connection = self._kept() or self._opened()
        try:
            # At once: a body in a packet of its own would cost both sides another wake-up.
            connection.sock.sendall(message)
            reply = read_reply(connection.sock)
        except BaseException as error:
            # Whatever came in between, a soft time limit too: the answer may still be on its way.
            connection.close()
            if isinstance(error, TimeoutError):
                raise ReadTimeoutError(endpoint_url=self._url, error=error) from error
            if isinstance(error, OSError | HTTPException):
                raise ConnectionClosedError(endpoint_url=self._url, error=error) from error
            raise
        if reply.keeps and len(self._idle) < self._limits.max_pool_connections:
            self._idle.append(connection)
        else:
            connection.close()
        return reply

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
                connection = self._idle.pop()
            except IndexError:
                return None
            # There is nothing to be read from an idle one but its end.
            if not wait_for_read(connection.sock, timeout=0):
                return connection
            connection.close()

    def _opened(self) -> HTTPConnection:
        host, port = self._place
        connection: HTTPConnection = self._class(host, port, timeout=self._limits.connect_timeout, **self._options)
        try:
            connection.connect()
        except BaseException as error:
            connection.close()
            if isinstance(error, TimeoutError):
                raise ConnectTimeoutError(endpoint_url=self._url, error=error) from error
            if isinstance(error, SSLError):
                raise BotoSSLError(endpoint_url=self._url, error=error) from error
            if isinstance(error, OSError):
                raise EndpointConnectionError(endpoint_url=self._url, error=error) from error
            raise
        connection.sock.settimeout(self._limits.read_timeout)
        if self._limits.tcp_keepalive:
            connection.sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        return connection


def _close(connections: Iterable[HTTPConnection]) -> None:
    for connection in connections:
        connection.close()
