"""The window command as a user starts it, small: real processes, really killed in a body."""

import sys
from json import loads
from pathlib import Path

import pytest

from tests.support.commands import run_command

PROJECT_ROOT = Path(__file__).parents[2]
KILLS = 3


@pytest.mark.timeout(150)
def test_small_run_counts_every_kill(tmp_path: Path) -> None:
    """Table and JSON agree: each kind of effect had its kills, each order its effect, a known key none twice."""
    command = [sys.executable, "-m", "benchmarks.window", "--kills", str(KILLS), "--json", "report.json"]
    code, output = run_command(command, tmp_path, tmp_path, PYTHONPATH=str(PROJECT_ROOT))
    assert code == 0, output
    counts = loads((tmp_path / "report.json").read_text(encoding="utf-8"))["counts"]
    assert len(counts) == 3
    for count in counts:
        assert (count["kills"], count["missing"]) == (KILLS, 0), output
        row = [count["effect"], *(str(count[name]) for name in ("orders", "kills", "repeated"))]
        assert f"| {' | '.join(row)} |" in output
    remote, recognised, _ = counts
    assert remote["repeated"] > 0, "three requests that had left, and none was charged"
    assert recognised["repeated"] == 0
