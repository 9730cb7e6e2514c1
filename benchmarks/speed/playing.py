"""Contenders that are measured in turn, each round over one table of the stand-in that takes least of the machine."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import TypeVar

from benchmarks.speed import contenders
from benchmarks.speed.bench import Bench
from benchmarks.speed.rounds import interleaved

__all__ = ["measured", "titled"]

T = TypeVar("T")


def measured(bench: Bench, sample: Callable[[Bench, str, str, int], T], *names: str) -> dict[str, list[T]]:
    """Return the samples of those of the named contenders that can play here, round by round.

    Args:
        bench: where.
        sample: takes one, for a contender, over a table, in a round that is counted from 0.
        names: of the contenders.
    """
    table = bench.table(bench.roto_url)
    return interleaved(bench.rounds, {name: partial(sample, bench, name, table) for name in contenders.names(*names)})


def titled(taken: Mapping[str, T]) -> dict[str, T]:
    """Return what was taken of contenders by what the tables say of them."""
    return {contenders.load(name).title: samples for name, samples in taken.items()}
