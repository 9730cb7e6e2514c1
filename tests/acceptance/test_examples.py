"""The examples, run by the commands of their own READMEs."""

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from tests.support.processes import ChildProcess
from tests.support.waiting import wait_for

PAYMENTS = Path(__file__).parents[2] / "examples" / "payments"
START_SECONDS = 60.0
COMMAND_SECONDS = 90.0


class Readme:
    """The commands and outputs of a README, in order."""

    def __init__(self, path: Path) -> None:
        blocks = re.findall(r"^```(\w+)\n(.*?)^```$", path.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
        self.commands = [line for language, text in blocks if language == "sh" for line in text.splitlines()]
        self.outputs = [text for language, text in blocks if language == "text"]

    def command(self, beginning: str) -> list[str]:
        """Return the one command that begins so, run by the Python of the tests."""
        (line,) = [command for command in self.commands if command.startswith(beginning)]
        program, *arguments = shlex.split(line)
        return [sys.executable, *(arguments if program == "python" else ["-m", program, *arguments])]


@pytest.fixture
def environment(redis_url: str, ministack: str, table: str, tmp_path: Path) -> Mapping[str, str]:
    """The servers of the tests in place of those of the README."""
    return os.environ | {
        "BROKER_URL": f"{redis_url}/2",
        "RESULT_URL": f"{redis_url}/3",
        "STORE_URL": f"dynamodb://testing:testing@{urlsplit(ministack).netloc}/{table}",
        "LEDGER": str(tmp_path / "charges.txt"),
    }


@pytest.fixture
def readme() -> Readme:
    """The README of the payments example."""
    return Readme(PAYMENTS / "README.md")


@pytest.fixture
def worker(readme: Readme, environment: Mapping[str, str], tmp_path: Path) -> Iterator[ChildProcess]:
    """The worker of the README, ready, on a table that the README's command made."""
    run(readme.command("python app.py setup"), environment)
    log = tmp_path / "worker.log"
    process = ChildProcess([*readme.command("celery"), "--loglevel", "INFO"], log, environment, PAYMENTS)
    try:
        wait_for(
            lambda: " ready." in process.tail() or process.returncode is not None,
            START_SECONDS,
            lambda: f"the worker is not ready:\n{process.tail()}",
        )
        assert process.returncode is None, f"the worker ended:\n{process.tail()}"
        yield process
    finally:
        process.kill()


def run(command: list[str], environment: Mapping[str, str]) -> str:
    """Run a command in the example's folder and return what it printed."""
    done = subprocess.run(
        command, cwd=PAYMENTS, env=environment, capture_output=True, text=True, timeout=COMMAND_SECONDS, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.usefixtures("worker")
def test_payments_charges_an_order_once(readme: Readme, environment: Mapping[str, str]) -> None:
    """Three messages of one order print what the README shows; another amount is refused and charges nothing."""
    assert run(readme.command("python app.py charge ord-17 4200"), environment) == readme.outputs[0]
    refused = run(readme.command("python app.py charge ord-17 9900"), environment)
    assert "PayloadMismatchError" in refused
    assert "charges made: 1" in refused
