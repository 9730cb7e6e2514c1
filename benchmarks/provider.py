"""A payment provider: a server that charges whatever becomes of the client that asked, and can be asked what it did."""

import json
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Final
from urllib.parse import quote, unquote
from urllib.request import Request, urlopen

__all__ = ["KEY_HEADER", "Charge", "Provider", "ask", "charge", "running"]

KEY_HEADER: Final = "Idempotency-Key"
#: For an answer, in seconds, unless the client says how long it waits.
TIMEOUT_SECONDS: Final = 30.0

#: What a client says of the charge that it asks for.
Charge = dict[str, Any]


class Provider(ThreadingHTTPServer):
    """Charges the order that a ``POST`` names in its path; a ``GET`` of the path returns the order's charges.

    A request that has arrived is carried out. Of the requests with one key only the first is, and the others get its
    answer.

    Args:
        seconds: returns how long the next charge takes.
        late_seconds: how long after the charge the first request of an order is answered.
        charged: called with each charge, as it is made.
    """

    daemon_threads = True
    request_queue_size = 128

    def __init__(
        self,
        seconds: Callable[[], float],
        *,
        late_seconds: float = 0.0,
        charged: Callable[[Charge], None] = lambda _: None,
    ) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self._seconds, self._late_seconds, self._charged = seconds, late_seconds, charged
        self._charges: dict[str, list[Charge]] = {}
        #: By key: the charge that its first request asked for.
        self._keyed: dict[str, Future[Charge]] = {}
        self._asked: set[str] = set()
        self._lock = threading.Lock()

    @property
    def url(self) -> str:
        """Where it answers."""
        return f"http://127.0.0.1:{self.server_port}"

    def charges(self, order: str) -> list[Charge]:
        """Return the charges of an order that are made, oldest first."""
        with self._lock:
            return list(self._charges.get(order, ()))

    def charge(self, order: str, key: str | None, asked: Charge) -> Charge:
        """Charge an order, unless the request's key was seen before; return the charge that counts."""
        with self._lock:
            earlier = None if key is None else self._keyed.get(key)
            made = Future[Charge]() if earlier is None else earlier
            if key is not None:
                self._keyed[key] = made
            late = self._late_seconds if order not in self._asked else 0.0
            self._asked.add(order)
        if earlier is None:
            time.sleep(self._seconds())
            with self._lock:
                self._charges.setdefault(order, []).append(asked)
                self._charged(asked)
            made.set_result(asked)
            time.sleep(late)
        return made.result()


class _Handler(BaseHTTPRequestHandler):
    server: Provider

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self._answer(self.server.charge(self._order, self.headers.get(KEY_HEADER), asked))

    def do_GET(self) -> None:
        self._answer(self.server.charges(self._order))

    @property
    def _order(self) -> str:
        return unquote(self.path.removeprefix("/"))

    def _answer(self, content: object) -> None:
        body = json.dumps(content).encode()
        try:
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)
        except OSError:
            pass  # the client was killed, or has given up; the charge is made

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 (the name that the library gives it)
        """Log nothing."""


@contextmanager
def running(
    seconds: Callable[[], float], *, late_seconds: float = 0.0, charged: Callable[[Charge], None] = lambda _: None
) -> Iterator[Provider]:
    """Run a provider for the length of a block, in threads of this process; see `Provider` for the arguments."""
    provider = Provider(seconds, late_seconds=late_seconds, charged=charged)
    thread = threading.Thread(target=provider.serve_forever, kwargs={"poll_interval": 0.05}, name="provider")
    thread.start()
    try:
        yield provider
    finally:
        provider.shutdown()
        thread.join()
        provider.server_close()


def charge(
    url: str, order: str, asked: Charge, *, key: str | None = None, timeout_seconds: float = TIMEOUT_SECONDS
) -> Charge:
    """Ask a provider for a charge, and return the one that counts.

    Raises:
        OSError: no answer came in time; the charge may be made.
    """
    headers = {} if key is None else {KEY_HEADER: key}
    request = Request(_path(url, order), json.dumps(asked).encode(), headers, method="POST")  # noqa: S310 (our own URL)
    with urlopen(request, timeout=timeout_seconds) as answer:  # noqa: S310
        made: Charge = json.load(answer)
    return made


def ask(url: str, order: str) -> list[Charge]:
    """Return the charges of an order that a provider has made, oldest first.

    Raises:
        OSError: no answer came.
    """
    with urlopen(_path(url, order), timeout=TIMEOUT_SECONDS) as answer:  # noqa: S310 (our own URL)
        made: list[Charge] = json.load(answer)
    return made


def _path(url: str, order: str) -> str:
    return f"{url}/{quote(order, safe='')}"
