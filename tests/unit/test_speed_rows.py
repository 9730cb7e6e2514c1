"""The speed command's judge, and the order of its rounds: from hand-made values alone."""

import math
from functools import partial

import pytest

from benchmarks.speed.rows import Judgement, Reach, Row, failed, interleaved, judge, number, rows_of


def row(*values: float, reach: Reach | None = None) -> Row:
    """Return a row of these rounds."""
    return Row(part="throughput", measure="tasks a second", subject="ours", unit="1/s", values=values, reach=reach)


@pytest.mark.parametrize(
    ("values", "reach", "judgement"),
    [
        ((1.0,), None, Judgement.SHOWN),
        ((1.9, 2.0, 9.0), Reach(least=2), Judgement.REACHED),
        ((1.9, 1.9, 9.0), Reach(least=2), Judgement.MISSED),
        ((0.4, 0.9), Reach(most=0.65), Judgement.REACHED),
        ((0.41,), Reach(most=0.4), Judgement.MISSED),
        ((2, 2, 2), Reach(least=2, most=2), Judgement.REACHED),
        ((2, 2, 3), Reach(least=2, most=2), Judgement.MISSED),
        ((math.nan,), Reach(most=1), Judgement.MISSED),
    ],
)
def test_a_row_is_judged(values: tuple[float, ...], reach: Reach | None, judgement: Judgement) -> None:
    """By its median; a count by every round; what is no number reaches nothing."""
    assert judge(row(*values, reach=reach)) is judgement


def test_only_a_reach_that_binds_fails_the_run() -> None:
    """A time of one machine is judged and shown, and decides nothing."""
    missed = row(40, reach=Reach(most=30, binding=False))
    assert judge(missed) is Judgement.MISSED
    assert not failed([missed, row(1), row(1, reach=Reach(most=1))])
    assert failed([missed, row(2, reach=Reach(most=1))])


def test_rounds_are_interleaved() -> None:
    """Every contender has its turn in a round before anyone has the next."""
    turns: list[tuple[str, int]] = []

    def sample(name: str, round_number: int) -> dict[str, float]:
        turns.append((name, round_number))
        return {"rate": len(turns)}

    taken = interleaved(2, {name: partial(sample, name) for name in ("plain", "ours")})
    assert turns == [("plain", 0), ("ours", 0), ("plain", 1), ("ours", 1)]
    plain, ours = rows_of("throughput", taken, {"rate": "1/s"})
    assert (plain.subject, plain.values, plain.median, plain.spread) == ("plain", (1, 3), 2, "1 .. 3")
    assert (ours.subject, ours.values) == ("ours", (2, 4))


@pytest.mark.parametrize(
    ("value", "text"), [(0.0, "0"), (3, "3"), (0.3966, "0.397"), (99.46, "99.5"), (1234.5, "1,234"), (-5.24, "-5.24")]
)
def test_a_value_is_written_short(value: float, text: str) -> None:
    """Three digits, or all before the point."""
    assert number(value) == text


@pytest.mark.parametrize(
    ("reach", "text"),
    [
        (Reach(least=2), "≥ 2"),
        (Reach(most=0.4), "≤ 0.4"),
        (Reach(least=0, most=0), "= 0"),
        (Reach(most=30, binding=False), "(≤ 30)"),
    ],
)
def test_a_reach_is_written(reach: Reach, text: str) -> None:
    """In parentheses where it decides nothing."""
    assert str(reach) == text
