"""Everything that goes wrong between one contender and DynamoDB, and how often each of it did."""

import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final, Self

from benchmarks.chaos.credentials import Credentials, credential_service, refuse_rotated
from benchmarks.chaos.gateway import GatewayPages
from benchmarks.chaos.plan import Plan
from tests.testbed.wire import CLEAR, STORMY, Forward, Weather, Wire, wire_to

__all__ = ["Faults"]

#: Of the requests, beside the other kinds of `STORMY`.
PAGE: Final = "page"
RATES: Final = {**STORMY, PAGE: 0.08}
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
        weather = {kind: self._weather.counts[kind] for kind in (CLEAR, *STORMY)}
        rotations = {ROTATION: self._credentials.rotations}
        return {**weather, **self._refused, **self._pages.counts, **rotations, **self._credentials.counts}

    def _refuse(self, _forward: Forward) -> None:
        with self._lock:
            self._refused[OUTAGE] += 1

    def _elapsed(self) -> float:
        return 0.0 if self._begun_at is None else time.monotonic() - self._begun_at
