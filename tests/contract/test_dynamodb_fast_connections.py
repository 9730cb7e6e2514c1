"""Connections to DynamoDB with either client: kept while they can be, never shared, and closed where one went wrong."""

import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import boto3
import pytest
from botocore.config import Config

from idempotent_tasks import StoreUnavailableError
from idempotent_tasks.stores.dynamodb.client import Connection, Refused, Succeeded
from tests.support.canned import JSON, Asked, Canned, Said, page, the_key_asked
from tests.support.fast_path import ask
from tests.support.guarding import Interrupt

#: Longer than any of these tests takes, in seconds.
LONG_SECONDS = 20.0
SHORT_SECONDS = 0.2
CHUNKED = ("Transfer-Encoding", "chunked")
THREADS = 8


@pytest.fixture
def connect(canned: Canned, session: boto3.Session, fast: bool) -> Callable[..., Connection]:
    """Makes connections to the server that says what the test wrote."""
    return lambda **config: Connection(
        endpoint_url=canned.endpoint, session=session, config=Config(**config), fast=fast
    )


@pytest.fixture
def connection(connect: Callable[..., Connection], canned: Canned) -> Connection:
    """A connection after its first request: where there is a fast path, it is open."""
    connection = connect()
    ask(connection)
    canned.requests.clear()
    return connection


def key_of(answer: Succeeded | Refused) -> str:
    """Return the key that an answer holds."""
    assert isinstance(answer, Succeeded)
    key: str = answer.answer["Item"]["id"]["S"]
    return key


def chunked(body: bytes) -> bytes:
    """Return an answer in two chunks."""
    half = len(body) // 2
    chunks = b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in (body[:half], body[half:], b""))
    return page(chunks, JSON, CHUNKED, sized=False)


class TestKept:
    """One after another."""

    def test_calls_in_a_row_share_one(self, connection: Connection, canned: Canned) -> None:
        """No call connects that finds a connection open."""
        assert [key_of(ask(connection, f"{number}")) for number in range(5)] == ["0", "1", "2", "3", "4"]
        assert len(canned.ports()) == 5
        assert len(set(canned.ports())) == 1

    def test_one_that_the_server_closed(self, connection: Connection, canned: Canned, fast: bool) -> None:
        """A server that closes what is idle costs another connection, no error."""
        canned.answer = lambda asked: Said(page(the_key_asked(asked), JSON), ends=True)
        for number in range(3):
            assert key_of(ask(connection, f"{number}")) == f"{number}"
            canned.wait_for_open(0)
        assert len(set(canned.ports())) == 3

    def test_one_that_the_server_is_about_to_close(self, connection: Connection, canned: Canned) -> None:
        """``Connection: close`` is believed, also where the connection is still open at the next call."""
        canned.answer = lambda asked: Said(page(the_key_asked(asked), JSON, ("Connection", "close")))
        for number in range(3):
            assert key_of(ask(connection, f"{number}")) == f"{number}"
        assert len(set(canned.ports())) == 3

    def test_an_answer_without_a_length(self, connection: Connection, canned: Canned) -> None:
        """It ends with its connection, and the next call opens another."""
        canned.answer = lambda asked: Said(page(the_key_asked(asked), JSON, sized=False), ends=True)
        assert [key_of(ask(connection, f"{number}")) for number in range(3)] == ["0", "1", "2"]
        assert len(set(canned.ports())) == 3

    def test_an_answer_in_chunks(self, connection: Connection, canned: Canned) -> None:
        """It is put together, and the connection goes on."""
        canned.answer = lambda asked: Said(chunked(the_key_asked(asked)))
        assert [key_of(ask(connection, f"{number}")) for number in range(3)] == ["0", "1", "2"]
        assert len(set(canned.ports())) == 1

    @pytest.mark.parametrize("keepalive", [True, False])
    def test_keep_alive(
        self, connect: Callable[..., Connection], keepalive: bool, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """TCP itself asks whether the other side still lives, unless the config says otherwise; nothing is delayed."""
        options: list[tuple[Any, ...]] = []
        set_option = socket.socket.setsockopt

        def noted(self: socket.socket, *option: Any) -> None:
            options.append(option)
            set_option(self, *option)

        connection = connect(tcp_keepalive=keepalive)
        ask(connection)
        monkeypatch.setattr(socket.socket, "setsockopt", noted)
        connection.client_of_this_process().close()
        ask(connection)
        assert ((socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1) in options) is keepalive
        assert (socket.IPPROTO_TCP, socket.TCP_NODELAY, 1) in options


class TestThreads:
    """Many at a time."""

    def test_no_two_share_one(self, connection: Connection, canned: Canned) -> None:
        """Each has its own connection while it waits, and gets its own answer."""
        assert self._asked_at_once(connection, canned) == [f"{number}" for number in range(THREADS)]
        assert len(set(canned.ports())) == THREADS

    def test_no_more_are_kept_than_the_config_says(
        self, connect: Callable[..., Connection], canned: Canned, fast: bool
    ) -> None:
        """Those beyond ``max_pool_connections`` are closed after use."""
        connection = connect(max_pool_connections=3)
        ask(connection)
        self._asked_at_once(connection, canned)
        canned.wait_for_open(3)

    def test_a_burst_of_first_requests_leaves_none_of_boto3s(
        self, connect: Callable[..., Connection], canned: Canned, fast: bool
    ) -> None:
        """Where boto3 has nothing more to send, nobody would look after its connections."""
        connection = connect()
        self._asked_at_once(connection, canned)
        canned.wait_for_open(0 if fast else THREADS)

    def _asked_at_once(self, connection: Connection, canned: Canned) -> list[str]:
        together = threading.Barrier(THREADS)

        def answer(asked: Asked) -> Said:
            together.wait(LONG_SECONDS)
            return Said(page(the_key_asked(asked), JSON))

        canned.answer = answer
        with ThreadPoolExecutor(THREADS) as pool:
            return list(pool.map(lambda number: key_of(ask(connection, f"{number}")), range(THREADS)))


class TestInterrupted:
    """What somebody raises into a thread that waits for its answer."""

    @pytest.fixture(autouse=True)
    def interrupt_on_signal(self) -> Iterator[None]:
        """Raise `Interrupt` in this thread on SIGUSR1, as Celery's soft time limits are raised."""

        def interrupt(*_: object) -> None:
            raise Interrupt

        before = signal.signal(signal.SIGUSR1, interrupt)
        yield
        signal.signal(signal.SIGUSR1, before)

    def test_its_late_answer_is_nobody_elses(self, connection: Connection, canned: Canned) -> None:
        """The next call asks over another connection and gets its own answer."""
        asked_again = threading.Event()

        def answer(asked: Asked) -> Said:
            if asked.client_port == canned.ports()[0]:
                os.kill(os.getpid(), signal.SIGUSR1)
                asked_again.wait(LONG_SECONDS)
            asked_again.set()
            return Said(page(the_key_asked(asked), JSON))

        canned.answer = answer
        with pytest.raises(Interrupt):
            ask(connection, "interrupted")
        assert key_of(ask(connection, "next")) == "next"
        assert len(set(canned.ports())) == 2


class TestTimeouts:
    """Servers that say nothing hold nobody longer than the config allows."""

    def test_read(self, connect: Callable[..., Connection], canned: Canned) -> None:
        """Neither before the answer nor in the middle of it; both clients say the same of it."""
        connection = connect(read_timeout=SHORT_SECONDS, connect_timeout=LONG_SECONDS)
        ask(connection)
        forever, begun = threading.Event(), page(b"{}", JSON)[:-1]

        def hold(_: Asked) -> Said:
            forever.wait(LONG_SECONDS)
            return Said(b"", ends=True)

        def stop_halfway(asked: Asked) -> Said:
            return Said(begun) if len(canned.requests) % 2 else hold(asked)

        canned.requests.clear()
        for answer in (hold, stop_halfway):
            canned.answer = answer
            with pytest.raises(StoreUnavailableError, match="ReadTimeoutError"):
                ask(connection)
        forever.set()

    def test_connect(self, session: boto3.Session, fast: bool) -> None:
        """A host that answers no packet: a full queue of connections that nobody accepts is the same."""
        config = Config(connect_timeout=SHORT_SECONDS, read_timeout=LONG_SECONDS)
        with socket.create_server(("127.0.0.1", 0), backlog=0) as deaf, socket.socket() as first:
            first.connect(deaf.getsockname())
            endpoint = f"http://127.0.0.1:{deaf.getsockname()[1]}"
            connection = Connection(endpoint_url=endpoint, session=session, config=config, fast=fast)
            for _ in range(2):
                begun = time.monotonic()
                with pytest.raises(StoreUnavailableError, match="ConnectTimeoutError"):
                    ask(connection)
                assert time.monotonic() - begun < LONG_SECONDS / 10


class TestBroken:
    """What goes wrong on the way is the same error with either client, and the next call is a new one."""

    @pytest.mark.parametrize(
        "answer",
        [b"", b"no HTTP at all\r\n\r\n", chunked(b"{}")[:-7]],
        ids=["nothing", "garbage", "half-chunked"],
    )
    def test_each_breach(self, connection: Connection, canned: Canned, answer: bytes) -> None:
        """The server ends the connection before its answer is whole."""
        canned.answer = lambda _: Said(answer, ends=True)
        with pytest.raises(StoreUnavailableError, match="got no answer"):
            ask(connection)
        canned.answer = lambda asked: Said(page(the_key_asked(asked), JSON))
        assert key_of(ask(connection, "next")) == "next"
        assert len(set(canned.ports())) == 2
