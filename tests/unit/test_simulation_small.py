"""The small world: a seed replays, the shipped code keeps its promise, and every fault is met."""

from collections import Counter
from typing import Any

import pytest

from simulation import small_random, small_reruns, small_steps
from simulation.atomic_rules import ATOMIC_INVARIANTS
from simulation.checker import check
from simulation.small import TASKS
from simulation.small_random import RATES, play
from simulation.step_rules import STEP_INVARIANTS

#: Histories of the shipped code that are played each time; ``python -m simulation --world small`` plays more.
SEEDS = range(300)
#: What the histories of reruns and writes meet.  Nobody decides what is parked, nothing is refused, and few last long.
RERUNS = {"never again", "stays parked", "kept messages", "asked first", "one effect", "settled"}
WRITES = {*ATOMIC_INVARIANTS} - {"refused writes", "no renewal"}
WORLDS = [
    (small_random, TASKS, set()),
    (small_reruns, small_reruns.TASKS, RERUNS | WRITES),
    (small_steps, small_steps.TASKS, {*STEP_INVARIANTS, "never again"}),
]
#: What the small world has no part of, such as what follows a task.
ELSEWHERE = {"continuation", "merged"}


def test_a_seed_plays_the_same_history_again() -> None:
    """Times, faults, writes and results: what was found once can be looked at again."""
    first, again = play(3), play(3)
    assert first.entries == again.entries
    assert (first.counts, first.results) == (again.counts, again.results)


@pytest.mark.parametrize(("world", "all_tasks", "all_met"), WORLDS)
def test_the_shipped_code_keeps_its_promise(world: Any, all_tasks: dict[str, Any], all_met: set[str]) -> None:
    """No invariant is violated, every message ends, and every kind of fault and of task is among the histories."""
    met: Counter[str] = Counter()
    faults: Counter[str] = Counter()
    tasks = set()
    for seed in SEEDS:
        history = world.play(seed)
        assert (seed, history.failures, check(history, met)) == (seed, [], [])
        faults.update(history.counts)
        tasks.add(history.task)
    assert {*RATES, "hard-limit", "body-died"} - set(faults) == set()
    assert tasks == set(all_tasks)
    assert set(met) & ELSEWHERE == set()
    assert all_met <= set(met)


@pytest.mark.parametrize(("kind", "seed"), [("CrashLooped", 18), ("Unrecorded", 31), ("Superseded", 178), ("Lost", 41)])
def test_rare_ends_of_runs_are_among_the_histories(kind: str, seed: int) -> None:
    """A run that has lost its claim, or whose outcome nobody keeps, is what the promise is hard for."""
    assert play(seed).of(kind)
