"""Commands in forked processes: each like in an interpreter of its own, and nothing of it in the next."""

import signal
from collections.abc import Iterator

import pytest

from simulation.planted import found
from tests.testbed.forked_commands import ForkedCommands, forked_commands

#: For any command here, on a busy machine.
COMMAND_SECONDS = 60


@pytest.fixture(scope="module")
def commands() -> Iterator[ForkedCommands]:
    """A process to fork from."""
    with forked_commands(["click"]) as commands:
        yield commands


def test_a_command_answers_as_it_does_by_itself(commands: ForkedCommands) -> None:
    """What it prints, what it complains of, and its exit code; its standard input is empty."""
    played = commands.run("simulation", "--histories", "1", timeout_seconds=COMMAND_SECONDS)
    assert (played.returncode, played.stderr) == (0, "")
    assert played.stdout.startswith("1 histories, ")
    refused = commands.run("simulation", "--histories", "many", timeout_seconds=COMMAND_SECONDS)
    assert (refused.returncode, refused.stdout) == (2, "")
    assert refused.stderr.startswith("Usage: ")
    broken = commands.run("json.tool", timeout_seconds=COMMAND_SECONDS)
    assert (broken.returncode, broken.stdout, broken.stderr) == (1, "", "Expecting value: line 1 column 1 (char 0)\n")


def test_an_error_that_nothing_catches_is_shown(commands: ForkedCommands) -> None:
    """With its traceback, as Python shows it."""
    played = commands.run("tests.nowhere", timeout_seconds=COMMAND_SECONDS)
    assert (played.returncode, played.stdout) == (1, "")
    assert "Traceback" in played.stderr
    assert "No module named tests.nowhere" in played.stderr


def test_a_bug_that_one_command_plants_is_in_no_other(commands: ForkedCommands) -> None:
    """The same history, without, with and without the bug."""
    known = found()[0]
    history = ("--world", known.world, "--seed", str(known.seed), "--histories", "1")
    changes: list[tuple[str, ...]] = [(), ("--planted", known.bug), ()]
    played = [commands.run("simulation", *each, *history, timeout_seconds=COMMAND_SECONDS) for each in changes]
    assert [each.returncode for each in played] == [0, 1, 0]


def test_a_command_that_takes_too_long_is_ended(commands: ForkedCommands) -> None:
    """And the next one runs."""
    served = commands.run("http.server", "--bind", "127.0.0.1", "0", timeout_seconds=1)
    assert served.returncode == -signal.SIGALRM
    assert commands.run("json.tool", "--help", timeout_seconds=COMMAND_SECONDS).returncode == 0


def test_nothing_of_ours_is_imported_before_a_command_is_forked() -> None:
    """A bug could not be planted in it any more."""
    with (
        pytest.raises(RuntimeError, match=r"no process to fork from: it ended with 1"),
        forked_commands(["idempotent_tasks"]),
    ):
        pytest.fail("it is ready")


def test_modules_that_are_given_are_imported_once(commands: ForkedCommands) -> None:
    """By the process that is forked from; what else a command imports, it imports itself."""
    loaded = "import sys; print('click' in sys.modules, 'celery' in sys.modules, 'idempotent_tasks' in sys.modules)"
    timed = commands.run("timeit", "--number", "1", "--repeat", "1", loaded, timeout_seconds=COMMAND_SECONDS)
    assert timed.stdout.splitlines()[0] == "True False False"
