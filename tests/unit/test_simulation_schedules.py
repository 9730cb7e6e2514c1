"""The exhaustive search: it ends, finds nothing in the shipped code and planted bugs in a changed one, and replays."""

import subprocess
import sys

import pytest

from simulation.checker import check
from simulation.schedules import FAULTS, SCENARIOS, Scenario, replay, search

PLAY_SECONDS = 60.0
#: Of which every schedule is played in a second or two; ``python -m simulation.exhaustive`` plays all.
FEW_FAULTS = frozenset({"lose request", "delay request", "double request", "lose answer"})
SHORT = [scenario for scenario in SCENARIOS if not scenario.body_seconds and not scenario.task.locked]


@pytest.mark.parametrize("scenario", SHORT, ids=lambda scenario: scenario.name)
def test_every_schedule_of_the_shipped_code_keeps_the_promise(scenario: Scenario) -> None:
    """Two deliveries of one key, with a request or an answer that is lost, late or doubled at every place."""
    found = search(scenario, kinds=FEW_FAULTS)
    assert (found.violations, found.failures) == ([], [])
    assert found.complete
    assert found.schedules > found.states > 150


@pytest.mark.parametrize("fault", FAULTS)
def test_each_kind_of_fault_adds_schedules(fault: str) -> None:
    """A fault that is nowhere possible would show nothing."""
    scenario = SCENARIOS[0]
    found = search(scenario, kinds=frozenset({fault}), most=100)
    assert (found.violations, found.failures) == ([], [])
    assert found.states > search(scenario, faults=0).states


def test_choices_replay_a_schedule() -> None:
    """What a search finds can be looked at again."""
    scenario, choices = SCENARIOS[0], [0] * 40
    first, again = replay(scenario, choices), replay(scenario, choices)
    assert first.entries == again.entries
    assert first.ended
    assert check(first) == []


@pytest.mark.parametrize(
    ("bug", "scenario"),
    [
        ("claim takes a live claim", SCENARIOS[0].name),
        ("claim counts no fence", SCENARIOS[0].name),
        ("no commit", SCENARIOS[0].name),
        ("a transaction over an outcome", "writes with the outcome"),
        ("refused writes keep their key", "writes that are refused"),
    ],
)
def test_a_planted_bug_is_found(bug: str, scenario: str) -> None:
    """In a condition of a write, or in the guard."""
    command = [sys.executable, "-m", "simulation.exhaustive", "--planted", bug, "--scenario", scenario]
    played = subprocess.run(command, capture_output=True, text=True, timeout=PLAY_SECONDS, check=False)
    assert played.returncode == 1, played.stderr
    assert "choices [" in played.stdout
