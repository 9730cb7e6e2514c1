"""Answers to HTTP requests, read off their connection: DynamoDB's usual form at once, any other by `http.client`."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from http.client import HTTPResponse, IncompleteRead
from io import BufferedReader, RawIOBase
from typing import Any, Final, Protocol

__all__ = ["Receiver", "Reply", "is_dynamodbs", "read_reply"]

#: What a cache or a gateway adds to an answer that passes through it, or that it gives in the server's place.
#: https://www.rfc-editor.org/rfc/rfc9111#section-5.1, https://www.rfc-editor.org/rfc/rfc9110#section-7.6.3
_IN_BETWEEN: Final = frozenset({"age", "via", "x-cache"})

#: Bytes asked for at a time.  Most answers have some hundred; one with an item has up to 400 KB.
_AT_ONCE: Final = 65_536
#: A status whose answers have a body, and one line for each header (RFC 9112).
_HEAD: Final = re.compile(rb"HTTP/1\.1 (200|[45]\d\d) [^\r\n]*\r\n((?:[!-9;-~]+:[^\r\n]*\r\n)+)\r\n")
_LINE: Final = re.compile(r"([!-9;-~]+):[ \t]*([^\r\n]*?)[ \t]*\r\n")


@dataclass(frozen=True, slots=True)
class Reply:
    """The answer to one request."""

    status: int
    #: By name in lower case.
    headers: dict[str, str]
    body: bytes
    #: Whether its connection can have another request.
    keeps: bool


class Receiver(Protocol):
    """What of a socket is needed to read from it."""

    def recv(self, size: int, /) -> bytes:
        """See `socket.socket.recv`."""
        ...

    def recv_into(self, buffer: Any, /) -> int:
        """See `socket.socket.recv_into`."""
        ...


def is_dynamodbs(headers: Mapping[str, str]) -> bool:
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
