"""The simulation: that a seed replays, that the shipped code keeps its promise, and that planted bugs are found."""

import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator

import click
import pytest
from click.testing import CliRunner

from simulation import directed, sequences
from simulation.__main__ import simulate
from simulation.atomic_rules import ATOMIC_INVARIANTS
from simulation.checker import INVARIANTS, check
from simulation.exhaustive import explore
from simulation.planted import PLANTED, Found, found
from simulation.receipt_rules import RECEIPT_INVARIANTS
from simulation.rerun_rules import RERUN_INVARIANTS
from simulation.search import main as look_for
from simulation.step_row_rules import STEP_ROW_INVARIANTS
from simulation.step_rules import STEP_INVARIANTS
from simulation.world import FEATURES, RATES, play
from tests.testbed.forked_commands import ForkedCommands, forked_commands

#: Histories of the shipped code that are played each time; ``scripts/simulate`` plays more.
SEEDS = range(60)
PLAY_SECONDS = 300
#: By these, the rarest fault and the rarest precondition have been met at the latest.
MOST_SEEDS = range(1000, 2000)
#: Features that are counted by what they lead to.
EFFECTS = {"recycled": "child-recycled", "catches-interrupt": "interrupt-caught"}
#: What is not drawn, and follows from what is.
CONSEQUENCES = {
    *EFFECTS.values(),
    *("visibility-timeout", "restored", "requeued", "prefetched", "answers-reordered"),
    *("hard-limit", "soft-limit", "body-died", "worker-out-of-memory", "outcomes-finished", "let-go"),
}
#: What others wrote and the simulation imports, as far as that takes time.
IMPORTED = (
    "asyncio",
    "boto3",
    "cachetools",
    "celery.app.amqp",
    "celery.app.events",
    "celery.app.trace",
    "celery.backends.base",
    "celery.canvas",
    "celery.events.receiver",
    "celery.fixups.django",
    "celery.loaders.app",
    "celery.worker.request",
    "click",
    "kombu.transport.virtual",
    "tenacity",
    "unittest.mock",
)


@pytest.fixture(scope="module")
def commands() -> Iterator[ForkedCommands]:
    """Processes that import the library each for itself, so that a bug that one plants is in no other."""
    with forked_commands(IMPORTED) as commands:
        yield commands


def test_a_seed_plays_the_same_history_again() -> None:
    """Times, faults, writes and results: what was found once can be looked at again."""
    first, again = play(7), play(7)
    assert first.entries == again.entries
    assert (first.counts, first.results) == (again.counts, again.results)


def test_a_refused_error_callback_leaves_its_message_to_the_next_connection() -> None:
    """Celery publishes it in the worker's parent process, where billiard logs what it raises."""
    history = play(134144)
    (failed,) = history.of("callback-failed")
    again = [entry for entry in history.of("began") if entry.at > failed.at]
    assert ({entry.details["id"] for entry in again}, history.failures, check(history)) == ({"task-1"}, [], [])


def test_seeds_play_different_histories() -> None:
    """Or a million of them would show what one shows."""
    assert play(1).entries != play(2).entries


@pytest.mark.parametrize("seed", SEEDS)
def test_the_shipped_code_keeps_its_promise(seed: int) -> None:
    """No invariant is violated, nothing in the simulation fails, and every message ends."""
    history = play(seed)
    assert history.failures == []
    assert check(history) == []


@pytest.mark.timeout(600)
def test_the_histories_meet_every_precondition_and_every_kind_of_fault() -> None:
    """What never happens proves nothing."""
    missing = {*RATES, *FEATURES, *CONSEQUENCES} - set(EFFECTS)
    others = (RERUN_INVARIANTS, ATOMIC_INVARIANTS, RECEIPT_INVARIANTS, STEP_INVARIANTS, STEP_ROW_INVARIANTS)
    wanted = INVARIANTS.keys() - {name for rules in others for name in rules}
    met: Counter[str] = Counter()
    assert check(sequences.play(0), met) == []
    assert check(directed.play(0), met) == []
    for seed in MOST_SEEDS:
        history = play(seed)
        check(history, met)
        missing -= history.counts.keys()
        if not missing and met.keys() == wanted:
            break
    assert (missing, wanted - met.keys()) == (set(), set())


def test_no_command_imports_the_library_before_a_bug_is_planted_in_it() -> None:
    """A module that is loaded already would stay as it is, and the bug would not be there."""
    commands = "simulation.__main__, simulation.agreement, simulation.exhaustive, simulation.search"
    code = f"import sys, {commands}; print([name for name in sys.modules if name.startswith('idempotent_tasks')])"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert loaded.stdout.strip() == "[]"


@pytest.mark.parametrize("command", [simulate, explore, look_for], ids=lambda command: command.callback.__module__)
def test_a_command_names_planted_bugs_only_where_one_is_mistaken(command: click.Command) -> None:
    """There are too many for its help, which says where they are; a mistake is answered with what was meant."""
    shown = CliRunner().invoke(command, ["--help"])
    assert (shown.exit_code, "no commit" in shown.output) == (0, False)
    assert "simulation/planted.toml" in " ".join(shown.output.split())
    option = "--bug" if command is look_for else "--planted"
    answers = {
        "no comit": "'no comit' is no planted bug; did you mean 'no commit'? simulation/planted.toml has all",
        "qwerty": "'qwerty' is no planted bug; simulation/planted.toml has all",
    }
    for mistake, answer in answers.items():
        refused = CliRunner().invoke(command, [option, mistake])
        assert refused.exit_code == 2
        assert answer in refused.output


def test_every_planted_bug_is_found() -> None:
    """``python -m simulation.search`` has found all that there are."""
    assert [each.bug for each in found()] == [bug.name for bug in PLANTED]


@pytest.mark.parametrize("known", found(), ids=lambda known: known.bug)
def test_a_planted_bug_is_found_again(commands: ForkedCommands, known: Found) -> None:
    """In the history that showed it."""
    history = ("--world", known.world, "--seed", str(known.seed), "--histories", "1")
    played = commands.run("simulation", "--planted", known.bug, *history, timeout_seconds=PLAY_SECONDS)
    assert played.returncode == 1, played.stderr
    assert re.search(rf"^seed {known.seed} \(.*\): {known.invariant} at ", played.stdout, re.MULTILINE), played.stdout
