"""Faults that take time, and bad weather on a wire: a seeded mixture of faults, each at its rate."""

import random
import threading
import time
from collections import Counter
from collections.abc import Mapping
from typing import Final

from tests.testbed.wire import Answer, Fault, Forward, cut, internal_error, lose_answer, refuse, throttle

__all__ = ["CLEAR", "STORMY", "Weather", "delay", "delay_answer", "hold_answer"]

#: What `Weather.counts` calls a request that was passed on.
CLEAR: Final = "clear"
#: A rate for each kind of fault: three requests of ten meet one.
STORMY: Final = dict.fromkeys(("delay", "refuse", "throttle", "internal_error", "lose_answer", "cut"), 0.05)


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


class Weather:
    """A fault for `Wire.break_all` that is another one for each request, or none.

    The decisions are a sequence that the seed determines; which request gets which depends on the order of arrival.

    Args:
        seed: the same seed gives the same sequence.
        rates: the part of the requests, from 0 to 1, that meets each kind: those of `STORMY` and of ``more``.
        delay_seconds: the longest ``delay``; each is random.
        more: further faults by kind.
    """

    def __init__(
        self,
        seed: int,
        rates: Mapping[str, float] = STORMY,
        delay_seconds: float = 0.5,
        more: Mapping[str, Fault] | None = None,
    ) -> None:
        self._faults = {**_FAULTS, **(more or {})}
        unknown = rates.keys() - STORMY.keys() - self._faults.keys()
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


def _pass_on(forward: Forward) -> Answer:
    return forward()


_FAULTS: Final[dict[str, Fault]] = {
    "refuse": refuse,
    "throttle": throttle,
    "internal_error": internal_error,
    "lose_answer": lose_answer,
    "cut": cut,
    CLEAR: _pass_on,
}
