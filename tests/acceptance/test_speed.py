"""The speed command as a user starts it, small: the counts that it promises, and one report in three forms."""

import os
import sys
from json import loads
from pathlib import Path
from typing import Any

import pytest

from tests.support.commands import run_command
from tests.testbed.servers import MINISTACK_VARIABLE

PROJECT_ROOT = Path(__file__).parents[2]


def run(folder: Path, *options: str, **environment: str) -> tuple[int, str]:
    """Run the command with its temporary files in a folder of ours, and return its exit code and output."""
    command = [sys.executable, "-m", "benchmarks.speed", "--quick", *options]
    return run_command(command, folder, PROJECT_ROOT, **environment)


@pytest.mark.timeout(150)
def test_quick_run_of_the_cheap_parts(tmp_path: Path) -> None:
    """Requests are what the protocol promises, the import does nothing, and the terminal, Markdown and JSON agree."""
    files = ("--json", str(tmp_path / "speed.json"), "--markdown", str(tmp_path / "speed.md"))
    code, output = run(tmp_path, "--only", "requests", "imports", *files)
    assert code == 0, output
    report = loads((tmp_path / "speed.json").read_text(encoding="utf-8"))
    ours = rows(report, "requests", "IdempotentTask")
    assert {measure: row["median"] for measure, row in ours.items()} == {
        "first run": 2,
        "replay": 1,
        "replay from the process's memory": 0,
        "first run with a link": 3,
    }
    done = rows(report, "imports", "import idempotent_tasks")
    assert [row["median"] for row in done.values()] == [0, 0, 0]
    assert all(row["judged"] == "reached" for row in (*ours.values(), *done.values()))
    assert report["machine"]["cores"] == os.cpu_count()
    assert report["machine"]["versions"]["celery"] in output
    table = (tmp_path / "speed.md").read_text(encoding="utf-8").splitlines()
    for row in report["rows"]:
        cells = [line for line in table if line.startswith(f"| {row['measure']} | {row['subject']} |")]
        assert [cell.split(" | ")[-1] for cell in cells] == [f"{row['judged']} |"], row
        assert row["measure"] in output


@pytest.mark.timeout(150)
def test_quick_run_of_a_flood(tmp_path: Path) -> None:
    """Every message of a busy key is put off at least once, and all have the result in the end."""
    code, output = run(tmp_path, "--only", "flood", "--json", str(tmp_path / "speed.json"))
    # So small a flood is no measurement.
    assert code in (0, 1), output
    report = loads((tmp_path / "speed.json").read_text(encoding="utf-8"))
    for subject in ("20 duplicates, threads 4", "20 duplicates, prefork 2"):
        measured = rows(report, "flood", subject)
        assert measured["deliveries by duplicates"]["median"] > 1
        assert measured["until all have the result"]["median"] > 0


def test_part_that_cannot_be_measured_says_why(tmp_path: Path) -> None:
    """A server that is not installed is named with its remedy, and the exit code is neither reached nor missed."""
    code, output = run(tmp_path, "--only", "requests", **{MINISTACK_VARIABLE: str(tmp_path / "nowhere")})
    assert code == 2, output
    assert "not measured: requests: ministack" in output


def rows(report: Any, part: str, subject: str) -> dict[str, Any]:
    """Return a part's rows of one subject, by measure."""
    return {row["measure"]: row for row in report["rows"] if (row["part"], row["subject"]) == (part, subject)}
