"""A reverse proxy in front of DynamoDB or S3: counts requests, and breaks those selected or a seeded mixture."""

import json
import os
import random
import socket
import struct
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime, parsedate_to_datetime
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from ssl import SSLContext
from typing import Any, Final
from urllib.parse import urlsplit

__all__ = [
    "CLEAR",
    "FAULT_RATES",
    "Answer",
    "Fault",
    "Forward",
    "Request",
    "Weather",
    "Wire",
    "answer",
    "cut",
    "delay",
    "delay_answer",
    "hold",
    "hold_answer",
    "internal_error",
    "lose_answer",
    "refuse",
    "shift_date",
    "show_time",
    "throttle",
    "wire_to",
]

UPSTREAM_SECONDS = 30.0
#: SO_LINGER: closing sends a reset at once.
RESET = struct.pack("ii", 1, 0)


@dataclass(frozen=True, slots=True)
class Request:
    """One request as it came over the wire."""

    #: The DynamoDB operation, such as ``UpdateItem``; of S3 the HTTP method.
    operation: str
    #: Which request of this operation it is, from 1.
    ordinal: int
    #: A DynamoDB request's parameters.
    body: Mapping[str, Any]
    #: The TCP port of the client, which names its connection.
    client_port: int
    #: By name in lower case.
    headers: Mapping[str, str]
    #: What the request line asks for: a whole URL where the client takes the wire for its proxy.
    target: str


@dataclass(frozen=True, slots=True)
class Answer:
    """One answer, from the server or made up by a fault."""

    status: int
    body: bytes
    headers: tuple[tuple[str, str], ...] = ()
    #: Whether the connection is reset in the middle of the body.
    cut: bool = False


#: Passes the request to the server and returns its answer.
Forward = Callable[[], Answer]
#: Decides about one request; None closes the connection without an answer.
Fault = Callable[[Forward], Answer | None]
#: Selects requests by operation and ordinal.
Selector = Callable[[str, int], bool]
#: Returns the fault of one request, or None where the next decider is asked.
Decider = Callable[[Request], Fault | None]


def refuse(_forward: Forward) -> None:
    """Close the connection; the server never sees the request."""


def lose_answer(forward: Forward) -> None:
    """Let the server apply the request, then close the connection without its answer."""
    forward()


def cut(forward: Forward) -> Answer:
    """Let the server apply the request, send the headers and half of the body, then reset the connection."""
    return replace(forward(), cut=True)


def answer(status: int, error: str, message: str = "made up by the wire") -> Fault:
    """Answer with an error of DynamoDB's in the server's place."""
    body = json.dumps({"__type": f"com.amazonaws.dynamodb.v20120810#{error}", "message": message}).encode()
    made_up = Answer(status, body, (("Content-Type", "application/x-amz-json-1.0"), ("x-amzn-RequestId", "made-up")))
    return lambda _forward: made_up


internal_error = answer(500, "InternalServerError")
throttle = answer(400, "ProvisionedThroughputExceededException")


def hold(until: threading.Event, timeout_seconds: float = UPSTREAM_SECONDS) -> Fault:
    """Keep the request back until an event is set, then pass it on; give up like `refuse` after the time."""
    return lambda forward: forward() if until.wait(timeout_seconds) else None


def shift_date(offset_seconds: float) -> Fault:
    """Pass the request on, and move the ``Date`` of the answer: the server's clock is off by this much."""
    offset = timedelta(seconds=offset_seconds)

    def shifted(forward: Forward) -> Answer:
        reply = forward()
        dates = (parsedate_to_datetime(value) for name, value in reply.headers if name.lower() == "date")
        return _dated(reply, next(dates, datetime.now(UTC)) + offset)

    return shifted


def show_time(now: Callable[[], float]) -> Fault:
    """Pass the request on, and put a time (epoch seconds) into the ``Date`` of the answer."""
    return lambda forward: _dated(forward(), datetime.fromtimestamp(int(now()), UTC))


def _dated(reply: Answer, date: datetime) -> Answer:
    others = (pair for pair in reply.headers if pair[0].lower() != "date")
    return replace(reply, headers=(*others, ("Date", format_datetime(date, usegmt=True))))


def delay(seconds: float) -> Fault:
    """Pass the request on after this many seconds."""

    def delayed(forward: Forward) -> Answer:
        time.sleep(seconds)
        return forward()

    return delayed


def delay_answer(seconds: float) -> Fault:
    """Let the server apply the request at once, and pass its answer on after this many seconds."""

    def delayed(forward: Forward) -> Answer:
        reply = forward()
        time.sleep(seconds)
        return reply

    return delayed


def hold_answer(until: threading.Event, timeout_seconds: float = 30.0) -> Fault:
    """Let the server apply the request, and keep its answer back until an event is set; lose it after the time."""

    def held(forward: Forward) -> Answer | None:
        reply = forward()
        return reply if until.wait(timeout_seconds) else None

    return held


#: What `Weather.counts` calls a request that was passed on.
CLEAR: Final = "clear"
#: A rate for each kind of fault: three requests of ten meet one.
FAULT_RATES: Final = dict.fromkeys(("delay", "refuse", "throttle", "internal_error", "lose_answer", "cut"), 0.05)
#: The faults by the kinds of `FAULT_RATES`, but for ``delay``, of which each is another; and of `CLEAR`.
_FAULTS: Final[dict[str, Fault]] = {
    "refuse": refuse,
    "throttle": throttle,
    "internal_error": internal_error,
    "lose_answer": lose_answer,
    "cut": cut,
    CLEAR: lambda forward: forward(),
}


class Weather:
    """A fault for `Wire.break_all` that is another one for each request, or none.

    The decisions are a sequence that the seed determines; which request gets which depends on the order of arrival.

    Args:
        seed: the same seed gives the same sequence.
        rates: the part of the requests, from 0 to 1, that meets each kind: those of `FAULT_RATES` and of ``more``.
        delay_seconds: the longest ``delay``; each is random.
        more: further faults by kind.
    """

    def __init__(
        self,
        seed: int,
        rates: Mapping[str, float] = FAULT_RATES,
        delay_seconds: float = 0.5,
        more: Mapping[str, Fault] | None = None,
    ) -> None:
        self._faults = {**_FAULTS, **(more or {})}
        unknown = rates.keys() - FAULT_RATES.keys() - self._faults.keys()
        assert not unknown, f"no fault is called {unknown}"
        assert sum(rates.values()) <= 1, f"rates above 1 altogether: {rates}"
        #: How many requests met each kind, and `CLEAR`.
        self.counts: Counter[str] = Counter()
        self._random = random.Random(seed)
        self._kinds = [*rates, CLEAR]
        self._weights = [*rates.values(), 1 - sum(rates.values())]
        self._delay_seconds = delay_seconds
        self._lock = threading.Lock()

    def __call__(self, forward: Forward) -> Answer | None:
        """Decide about one request."""
        _, fault = self.choose()
        return fault(forward)

    def choose(self) -> tuple[str, Fault]:
        """Return the next decision, counted: the kind and the fault itself."""
        with self._lock:
            kind = self._random.choices(self._kinds, self._weights)[0]
            # Drawn for every request, so that a delay does not shift the decisions after it.
            pause = self._random.uniform(0, self._delay_seconds)
            self.counts[kind] += 1
        return kind, delay(pause) if kind == "delay" else self._faults[kind]


@dataclass
class Wire:
    """What a test sees and decides of the traffic."""

    upstream: str
    #: Proves to clients who it is, where they are to speak TLS.
    context: SSLContext | None = None
    endpoint: str = ""
    requests: list[Request] = field(default_factory=list)
    _ordinals: dict[str, int] = field(default_factory=dict)
    _deciders: list[Decider] = field(default_factory=list)
    _outage: Fault | None = None
    _server: "_Server | None" = None
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def operations(self) -> list[str]:
        """Return the operations seen since the last `clear`, in the order of their arrival."""
        with self._lock:
            return [request.operation for request in self.requests]

    def clear(self) -> None:
        """Forget the requests, begin their ordinals at 1 again, and mend every fault."""
        with self._lock:
            self.requests.clear()
            self._ordinals.clear()
            self._deciders.clear()

    def decide_by(self, decider: Decider) -> None:
        """Let a function that sees the whole request choose its fault; the first that returns one decides."""
        with self._lock:
            self._deciders.append(decider)

    def break_when(self, selector: Selector, fault: Fault) -> None:
        """Apply a fault to each request that the selector picks; the first match decides."""
        self.decide_by(lambda request: fault if selector(request.operation, request.ordinal) else None)

    def break_nth(self, operation: str, ordinal: int, fault: Fault) -> None:
        """Apply a fault to one request: the ordinal counts from 1 since the last `clear`."""
        self.break_when(lambda name, nth: (name, nth) == (operation, ordinal), fault)

    def break_all(self, fault: Fault) -> None:
        """Apply a fault to every request from now on."""
        self.break_when(lambda _operation, _ordinal: True, fault)

    def heal(self) -> None:
        """Take every fault away; the requests seen stay."""
        with self._lock:
            self._deciders.clear()

    @contextmanager
    def outage(self, fault: Fault = refuse) -> Iterator[None]:
        """Let every request of a block fail, whatever other faults there are; they and the counts stay."""
        self._outage = fault
        try:
            yield
        finally:
            self._outage = None

    @contextmanager
    def unplugged(self) -> Iterator[None]:
        """Have nobody listen for the length of a block: open connections end, new ones are refused; the port stays."""
        port = self._close()
        # The bound socket keeps the port from being anybody else's, a client's own outgoing one included.
        with socket.socket() as placeholder:
            placeholder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            placeholder.bind(("127.0.0.1", port))
            try:
                yield
            finally:
                self._listen(port)

    def admit(self, operation: str, body: bytes, handler: BaseHTTPRequestHandler) -> Fault:
        """Write one request, with its body as JSON, down and return what decides about it."""
        headers = {name.lower(): value for name, value in handler.headers.items()}
        sent = json.loads(body or b"{}"), handler.client_address[1], headers, handler.path
        with self._lock:
            ordinal = self._ordinals[operation] = self._ordinals.get(operation, 0) + 1
            request = Request(operation, ordinal, *sent)
            self.requests.append(request)
            chosen = filter(None, (decide(request) for decide in self._deciders))
            return self._outage or next(chosen, lambda forward: forward())

    def _listen(self, port: int = 0) -> None:
        self._server = server = _Server(self, port)
        self.endpoint = f"{'https' if self.context else 'http'}://127.0.0.1:{server.server_port}"
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()

    def _close(self) -> int:
        server, self._server = self._server, None
        assert server is not None, "the wire is unplugged already"
        server.shutdown()
        server.server_close()
        server.hang_up()
        return server.server_port


@contextmanager
def wire_to(upstream: str, context: SSLContext | None = None) -> Iterator[Wire]:
    """Run a proxy in front of an endpoint URL for the length of a block; it speaks TLS where a context is given."""
    wire = Wire(upstream, context)
    wire._listen()
    try:
        yield wire
    finally:
        wire._close()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    # A held request must not keep the test from ending.
    block_on_close = False
    request_queue_size = 128

    def __init__(self, wire: Wire, port: int) -> None:
        super().__init__(("127.0.0.1", port), _Handler)
        self.wire = wire
        if wire.context is not None:
            self.socket = wire.context.wrap_socket(self.socket, server_side=True)
        self._connections: set[socket.socket] = set()

    def process_request(self, request: Any, client_address: Any) -> None:
        self._connections.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        self._connections.discard(request)
        super().shutdown_request(request)

    def hang_up(self) -> None:
        for connection in list(self._connections):
            # It may be gone by itself at this moment.
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def handle_error(self, request: Any, client_address: Any) -> None:
        # A client that was killed, or gave up, while its answer was on the way is what these tests do.
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def do_POST(self) -> None:
        assert isinstance(self.server, _Server)
        wire = self.server.wire
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        operation = self.headers.get("X-Amz-Target", "").rpartition(".")[2]
        decide = wire.admit(operation or self.command, body if operation else b"", self)
        reply = decide(lambda: self._forward(wire.upstream, body))
        if reply is None:
            self.close_connection = True
        else:
            self._send(reply)

    do_GET = do_HEAD = do_PUT = do_POST  # noqa: N815 - named by http.server

    def _forward(self, upstream: str, body: bytes) -> Answer:
        # A connection for each request: a kept one that the server closes would need a second try, and a count of two.
        connection = HTTPConnection(urlsplit(upstream).netloc, timeout=UPSTREAM_SECONDS)
        try:
            path = urlsplit(self.path)._replace(scheme="", netloc="").geturl()
            connection.request(self.command, path, body, dict(self.headers.items()))
            reply = connection.getresponse()
            return Answer(reply.status, reply.read(), tuple(reply.getheaders()))
        finally:
            connection.close()

    def _send(self, reply: Answer) -> None:
        self.send_response_only(reply.status)
        for name, value in reply.headers:
            if name.lower() not in {"connection", "content-length", "transfer-encoding"}:
                self.send_header(name, value)
        self.send_header("Content-Length", str(len(reply.body)))
        self.end_headers()
        self.wfile.write(reply.body[: len(reply.body) // 2] if reply.cut else reply.body)
        if reply.cut:
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
            # Closed here, because socketserver would end the stream politely first.
            os.close(self.connection.detach())
            self.close_connection = True

    def log_message(self, *_args: object) -> None:
        pass
