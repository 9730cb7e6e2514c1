"""The worlds of reruns, writes, rows and steps: the shipped code keeps its promise, and every fault is met."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from itertools import product

import pytest

from simulation import atomic, receipts, reruns, step_rows, steps
from simulation.atomic_rules import ATOMIC_INVARIANTS
from simulation.bodies import ATOMIC_FEATURES, RECEIPT_FEATURES, RERUN_FEATURES
from simulation.checker import check
from simulation.faults import DATABASE_FAULTS
from simulation.history import History
from simulation.receipt_rules import RECEIPT_INVARIANTS
from simulation.rerun_rules import RERUN_INVARIANTS
from simulation.step_row_rules import STEP_ROW_INVARIANTS
from simulation.step_rules import STEP_INVARIANTS
from simulation.tasks import ATOMIC_TASKS, RECEIPT_TASKS, STEP_TASKS

#: Histories of the shipped code that are played each time; ``python -m simulation --world NAME`` plays more.
SEEDS = range(60)
#: What goes wrong in steps.
STEP_MISHAPS = ("step-raises", "step-dies", "step-exits", "step-late", "recover-raises", "recover-knows-nothing")
#: By these, the rarest fault, feature and precondition have been met at the latest.
MOST_SEEDS = range(1000, 1600)


@dataclass(frozen=True)
class Played:
    """A world, and what its histories must meet."""

    play: Callable[[int], History]
    faults: frozenset[str]
    tasks: frozenset[str]
    invariants: frozenset[str]


WORLDS = {
    "reruns": Played(
        reruns.play,
        frozenset({*reruns.RERUN_RATES, *RERUN_FEATURES}),
        frozenset(reruns.TASKS),
        frozenset(RERUN_INVARIANTS),
    ),
    "atomic": Played(
        atomic.play,
        frozenset({*atomic.ATOMIC_RATES, *ATOMIC_FEATURES}),
        frozenset(ATOMIC_TASKS),
        frozenset(ATOMIC_INVARIANTS),
    ),
    "receipts": Played(
        receipts.play,
        # Transactions that are ended or held are what faults lead to.
        frozenset({*receipts.RECEIPT_RATES, *RECEIPT_FEATURES, "idle-ended", "row-held"}),
        frozenset(RECEIPT_TASKS),
        frozenset(RECEIPT_INVARIANTS),
    ),
    "steps": Played(
        steps.play,
        # What happens in a step, and what ``recover`` of one does, are parts of its plan.
        frozenset({*steps.STEP_RATES, "end-swallowed", *STEP_MISHAPS}),
        frozenset(STEP_TASKS),
        frozenset(STEP_INVARIANTS),
    ),
    "step-rows": Played(
        step_rows.play,
        frozenset({*receipts.STRIKES, *DATABASE_FAULTS, "row-handed-over", "row-held"}),
        frozenset(STEP_TASKS),
        frozenset(STEP_ROW_INVARIANTS),
    ),
}


@pytest.mark.parametrize("name", WORLDS)
def test_a_seed_plays_the_same_history_again(name: str) -> None:
    """Times, faults, writes, effects and results: what was found once can be looked at again."""
    first, again = WORLDS[name].play(3), WORLDS[name].play(3)
    assert first.entries == again.entries
    assert (first.counts, first.results) == (again.counts, again.results)


@pytest.mark.parametrize(("name", "seed"), [*product(WORLDS, SEEDS)])
def test_the_shipped_code_keeps_its_promise(name: str, seed: int) -> None:
    """No invariant is violated, nothing in the simulation fails, every message ends and every key is decided."""
    history = WORLDS[name].play(seed)
    assert history.failures == []
    assert check(history) == []


@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", WORLDS)
def test_the_histories_meet_every_precondition_and_every_kind_of_fault(name: str) -> None:
    """What never happens proves nothing."""
    world, met = WORLDS[name], Counter[str]()
    missing, tasks = set(world.faults), set(world.tasks)
    for seed in MOST_SEEDS:
        history = world.play(seed)
        check(history, met)
        missing -= history.counts.keys()
        tasks.discard(history.task)
        if not missing and not tasks and world.invariants <= met.keys():
            break
    assert (missing, tasks, set(world.invariants) - met.keys()) == (set(), set(), set())
