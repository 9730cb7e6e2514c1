"""A payment provider in this process: it charges whatever becomes of the client that asked."""

import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

__all__ = ["KEY_HEADER", "Provider", "running"]

KEY_HEADER = "Idempotency-Key"


class Provider(ThreadingHTTPServer):
    """Charges the order that a ``POST`` names in its path.

    Args:
        seconds: how long a charge takes.
    """

    daemon_threads = True

    def __init__(self, seconds: float) -> None:
        super().__init__(("127.0.0.1", 0), _Charge)
        #: How often each order was charged.
        self.charges: Counter[str] = Counter()
        self._seconds = seconds
        self._keys: set[str] = set()
        self._lock = threading.Lock()

    @property
    def url(self) -> str:
        """Where it answers."""
        return f"http://127.0.0.1:{self.server_port}"

    def charge(self, order: str, key: str | None) -> None:
        """Charge an order, unless the request's key was seen before."""
        with self._lock:
            if key in self._keys:
                return
            if key is not None:
                self._keys.add(key)
        time.sleep(self._seconds)
        with self._lock:
            self.charges[order] += 1


class _Charge(BaseHTTPRequestHandler):
    server: Provider

    def do_POST(self) -> None:
        self.server.charge(self.path.removeprefix("/"), self.headers.get(KEY_HEADER))
        try:
            self.send_response(204)
            self.end_headers()
        except OSError:
            pass  # the client was killed; the charge is made

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 (the name that the library gives it)
        """Log nothing."""


@contextmanager
def running(seconds: float) -> Iterator[Provider]:
    """Run a provider for the length of a block."""
    provider = Provider(seconds)
    thread = threading.Thread(target=provider.serve_forever, name="provider")
    thread.start()
    try:
        yield provider
    finally:
        provider.shutdown()
        thread.join()
        provider.server_close()
