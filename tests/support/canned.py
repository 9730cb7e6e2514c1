"""An HTTP server that sends the bytes that a test wrote, and knows which connections are open."""

import json
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from email.message import Message
from http.client import parse_headers
from socketserver import StreamRequestHandler, ThreadingTCPServer
from typing import Any

__all__ = ["Asked", "Canned", "Said", "canned_server", "page", "the_key_asked"]

CLOSE_SECONDS = 10.0
JSON = ("Content-Type", "application/x-amz-json-1.0")


@dataclass(frozen=True, slots=True)
class Asked:
    """One request."""

    parameters: dict[str, Any]
    #: The TCP port of the client, which names its connection.
    client_port: int
    #: By name in whatever case.
    headers: Message


@dataclass(frozen=True, slots=True)
class Said:
    """An answer as it goes over the wire, and whether the connection ends with it."""

    answer: bytes
    ends: bool = False


def page(body: bytes, *headers: tuple[str, str], status: int = 200, sized: bool = True) -> bytes:
    """Return an answer with these headers and its length, where ``sized``; with a request's id where it is JSON."""
    headers = (*headers, ("x-amzn-RequestId", "made-up")) if JSON in headers else headers
    length = [("Content-Length", str(len(body)))] if sized else []
    lines = [f"HTTP/1.1 {status} made up", *(f"{name}: {value}" for name, value in (*headers, *length))]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


def the_key_asked(asked: Asked) -> bytes:
    """Return the body of an answer to ``GetItem`` that holds the key that was asked for."""
    return json.dumps({"Item": asked.parameters["Key"]}).encode()


@dataclass
class Canned:
    """What a test says in DynamoDB's place, and what it sees."""

    #: Returns the answer to each request.
    answer: Callable[[Asked], Said] = lambda asked: Said(page(the_key_asked(asked), JSON))
    endpoint: str = ""
    requests: list[Asked] = field(default_factory=list)
    _open: set[int] = field(default_factory=set)
    _changed: threading.Condition = field(default_factory=threading.Condition)

    def say(self, body: bytes, *headers: tuple[str, str], status: int = 200) -> None:
        """Answer every request from now on with this body, which is said to be DynamoDB's JSON."""
        said = Said(page(body, JSON, *headers, status=status))
        self.answer = lambda _: said

    def ports(self) -> list[int]:
        """Return the client's side of the connection of each request, in order."""
        return [asked.client_port for asked in self.requests]

    def wait_for_open(self, number: int) -> None:
        """Return when this many connections are open.

        Raises:
            TimeoutError: there were others all the time.
        """
        with self._changed:
            if not self._changed.wait_for(lambda: len(self._open) == number, CLOSE_SECONDS):
                raise TimeoutError(f"{len(self._open)} connections are open")

    def opened(self, port: int) -> None:
        """Count a connection."""
        with self._changed:
            self._open.add(port)
            self._changed.notify_all()

    def closed(self, port: int) -> None:
        """Count it no longer."""
        with self._changed:
            self._open.discard(port)
            self._changed.notify_all()


@contextmanager
def canned_server() -> Iterator[Canned]:
    """Run such a server for the length of a block."""
    canned = Canned()
    with _Server(canned) as server:
        canned.endpoint = f"http://127.0.0.1:{server.server_address[1]}"
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        try:
            yield canned
        finally:
            server.shutdown()


class _Server(ThreadingTCPServer):
    daemon_threads = True
    # A client's idle connection must not keep the test from ending.
    block_on_close = False
    request_queue_size = 128

    def __init__(self, canned: Canned) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.canned = canned

    def process_request(self, request: Any, client_address: Any) -> None:
        self.canned.opened(client_address[1])
        super().process_request(request, client_address)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        super().process_request_thread(request, client_address)
        # The end of the stream is with the client by now.
        self.canned.closed(client_address[1])


class _Handler(StreamRequestHandler):
    disable_nagle_algorithm = True

    def handle(self) -> None:
        assert isinstance(self.server, _Server)
        canned = self.server.canned
        # A client that gave up an answer closes its end.
        with suppress(ConnectionError):
            while self.rfile.readline():
                headers = parse_headers(self.rfile)
                body = self.rfile.read(int(headers["Content-Length"]))
                asked = Asked(json.loads(body), self.client_address[1], headers)
                canned.requests.append(asked)
                said = canned.answer(asked)
                self.wfile.write(said.answer)
                if said.ends:
                    self.connection.shutdown(socket.SHUT_RDWR)
                    return
