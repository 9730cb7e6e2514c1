"""One partition of a table: how many write units it takes in a second, and what other keys take of them."""

import math
from collections.abc import Callable
from random import Random
from typing import Final

__all__ = ["WRITE_UNITS_PER_SECOND", "Partition"]

#: What AWS gives as the limit of a partition
#: (https://docs.aws.amazon.com/amazondynamodb/latest/developerguide/bp-partition-key-design.html).
WRITE_UNITS_PER_SECOND: Final = 1000.0
#: Above this mean the normal distribution stands for Poisson's.
_MANY: Final = 50.0


class Partition:
    """A token bucket: it fills with write units, up to those of ``burst_seconds``, and each write takes some.

    Writes of other keys come as a Poisson process and are not played one by one.  What they do not get, they take
    from what comes next, as their retries would.

    Args:
        units_per_second: how fast it fills.
        burst_seconds: for how many seconds unused units are kept.
        others: returns how many writes of other keys come in a second, at a time in seconds.
        other_units: write units of each of them.
        chance: draws their number.
    """

    def __init__(
        self,
        *,
        units_per_second: float = WRITE_UNITS_PER_SECOND,
        burst_seconds: float,
        others: Callable[[float], float],
        other_units: float,
        chance: Random,
    ) -> None:
        self._rate, self._most = units_per_second, units_per_second * burst_seconds
        self._others, self._other_units, self._chance = others, other_units, chance
        self._level, self._at = self._most, 0.0
        #: Writes of other keys, and those that found too few units at first.
        self.other_writes = 0
        self.other_throttled = 0

    def take(self, now: float, units: int) -> bool:
        """Take write units at a time in seconds, never earlier than the last; return False if it throttles."""
        self._fill(now)
        if self._level < units:
            return False
        self._level -= units
        return True

    def _fill(self, now: float) -> None:
        seconds, self._at = now - self._at, now
        if seconds <= 0:
            return
        writes = _poisson(self._others(now) * seconds, self._chance)
        self.other_writes += writes
        left = self._level + self._rate * seconds - writes * self._other_units
        if left < 0:
            short = -left - max(-self._level, 0.0)
            self.other_throttled += min(writes, max(math.ceil(short / self._other_units), 0))
        self._level = min(left, self._most)


def _poisson(mean: float, chance: Random) -> int:
    """Draw how many of them come, by Poisson's distribution."""
    if mean > _MANY:
        return max(round(chance.gauss(mean, math.sqrt(mean))), 0)
    limit, product, number = math.exp(-mean), chance.random(), 0
    while product > limit:
        product *= chance.random()
        number += 1
    return number
