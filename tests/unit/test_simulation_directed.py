"""Directed histories: a seed replays, and the shipped code does what each schedule must lead to."""

import pytest
from celery.worker import state

from simulation.checker import check
from simulation.directed import SCHEDULES, play

#: Of each schedule; ``python -m simulation --world directed`` plays more.
ROUNDS = 3


def test_a_seed_plays_the_same_history_again() -> None:
    """Times, faults, writes and results: what was found once can be looked at again."""
    first, again = play(3), play(3)
    assert first.entries == again.entries
    assert (first.counts, first.results) == (again.counts, again.results)


@pytest.mark.parametrize("number", range(len(SCHEDULES)), ids=[schedule.name for schedule in SCHEDULES])
def test_the_shipped_code_does_what_a_schedule_must_lead_to(number: int) -> None:
    """At different milliseconds, with the fault that the schedule is about, and without leaving anything to others."""
    revoked = set(state.revoked)
    for seed in range(number, ROUNDS * len(SCHEDULES), len(SCHEDULES)):
        history = play(seed)
        assert (seed, history.failures, check(history)) == (seed, [], [])
    assert set(state.revoked) == revoked


def test_a_history_that_is_not_what_its_schedule_says_is_found() -> None:
    """In how often something happened, and in when it was over."""
    history = play(0)
    history.expected = {**history.expected, "began": 3, "Merged": 1}
    history.due = 1.0
    assert [each.what for each in check(history)] == [
        "2 times began instead of 3",
        "0 times Merged instead of 1",
        "it was to end after 1.0 s",
    ]
