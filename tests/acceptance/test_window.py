"""The window command as a user starts it, small: real processes, really killed in a body, and real time-outs."""

import sys
from json import loads
from pathlib import Path
from typing import Any

import pytest

from tests.support.commands import run_command

PROJECT_ROOT = Path(__file__).parents[2]
KILLS = 3
#: Those that have a tool against a second effect.
CLOSED = ("key", "recover", "park")


def measure(folder: Path, trouble: str, *ways: str) -> tuple[dict[str, Any], str]:
    """Run the command in one kind of trouble; return the count of each body, and the output."""
    command = [sys.executable, "-m", "benchmarks.window", "--kills", str(KILLS), "--json", "report.json"]
    command += ["--troubles", trouble, "--ways", *ways]
    code, output = run_command(command, folder, folder, PYTHONPATH=str(PROJECT_ROOT))
    assert code == 0, output
    counts = loads((folder / "report.json").read_text(encoding="utf-8"))["counts"]
    assert [count["way"] for count in counts] == list(ways)
    for count in counts:
        assert (count["struck"], count["missing"], count["unanswered"]) == (KILLS, 0, 0), output
        row = [str(count[name]) for name in ("orders", "struck", "repeated", "resolved")]
        assert f" | {' | '.join(row)} |" in output
    return {count["way"]: count for count in counts}, output


@pytest.mark.timeout(150)
def test_small_run_counts_every_kill(tmp_path: Path) -> None:
    """Table and JSON agree: each body had its kills, each order its effect and result, none twice where a tool is."""
    counts, output = measure(tmp_path, "killed", "guarded", *CLOSED)
    assert counts["guarded"]["repeated"] > 0, "three requests that had left, and none was charged"
    for way in CLOSED:
        assert counts[way]["repeated"] == 0, output
    assert counts["park"]["resolved"] > 0, output


@pytest.mark.timeout(150)
def test_body_that_raises_after_its_effect_repeats_it(tmp_path: Path) -> None:
    """Nobody dies, and each order is charged twice where nothing prevents it; no tool lets one pass."""
    counts, output = measure(tmp_path, "raised", "guarded", "recover", "park")
    assert [count["repeated"] for count in counts.values()] == [KILLS, 0, 0], output
    assert counts["park"]["resolved"] == KILLS
