"""The TCP proxy itself: one that does not cut, or does not heal, would make every test above it worthless."""

import socket
import threading
from collections.abc import Iterator
from contextlib import suppress

import pytest

from tests.testbed.tcp import Tcp, tcp_to

TIMEOUT_SECONDS = 10.0


@pytest.fixture
def echo() -> Iterator[Tcp]:
    """A proxy in front of a server that sends back what it gets."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=_serve, args=(listener,), daemon=True)
        thread.start()
        with tcp_to(f"tcp://{listener.getsockname()[0]}:{listener.getsockname()[1]}") as proxy:
            yield proxy
        listener.shutdown(socket.SHUT_RDWR)
        thread.join(TIMEOUT_SECONDS)


def test_bytes_pass_both_ways_until_the_cut(echo: Tcp) -> None:
    """A connection carries bytes both ways; `cut` ends it, and a new one carries bytes again."""
    with _connect(echo) as client:
        assert _ask(client, b"one") == b"one"
        assert echo.cut() == 1
        assert _ask(client, b"two") == b""
    with _connect(echo) as client:
        assert _ask(client, b"three") == b"three"


def test_refusal_turns_only_new_connections_away(echo: Tcp) -> None:
    """`refuse` leaves an open connection alone and closes each new one, until `heal`."""
    with _connect(echo) as before:
        assert _ask(before, b"one") == b"one"
        echo.refuse()
        with _connect(echo) as refused:
            assert _ask(refused, b"two") == b""
        assert _ask(before, b"three") == b"three"
    echo.heal()
    with _connect(echo) as after:
        assert _ask(after, b"four") == b"four"


def test_what_is_swallowed_never_arrives(echo: Tcp) -> None:
    """`swallow` lets clients believe that they sent something; after `heal` a connection carries bytes again."""
    with _connect(echo) as client:
        assert _ask(client, b"one") == b"one"
        echo.swallow()
        client.sendall(b"two")
        client.settimeout(0.2)
        with pytest.raises(TimeoutError):
            client.recv(64)
        echo.heal()
        client.settimeout(TIMEOUT_SECONDS)
        assert _ask(client, b"three") == b"three"


def _connect(proxy: Tcp) -> socket.socket:
    return socket.create_connection(("127.0.0.1", proxy.port), TIMEOUT_SECONDS)


def _ask(client: socket.socket, question: bytes) -> bytes:
    with suppress(ConnectionError):
        client.sendall(question)
        return client.recv(64)
    return b""


def _serve(listener: socket.socket) -> None:
    with suppress(OSError):
        while True:
            connection, _ = listener.accept()
            threading.Thread(target=_echo, args=(connection,), daemon=True).start()


def _echo(connection: socket.socket) -> None:
    with connection, suppress(OSError):
        while chunk := connection.recv(64):
            connection.sendall(chunk)
