"""The outage command as a user starts it, small: real processes, and a DynamoDB that is really away."""

import sys
from json import loads
from pathlib import Path

import pytest

from tests.support.commands import run_command

PROJECT_ROOT = Path(__file__).parents[2]


@pytest.mark.timeout(150)
def test_small_run_accounts_for_every_outcome(tmp_path: Path) -> None:
    """Each body ends in the outage; its outcome is stored later, or came after a second run of its key."""
    command = [sys.executable, "-m", "benchmarks.outage", "--outages", "1", "--json", "report.json"]
    code, output = run_command(command, tmp_path, tmp_path, PYTHONPATH=str(PROJECT_ROOT))
    assert code == 0, output
    count = loads((tmp_path / "report.json").read_text(encoding="utf-8"))["count"]
    assert count["keys"] == 4
    assert count["unrecorded"] == count["recorded_late"] + count["superseded"] >= 4
    assert count["ran_twice"] == count["superseded"]
    assert f"{count['ran_twice']} bodies ran twice" in output
