"""A TCP proxy in front of a broker: cuts connections, takes no new ones, or swallows what clients send."""

import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from urllib.parse import urlsplit, urlunsplit

__all__ = ["Tcp", "tcp_to"]

#: Closing a socket with this option resets its connection, as a peer that vanished does.
RESET = struct.pack("ii", 1, 0)
CONNECT_SECONDS = 10.0
CHUNK_BYTES = 65_536

Pair = tuple[socket.socket, socket.socket]


@dataclass
class Tcp:
    """What a test sees and decides of the connections to one server."""

    upstream: tuple[str, int]
    port: int = 0
    #: How many connections were taken, and how many were turned away, since the proxy runs.
    taken: int = 0
    refused: int = 0
    #: How many bytes of clients were swallowed.
    swallowed: int = 0
    #: What a client sends last on a connection that is cut then: instead of passing it on, or in place of its answer.
    _last_words: bytes = b""
    _is_answered: bool = False
    _refusing: bool = False
    _swallowing: bool = False
    _pairs: set[Pair] = field(default_factory=set)
    #: Those whose client waits for the answer to its last words.
    _ending: set[Pair] = field(default_factory=set)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def url(self, url: str) -> str:
        """Return the server's URL as it is reached through this proxy."""
        parts = urlsplit(url)
        credentials, at, _ = parts.netloc.rpartition("@")
        return urlunsplit(parts._replace(netloc=f"{credentials}{at}127.0.0.1:{self.port}"))

    def refuse(self) -> None:
        """From now on close each new connection at once; those that are open stay."""
        with self._lock:
            self._refusing = True

    def swallow(self) -> None:
        """From now on take what clients send and pass nothing on, as a network does that lost the way."""
        with self._lock:
            self._swallowing = True

    def cut(self) -> int:
        """Reset every open connection on both sides, and return how many there were."""
        with self._lock:
            pairs, self._pairs = self._pairs, set()
        # Servers first: Redis would pop what a client gives back for one of its connections that is still to be cut.
        for _, server in pairs:
            _reset(server)
        for client, _ in pairs:
            _reset(client)
        return len(pairs)

    def cut_at(self, words: bytes, *, carried_out: bool) -> None:
        """Reset the next connection on which a client sends words, before these, or their answer, are passed on."""
        with self._lock:
            self._last_words, self._is_answered = words, carried_out

    def heal(self) -> None:
        """Take new connections again, and pass on what clients send; what was swallowed is gone."""
        with self._lock:
            self._refusing = self._swallowing = False

    def take(self, client: socket.socket) -> None:
        """Connect a client to the server, or close it."""
        with self._lock:
            refusing = self._refusing
            self.taken += not refusing
            self.refused += refusing
        if refusing:
            client.close()
            return
        try:
            server = socket.create_connection(self.upstream, CONNECT_SECONDS)
        except OSError:
            client.close()
            return
        # Only connecting has a time limit: a consumer may be silent for long.
        server.settimeout(None)
        pair = client, server
        with self._lock:
            self._pairs.add(pair)
        for source, target in (pair, pair[::-1]):
            threading.Thread(target=self._pump, args=(source, target, pair), daemon=True).start()

    def _pump(self, source: socket.socket, target: socket.socket, pair: Pair) -> None:
        with suppress(OSError):
            while (chunk := source.recv(CHUNK_BYTES)) and not self._ends_at(chunk, source, pair):
                with self._lock:
                    swallowing = self._swallowing and source is pair[0]
                    self.swallowed += len(chunk) * swallowing
                if not swallowing:
                    target.sendall(chunk)
        with self._lock:
            self._ending.discard(pair)
            open_still = pair in self._pairs
            self._pairs.discard(pair)
        if open_still:
            for each in pair:
                with suppress(OSError):
                    each.shutdown(socket.SHUT_RDWR)
                each.close()

    def _ends_at(self, chunk: bytes, source: socket.socket, pair: Pair) -> bool:
        """Return whether a connection is cut instead of passing a chunk on."""
        with self._lock:
            if source is not pair[0]:
                return pair in self._ending
            if not self._last_words or self._last_words not in chunk:
                return False
            self._last_words = b""
            if self._is_answered:
                self._ending.add(pair)
            return not self._is_answered


@contextmanager
def tcp_to(url: str) -> Iterator[Tcp]:
    """Run a proxy in front of the server of a URL for the length of a block."""
    parts = urlsplit(url)
    if parts.hostname is None or parts.port is None:
        raise ValueError("a proxy needs a URL with a host and a port")
    tcp = Tcp((parts.hostname, parts.port))
    with socket.create_server(("127.0.0.1", 0)) as listener:
        tcp.port = listener.getsockname()[1]
        thread = threading.Thread(target=_accept, args=(listener, tcp), daemon=True)
        thread.start()
        try:
            yield tcp
        finally:
            # Only a shutdown wakes a thread that waits in accept().
            listener.shutdown(socket.SHUT_RDWR)
            thread.join()
            tcp.cut()


def _accept(listener: socket.socket, tcp: Tcp) -> None:
    with suppress(OSError):
        while True:
            client, _ = listener.accept()
            tcp.take(client)


def _reset(end: socket.socket) -> None:
    with suppress(OSError):
        end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
    # A pump that waits in recv() keeps the connection open over a close(), so it is woken first.
    with suppress(OSError):
        end.shutdown(socket.SHUT_RDWR)
    end.close()
