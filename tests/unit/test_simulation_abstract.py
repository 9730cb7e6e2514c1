"""The checker says what the promise's definition says, of every abstract history up to a size."""

import pytest

from simulation.abstract import FEW, Alphabet, Comparison, compare, compare_results

#: The sizes that take a second; ``python -m simulation.abstract --length 5`` compares more.
SIZES = [(3, Alphabet(), 1_944), (5, FEW, 30_803)]


@pytest.mark.parametrize(("length", "alphabet", "histories"), SIZES)
def test_checker_and_definition_agree_on_every_history(length: int, alphabet: Alphabet, histories: int) -> None:
    """Of claims, renewals, runs, commits and releases in any order, allowed or not."""
    comparison = compare(length, alphabet)
    assert comparison.disagreements == []
    assert comparison.histories == histories
    assert_both_kinds(comparison, {"one run", "live claim", "one outcome"})


def test_checker_and_definition_agree_on_every_result() -> None:
    """Of up to three commits of one key and what three tasks report."""
    comparison = compare_results()
    assert comparison.disagreements == []
    assert_both_kinds(comparison, {"one result"})


def assert_both_kinds(comparison: Comparison, names: set[str]) -> None:
    """Fail unless some histories keep each invariant and some break it."""
    assert {name for name in names if 0 < comparison.violated[name] < comparison.histories} == names
