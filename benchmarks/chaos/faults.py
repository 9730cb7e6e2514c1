"""Everything that goes wrong between one contender and DynamoDB, and how often each of it did."""

import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from email.utils import formatdate
from http import HTTPStatus
from itertools import product
from typing import Final, Self

from benchmarks.chaos.credentials import Credentials, credential_service, refuse_rotated
from benchmarks.chaos.plan import Deck, Plan
from tests.testbed.wire import CLEAR, FAULT_RATES, Answer, Forward, Weather, Wire, wire_to

__all__ = ["STATUSES", "Faults", "GatewayPages"]

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


#: Of the requests, beside the other kinds of `FAULT_RATES`.
PAGE: Final = "page"
RATES: Final = {**FAULT_RATES, PAGE: 0.08}
OUTAGE: Final = "refused in an outage"
ROTATION: Final = "rotations"


class Faults:
    """The faults of one contender; each has its own, and the same sequence of them.

    Args:
        plan: decides the sequence, and when there are outages, troubles and rotations.
        wire: goes before DynamoDB.
    """

    def __init__(self, plan: Plan, wire: Wire) -> None:
        self._wire = wire
        self._begun_at: float | None = None
        self._pages = GatewayPages(plan.seed)
        self._weather = Weather(plan.seed, RATES, more={PAGE: self._pages})
        self._credentials = Credentials(plan, self._elapsed)
        self._refused = Counter({OUTAGE: 0})
        self._lock = threading.Lock()
        #: Where the workers get their credentials from.
        self.credentials_uri = ""
        wire.decide_by(refuse_rotated(self._credentials))
        wire.break_all(self._weather)

    @classmethod
    @contextmanager
    def before(cls, endpoint: str, plan: Plan) -> Iterator[Self]:
        """Put the faults before an endpoint for the length of a block."""
        with wire_to(endpoint) as wire:
            faults = cls(plan, wire)
            with credential_service(faults._credentials) as uri:
                faults.credentials_uri = uri
                yield faults

    @property
    def endpoint(self) -> str:
        """Where DynamoDB is behind the faults."""
        return self._wire.endpoint

    def begin(self) -> None:
        """Count the times of the plan from now."""
        self._begun_at = time.monotonic()

    @contextmanager
    def outage(self) -> Iterator[None]:
        """Let DynamoDB answer nobody for the length of a block."""
        with self._wire.outage(self._refuse):
            yield

    def played(self) -> dict[str, int]:
        """Return how often each fault was played: requests and answers, and as `CLEAR` those that met none."""
        weather = {kind: self._weather.counts[kind] for kind in (CLEAR, *FAULT_RATES)}
        rotations = {ROTATION: self._credentials.rotations}
        return {**weather, **self._refused, **self._pages.counts, **rotations, **self._credentials.counts}

    def _refuse(self, _forward: Forward) -> None:
        with self._lock:
            self._refused[OUTAGE] += 1

    def _elapsed(self) -> float:
        return 0.0 if self._begun_at is None else time.monotonic() - self._begun_at
