"""The outage command as a user starts it, small: real processes, and a DynamoDB that is really away."""

import sys
from json import loads
from pathlib import Path

import pytest

from tests.support.commands import run_command

PROJECT_ROOT = Path(__file__).parents[2]


@pytest.mark.timeout(150)
def test_small_run_accounts_for_every_outcome(tmp_path: Path) -> None:
    """Each body ends in the outage; its outcome is stored later, or came too late: after a second run, or `recover`."""
    command = [sys.executable, "-m", "benchmarks.outage", "--outages", "1", "--json", "report.json"]
    code, output = run_command(command, tmp_path, tmp_path, PYTHONPATH=str(PROJECT_ROOT))
    assert code == 0, output
    counts = loads((tmp_path / "report.json").read_text(encoding="utf-8"))["counts"]
    assert [count["way"] for count in counts] == ["guarded", "recover"]
    for count in counts:
        assert count["keys"] == 4
        assert count["unrecorded"] == count["recorded_late"] + count["superseded"] >= 4
        ran = (count["charged_twice"], count["ran_twice"])
        assert f"| {count['way']} | 4 | {ran[0]} | {ran[1]} |" in output
    guarded, recovering = counts
    assert guarded["charged_twice"] == guarded["ran_twice"] == guarded["superseded"]
    assert recovering["charged_twice"] == recovering["ran_twice"] == 0
