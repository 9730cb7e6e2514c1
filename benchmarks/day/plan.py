"""What is published in a day: when each hot key comes, and how many duplicates of it, by chance and a seed."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from random import Random
from typing import Final

__all__ = ["DAY_SECONDS", "Plan"]

DAY_SECONDS: Final = 86_400.0
#: When a flood comes, in seconds.
FLOOD_AT: Final = 600.0


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The keys of one partition; rates are keys a second, averaged over a day.

    Hot keys and others come as Poisson processes, more of them at noon than at midnight.  The number of duplicates of a
    hot key has a Pareto distribution between two bounds: most have few, and few have very many.
    """

    seconds: float
    hot_keys_per_second: float
    other_keys_per_second: float
    #: By which part of the average the rates are higher at noon and lower at midnight.
    swing: float
    least_duplicates: int
    most_duplicates: int
    #: Of the distribution: the greater, the fewer keys have many.
    exponent: float
    #: The duplicates come evenly within so many seconds after the first message.
    spread_seconds: float
    #: Duplicates of the only hot key there is, instead of all others; 0 for no flood.
    flood: int
    seed: int

    def others(self, at: float) -> float:
        """Return the rate of other keys at a time in seconds."""
        return self.other_keys_per_second * self._part(at)

    def publishes(self) -> Iterator[tuple[float, list[float]]]:
        """Yield when each hot key is first published, and how many seconds later each duplicate is."""
        chance, at = Random(f"plan {self.seed}"), 0.0
        if self.flood:
            yield FLOOD_AT, [chance.uniform(0, self.spread_seconds) for _ in range(self.flood)]
            return
        most = self.hot_keys_per_second * (1 + self.swing)
        while most and (at := at + chance.expovariate(most)) < self.seconds:
            if chance.random() * (1 + self.swing) < self._part(at):
                number = self._duplicates(chance)
                yield at, [chance.uniform(0, self.spread_seconds) for _ in range(number)]

    @property
    def mean_duplicates(self) -> float:
        """The mean of the distribution."""
        low, high, power = self.least_duplicates, self.most_duplicates, self.exponent
        if low == high:
            return low
        if power == 1:
            return math.log(high / low) * low / (1 - low / high)
        return power / (power - 1) * low * (1 - (low / high) ** (power - 1)) / (1 - (low / high) ** power)

    def _part(self, at: float) -> float:
        return 1 - self.swing * math.cos(2 * math.pi * at / DAY_SECONDS)

    def _duplicates(self, chance: Random) -> int:
        low, high = self.least_duplicates**-self.exponent, self.most_duplicates**-self.exponent
        return round((low - chance.random() * (low - high)) ** (-1 / self.exponent))
