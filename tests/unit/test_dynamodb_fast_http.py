"""Connections that are kept open: how long a request may take, and what becomes of those that nobody uses."""

import gc
import math
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import pytest
from botocore.exceptions import HTTPClientError, ReadTimeoutError

from idempotent_tasks.core.retry import limited
from idempotent_tasks.stores.dynamodb.fast import http
from idempotent_tasks.stores.dynamodb.fast.http import IDLE_SECONDS, IDLE_WITHOUT_SWEEPER, ConnectionPool, Limits
from idempotent_tasks.testing import FakeClock
from tests.testbed.waiting import wait_for

HEADERS = {"Host": "localhost", "content-length": "2"}
ANSWER = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}"
#: Longer than any of these tests takes, in seconds.
LONG_SECONDS = 20.0


class Line:
    """A connection whose other end is a thread that answers each request."""

    def __init__(self, waits: list[Callable[[], object]]) -> None:
        self.timeout: float | None = None
        self.timeouts: list[float | None] = []
        self.requests = 0
        self._waits = waits
        self.sock: Any = None

    def connect(self) -> None:
        """Open it."""
        self.sock, self._server = socket.socketpair()
        threading.Thread(target=self._answer, daemon=True).start()

    def _answer(self) -> None:
        with self._server, suppress(ConnectionError):
            while self._server.recv(10_000):
                self.requests += 1
                for wait in self._waits:
                    wait()
                self._server.sendall(ANSWER)

    def hang_up(self) -> None:
        """End it as a server does."""
        with suppress(OSError):
            self._server.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """End it as a client does."""
        if self.sock is not None:
            self.sock.close()

    def is_closed(self) -> bool:
        """Whether the client has closed its end."""
        return bool(self.sock.fileno() == -1)


class Rig:
    """A pool, its clock and the connections that it has made."""

    def __init__(self, **limits: Any) -> None:
        self.clock = FakeClock()
        self.lines: list[Line] = []
        #: What each answer waits for.
        self.waits: list[Callable[[], object]] = []
        self.dress: Callable[[Line], Any] = lambda line: line
        usual = {"connect_timeout": LONG_SECONDS, "read_timeout": LONG_SECONDS, "max_pool_connections": 50}
        given = Limits(**{**usual, **limits})
        self.pool = ConnectionPool("http://localhost/", given, self._make, self.clock.monotonic)

    def _make(self) -> Any:
        self.lines.append(Line(self.waits))
        return self.dress(self.lines[-1])

    def exchange(self) -> bytes:
        """Send a request and return the body of its answer."""
        return self.pool.exchange(HEADERS, b"{}").body

    def burst(self, number: int) -> None:
        """Leave so many idle connections, as requests at the same time do."""
        together = threading.Barrier(number)
        self.waits.append(lambda: together.wait(LONG_SECONDS))
        threads = [threading.Thread(target=self.exchange) for _ in range(number)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(LONG_SECONDS)
        self.waits.clear()

    def hang_up(self) -> None:
        """End all connections as a server does."""
        for line in self.lines:
            line.hang_up()

    def open(self) -> int:
        """Return how many connections the client has open."""
        return sum(not line.is_closed() for line in self.lines)

    def wait_for_open(self, most: int) -> None:
        """Return when no more than this many are open."""
        wait_for(lambda: self.open() <= most, LONG_SECONDS, lambda: f"{self.open()} connections are open")


@pytest.fixture
def make_rig() -> Iterator[Callable[..., Rig]]:
    """Makes pools whose connections end with the test."""
    lines: list[list[Line]] = []

    def make(**limits: Any) -> Rig:
        rig = Rig(**limits)
        lines.append(rig.lines)
        return rig

    yield make
    for line in (line for made in lines for line in made):
        line.close()


@pytest.fixture
def rig(make_rig: Callable[..., Rig]) -> Rig:
    """A pool with the usual limits."""
    return make_rig()


class TestIdle:
    """Connections that nobody uses."""

    def test_one_is_used_again(self, rig: Rig) -> None:
        """No request connects that finds a connection open."""
        assert [rig.exchange() for _ in range(3)] == [b"{}"] * 3
        assert [line.requests for line in rig.lines] == [3]

    def test_those_that_the_server_closed_are_closed(self, rig: Rig) -> None:
        """After a burst, without a request: they would stay half-closed for the life of the process."""
        for _ in range(2):
            rig.burst(8)
            rig.hang_up()
            rig.wait_for_open(0)

    def test_a_burst_is_swept_that_comes_as_the_sweeper_ends(self, rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
        """It finds a thread that has just seen that none are left."""
        monkeypatch.setattr(http, "SWEEP_SECONDS", 0.01)
        bursts, swept, ended = iter([8]), rig.pool.sweep, threading.Event()

        def sweep() -> int:
            left = swept()
            for number in bursts if left == 0 else ():
                rig.burst(number)
                rig.hang_up()
                ended.set()
            return left

        monkeypatch.setattr(rig.pool, "sweep", sweep)
        rig.burst(8)
        rig.hang_up()
        assert ended.wait(LONG_SECONDS)
        rig.wait_for_open(0)

    def test_few_need_no_thread(self, rig: Rig) -> None:
        """A process that asks one or two things at a time has none for it."""
        before = set(threading.enumerate())
        rig.burst(IDLE_WITHOUT_SWEEPER)
        began = set(threading.enumerate()) - before
        assert "idempotency-connections" not in {thread.name for thread in began}

    def test_a_sweep_closes_the_old_ones(self, rig: Rig) -> None:
        """What a gateway in between may have forgotten."""
        rig.burst(IDLE_WITHOUT_SWEEPER)
        rig.clock.advance(IDLE_SECONDS - 1)
        assert rig.pool.sweep() == IDLE_WITHOUT_SWEEPER
        rig.clock.advance(2)
        assert rig.pool.sweep() == 0
        assert rig.open() == 0

    def test_the_next_request_takes_no_old_one(self, rig: Rig) -> None:
        """And closes those that it meets."""
        rig.burst(IDLE_WITHOUT_SWEEPER)
        rig.clock.advance(IDLE_SECONDS + 1)
        rig.exchange()
        assert len(rig.lines) == IDLE_WITHOUT_SWEEPER + 1
        assert rig.open() == 1

    def test_a_request_closes_what_the_server_closed(self, rig: Rig) -> None:
        """The oldest as well, which no request comes to."""
        rig.burst(IDLE_WITHOUT_SWEEPER)
        rig.hang_up()
        rig.exchange()
        assert rig.open() == 1

    def test_no_more_than_the_limit_are_kept(self, make_rig: Callable[..., Rig]) -> None:
        """Those beyond it are closed after use, or once the sweeper is no longer looking at one."""
        rig = make_rig(max_pool_connections=3)
        rig.burst(8)
        rig.wait_for_open(3)
        assert rig.open() == 3

    def test_the_limit_counts_one_that_a_sweep_looks_at(
        self, make_rig: Callable[..., Rig], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A request meanwhile finds none in the pool, opens one, and leaves it: that is one more than the limit."""
        rig = make_rig(max_pool_connections=1)
        rig.exchange()
        requests = iter([rig.exchange])

        def look() -> float:
            for request in requests:
                request()
            return rig.clock.monotonic()

        monkeypatch.setattr(rig.pool, "_monotonic", look)
        assert rig.pool.sweep() == 1
        assert len(rig.lines) == 2
        assert rig.open() == 1

    def test_a_pool_that_nobody_has_leaves_none(self, make_rig: Callable[..., Rig]) -> None:
        """Nor a thread that keeps it."""
        rig = make_rig()
        rig.burst(8)
        lines = rig.lines
        del rig

        def are_closed() -> bool:
            # The thread may have the pool at this very moment; the pool and its rig are a circle.
            gc.collect()
            return all(line.is_closed() for line in lines)

        wait_for(are_closed, LONG_SECONDS, "connections are open")


class TestTimeLeft:
    """A request takes no longer than the store call that it belongs to."""

    def test_a_server_that_drips(self, rig: Rig) -> None:
        """Each byte comes in time, the answer does not: every wait is cut to what is left at that moment."""
        rig.dress = lambda line: _Dripping(line, rig.clock)
        before = rig.clock.now()
        with limited(rig.clock, 3), pytest.raises(ReadTimeoutError):
            rig.exchange()
        assert rig.clock.now() - before == 3
        assert rig.lines[0].timeouts == [3, 3, 2.5, 2, 1.5, 1, 0.5]
        assert rig.open() == 0

    def test_a_server_that_is_in_time(self, rig: Rig) -> None:
        """The limit of one call is not that of the next one on the same connection."""
        with limited(rig.clock, 3):
            rig.exchange()
        assert rig.lines[0].sock.gettimeout() == 3
        rig.exchange()
        assert len(rig.lines) == 1
        assert rig.lines[0].sock.gettimeout() == LONG_SECONDS

    @pytest.mark.parametrize("left", [0.0, -1.0])
    def test_no_time_at_all(self, rig: Rig, left: float) -> None:
        """Nothing is sent, over a new connection or an old one."""
        with limited(rig.clock, left), pytest.raises(HTTPClientError, match="was not sent"):
            rig.exchange()
        assert not rig.lines
        rig.exchange()
        with limited(rig.clock, left), pytest.raises(HTTPClientError, match="was not sent"):
            rig.exchange()
        assert [line.requests for line in rig.lines] == [1]

    @pytest.mark.parametrize(
        ("url", "left", "timeout"),
        [
            ("http://localhost/", 1.0, 1.0),
            ("https://localhost/", 1.0, 0.5),
            ("https://localhost/", math.inf, LONG_SECONDS),
        ],
        ids=["plain", "tls", "unlimited"],
    )
    def test_connecting(self, make_rig: Callable[..., Rig], url: str, left: float, timeout: float) -> None:
        """TLS may take the time-out of a connection once more."""
        rig = make_rig()
        limits = Limits(connect_timeout=LONG_SECONDS, read_timeout=LONG_SECONDS, max_pool_connections=1)
        pool = ConnectionPool(url, limits, rig._make, rig.clock.monotonic)
        with limited(rig.clock, left):
            pool.exchange(HEADERS, b"{}")
        assert rig.lines[0].timeout == timeout


class _Dripping:
    """A connection, and its socket, on which an answer comes a byte at a time, each after half a second."""

    def __init__(self, line: Line, clock: FakeClock) -> None:
        self.timeout: float | None = None
        self.sock = self
        self._line = line
        self._clock = clock
        self._drops = iter(ANSWER)

    def connect(self) -> None:
        self._line.connect()

    def settimeout(self, seconds: float | None) -> None:
        self._line.timeouts.append(seconds)

    def gettimeout(self) -> None:
        """Have the time-out set for each wait."""

    def sendall(self, _: bytes) -> None:
        """Take the request."""

    def recv(self, _size: int) -> bytes:
        self._clock.advance(0.5)
        return bytes([next(self._drops)])

    def recv_into(self, buffer: Any) -> int:
        buffer[:1] = self.recv(1)
        return 1

    def close(self) -> None:
        self._line.close()
