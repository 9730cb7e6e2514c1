"""The chaos command as a user starts it, small: real workers, really killed, and the report of what became of them."""

import sys
from json import loads
from pathlib import Path
from typing import Any

import pytest

from tests.support.commands import run_command
from tests.testbed.processes import free_port
from tests.testbed.servers import MINISTACK_VARIABLE

PROJECT_ROOT = Path(__file__).parents[2]
KEYS, MESSAGES, KILLS = 8, 10, 3


def run(folder: Path, *options: str, **environment: str) -> tuple[int, str]:
    """Run the command with its temporary files in a folder of ours, and return its exit code and output."""
    command = [sys.executable, "-m", "benchmarks.chaos", *options]
    return run_command(command, folder, folder, PYTHONPATH=str(PROJECT_ROOT), **environment)


def fewest_effects(contender: dict[str, Any], keys: int) -> int:
    """Return how many effects there are at least: Redis may lose the only message of a key with a killed worker."""
    return keys - int(contender["tally"]["vanished"])


@pytest.mark.timeout(150)
def test_small_run_finds_ours_intact(tmp_path: Path) -> None:
    """Exit code, tables and JSON agree: every blow fell on both, plain Celery broke promises, `IdempotentTask` none."""
    size = ("--keys", str(KEYS), "--messages", str(MESSAGES), "--kills", str(KILLS))
    files = ("--json", "report.json", "--markdown", "report.md", "--directory", "played")
    code, output = run(tmp_path, "--seed", "3", "--contenders", "plain", "ours", *size, *files)
    assert code == 0, output
    report = loads((tmp_path / "report.json").read_text(encoding="utf-8"))
    plain, ours = report["contenders"]
    assert [plain["name"], ours["name"]] == ["plain", "ours"]
    assert report["plan"] in output
    for contender in (plain, ours):
        counts = contender["counts"]
        assert counts["published"] == MESSAGES
        assert counts["children_killed"] + counts["workers_killed"] + contender["missed"] == KILLS
        assert counts["effects"] >= fewest_effects(contender, KEYS)
        assert contender["settled"], output
    assert plain["tally"]["duplicated"] > 0, "the duplicates alone see to that"
    assert ours["broken"] == 0, output
    assert ours["counts"]["children_killed"] > 0
    table = (tmp_path / "report.md").read_text(encoding="utf-8")
    assert table.count("| plain Celery |") == table.count("| IdempotentTask |") == 2
    assert (tmp_path / "played" / "ours" / "journal.jsonl").stat().st_size > 0


@pytest.mark.timeout(200)
def test_run_with_faults_plays_each_of_them(tmp_path: Path) -> None:
    """A short run of an odd seed has tracing headers and every fault that the plan has; the report counts them."""
    size = ("--keys", "30", "--messages", "40", "--kills", "2")
    files = ("--json", "report.json", "--markdown", "report.md", "--directory", "played")
    code, output = run(tmp_path, "--seed", "5", "--faults", "--contenders", "ours", *size, *files)
    assert code != 2, output
    report = loads((tmp_path / "report.json").read_text(encoding="utf-8"))
    assert report["traced"]
    assert "tracing headers" in report["title"]
    assert report["unplayed"] == []
    assert all(report["faults"]["ours"].values())
    assert report["contenders"][0]["counts"]["published"] == 40
    table = (tmp_path / "report.md").read_text(encoding="utf-8")
    assert all(f"| {fault} | {count} |" in table for fault, count in report["faults"]["ours"].items())


@pytest.mark.timeout(200)
def test_effects_at_a_provider_are_repeated_by_none_of_the_tools(tmp_path: Path) -> None:
    """A small run with the effects at a provider: none was repeated or is missing, and what was parked is resolved."""
    names = ("ours-key", "ours-recover", "ours-park")
    size = ("--keys", "12", "--messages", "15", "--kills", "8")
    code, output = run(tmp_path, "--seed", "2", "--provider", "--contenders", *names, *size, "--json", "report.json")
    assert code == 0, output
    contenders = {each["name"]: each for each in loads((tmp_path / "report.json").read_text())["contenders"]}
    assert set(contenders) == set(names)
    for each in contenders.values():
        assert each["settled"], output
        assert each["tally"]["limit"] == each["broken"] == 0, output
        assert fewest_effects(each, 12) <= each["counts"]["effects"] <= 12, output
    counts = contenders["ours-park"]["counts"]
    assert counts["parked"] == counts["resolved"] > 0, output


@pytest.mark.timeout(200)
def test_effects_in_a_database_are_repeated_by_none_that_commits_its_result_with_them(
    tmp_path: Path, postgresql: dict[str, str]
) -> None:
    """A small run with rows and items as effects: with the result in their transaction there is one for each key."""
    names = ("ours-receipts", "ours-atomic", "by-hand")
    size = ("--keys", "12", "--messages", "15", "--kills", "8")
    options = ("--seed", "2", "--rows", "--contenders", *names, *size, "--json", "report.json")
    code, output = run(tmp_path, *options, **postgresql)
    assert code == 0, output
    contenders = {each["name"]: each for each in loads((tmp_path / "report.json").read_text())["contenders"]}
    assert set(contenders) == set(names)
    for each in contenders.values():
        assert each["settled"], output
        assert each["counts"]["children_killed"] > 0
        assert each["tally"]["limit"] == each["tally"]["zombie_effect"] == each["broken"] == 0, output
        assert fewest_effects(each, 12) <= each["counts"]["effects"] <= 12, output
    # Whose effects are zombies' shows in the claims; a lock by hand has none.
    counts = [contenders[name]["counts"] for name in names]
    assert [each["claims"] >= each["runs"] > 0 for each in counts] == [True, True, False]


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (("--contenders", "ours", "ours-park"), "only with --provider: ours-park"),
        (("--provider", "--contenders", "ours-park", "ours-atomic"), "only with --rows: ours-atomic"),
        (("--provider", "--rows"), "not allowed with argument"),
    ],
)
def test_effects_are_in_one_place(tmp_path: Path, options: tuple[str, ...], reason: str) -> None:
    """The command says which option a contender lacks, and takes one place of the effects only."""
    code, output = run(tmp_path, *options)
    assert code == 2
    assert reason in output


def test_run_that_cannot_be_played_says_why(tmp_path: Path) -> None:
    """A server that is not installed is named with its remedy, and the exit code is neither kept nor broken."""
    nowhere = {MINISTACK_VARIABLE: str(tmp_path / "nowhere"), "REDIS_URL": f"redis://127.0.0.1:{free_port()}"}
    code, output = run(tmp_path, "--contenders", "ours", **nowhere)
    assert code == 2, output
    assert "ministack" in output
