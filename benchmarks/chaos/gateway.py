"""Pages of a gateway before DynamoDB: HTML in place of JSON, dated by a clock that is minutes off."""

import random
import threading
import time
from collections import Counter
from collections.abc import Callable
from email.utils import formatdate
from http import HTTPStatus
from itertools import product
from typing import Final

from benchmarks.chaos.deck import Deck
from tests.testbed.wire import Answer, Forward

__all__ = ["STATUSES", "GatewayPages"]

#: What a proxy, a load balancer or a firewall answers by itself: a login or maintenance page, a block, its own errors.
STATUSES: Final = (200, 403, 408, 502, 503, 504)
#: How far the ``Date`` is off.
OFF_SECONDS: Final = (120.0, 600.0)
#: The ``Age`` of a page whose ``Date`` is ahead.
AGE_SECONDS: Final = (1.0, 600.0)

AHEAD, BEHIND = "date ahead", "date behind"
WITH_AGE, WITHOUT_AGE = "with age", "without age"


class GatewayPages:
    """A fault for `Wire`: each request is answered with another page, and DynamoDB never sees it.

    Args:
        seed: the same seed gives the same sequence of pages.
        now: returns the right time in epoch seconds.
    """

    def __init__(self, seed: int, now: Callable[[], float] = time.time) -> None:
        rng = random.Random(f"{seed} pages")
        self._rng = rng
        self._now = now
        self._statuses = Deck(rng, STATUSES)
        self._forms = Deck(rng, product((AHEAD, BEHIND), (WITH_AGE, WITHOUT_AGE)))
        self._lock = threading.Lock()
        #: How many pages had each status, and each form of ``Date`` and ``Age``.
        self.counts: Counter[str] = Counter({f"page {status}": 0 for status in STATUSES})
        self.counts.update(dict.fromkeys((AHEAD, BEHIND, WITH_AGE, WITHOUT_AGE), 0))

    def __call__(self, _forward: Forward) -> Answer:
        """Return the next page."""
        with self._lock:
            status, (date, age) = self._statuses.deal(), self._forms.deal()
            off, alien_age = self._rng.uniform(*OFF_SECONDS), self._rng.uniform(*AGE_SECONDS)
            self.counts.update((f"page {status}", date, age))
        moment = self._now() + (off if date == AHEAD else -off)
        headers = [("Server", "gateway"), ("Content-Type", "text/html; charset=utf-8"), ("Date", _http_date(moment))]
        if age == WITH_AGE:
            # A page from a cache is as old as its date says.
            headers.append(("Age", str(round(off if date == BEHIND else alien_age))))
        return Answer(status, _page(status), tuple(headers))


def _http_date(moment: float) -> str:
    return formatdate(moment, usegmt=True)


def _page(status: int) -> bytes:
    title = f"{status} {HTTPStatus(status).phrase}"
    return f"<html><head><title>{title}</title></head><body><h1>{title}</h1></body></html>".encode()
