"""Bodies with writes in the simulation: the shipped code keeps its promise, and every fault is met."""

import pytest

from simulation.atomic import ATOMIC_RATES, play
from simulation.bodies import ATOMIC_FEATURES
from simulation.checker import check
from simulation.tasks import ATOMIC_TASKS

#: Histories of the shipped code that are played each time; ``python -m simulation --world atomic`` plays more.
SEEDS = range(60)
#: By these, the rarest fault and feature have been met at the latest.
MOST_SEEDS = range(1000, 1600)


def test_a_seed_plays_the_same_history_again() -> None:
    """Times, faults, writes and results: what was found once can be looked at again."""
    first, again = play(3), play(3)
    assert first.entries == again.entries
    assert (first.counts, first.results) == (again.counts, again.results)


@pytest.mark.parametrize("seed", SEEDS)
def test_the_shipped_code_keeps_its_promise(seed: int) -> None:
    """No invariant is violated, nothing in the simulation fails, every message ends and every key is decided."""
    history = play(seed)
    assert history.failures == []
    assert check(history) == []


@pytest.mark.timeout(600)
def test_the_histories_meet_every_kind_of_fault() -> None:
    """What never happens proves nothing."""
    missing, tasks = {*ATOMIC_RATES, *ATOMIC_FEATURES}, set(ATOMIC_TASKS)
    for seed in MOST_SEEDS:
        history = play(seed)
        missing -= history.counts.keys()
        tasks.discard(history.task)
        if not missing and not tasks:
            break
    assert (missing, tasks) == (set(), set())
