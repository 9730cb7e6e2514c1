"""The order of a part's measurements: round 1 of every contender, then round 2, so that a slow minute hits all."""

from collections.abc import Callable, Mapping
from typing import TypeVar

__all__ = ["interleaved"]

T = TypeVar("T")


def interleaved(rounds: int, samplers: Mapping[str, Callable[[int], T]]) -> dict[str, list[T]]:
    """Take a sample of every contender in every round, and return the samples of each in the order of the rounds.

    Args:
        rounds: how many.
        samplers: by contender, what takes its sample of a round, which is counted from 0.
    """
    taken: dict[str, list[T]] = {name: [] for name in samplers}
    for number in range(rounds):
        for name, sample in samplers.items():
            taken[name].append(sample(number))
    return taken
