"""What was measured, as plain rows, and the one judgement of a row against its reach. Pure."""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from statistics import median
from typing import Final, TypeVar

__all__ = ["Judgement", "Reach", "Row", "failed", "interleaved", "judge", "number", "rows_of"]

_WHOLE: Final = 100


class Judgement(StrEnum):
    """What becomes of a row."""

    REACHED = "reached"
    MISSED = "missed"
    SHOWN = "-"


@dataclass(frozen=True, kw_only=True, slots=True)
class Reach:
    """Where a row is to lie."""

    least: float = -math.inf
    most: float = math.inf
    #: Whether a miss fails the run.  A time of one machine is judged, but another machine has another.
    binding: bool = True

    def __str__(self) -> str:
        if self.least == self.most:
            return f"= {self.least:g}"
        text = f"≥ {number(self.least)}" if self.most == math.inf else f"≤ {number(self.most)}"
        return text if self.binding else f"({text})"


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One measure of one contender, or of two compared."""

    part: str
    measure: str
    #: Who was measured, or what was compared.
    subject: str
    unit: str
    #: One value for each round, in the order of the rounds.
    values: tuple[float, ...]
    reach: Reach | None = None

    @property
    def median(self) -> float:
        """The median of the rounds."""
        return median(self.values)

    @property
    def spread(self) -> str:
        """The least and the greatest of the rounds."""
        return f"{number(min(self.values))} .. {number(max(self.values))}"

    @property
    def binding(self) -> bool:
        """Whether a miss fails the run."""
        return self.reach is not None and self.reach.binding


def judge(row: Row) -> Judgement:
    """Compare a row's median with its reach; of a count, which has no spread, every round must be right."""
    if row.reach is None:
        return Judgement.SHOWN
    exact = row.reach.least == row.reach.most
    judged = row.values if exact else (row.median,)
    right = all(row.reach.least <= value <= row.reach.most for value in judged)
    return Judgement.REACHED if right else Judgement.MISSED


def rows_of(
    part: str, taken: Mapping[str, Sequence[Mapping[str, float]]], measures: Mapping[str, str]
) -> Iterator[Row]:
    """Yield a row for each measure and subject.

    Args:
        part: the part's name.
        taken: what `benchmarks.speed.rows.interleaved` returns of samples, whose keys are the measures.
        measures: the units by measure.
    """
    for measure, unit in measures.items():
        for subject, samples in taken.items():
            values = tuple(sample[measure] for sample in samples)
            yield Row(part=part, measure=measure, subject=subject, unit=unit, values=values)


def number(value: float) -> str:
    """Write a value with three digits, or all before the point."""
    return f"{value:,.0f}" if abs(value) >= _WHOLE or value == round(value) else f"{value:.3g}"


def failed(rows: Iterable[Row]) -> bool:
    """Return whether a row missed a reach that binds."""
    return any(row.binding and judge(row) is Judgement.MISSED for row in rows)


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
