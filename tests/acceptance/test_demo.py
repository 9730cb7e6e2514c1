"""The demo as a user starts it: one command, real processes, and nothing left of them."""

import os
import signal
import subprocess
import sys
from json import loads
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

from tests.testbed.waiting import wait_for

PAYMENTS = 12
PLAY_SECONDS = 140.0
START_SECONDS = 40.0
END_SECONDS = 15.0
#: Broker, store, two workers.
FEWEST_PROCESSES = 4

HAS_PROC = Path("/proc/self/environ").exists()


def start(folder: Path, *options: str) -> subprocess.Popen[bytes]:
    """Start the demo with its temporary files in a folder of ours, its output beside it."""
    with (folder.parent / "output.txt").open("wb") as output:
        return subprocess.Popen(
            [sys.executable, "-m", "idempotent_tasks", "demo", "--payments", str(PAYMENTS), *options],
            cwd=folder.parent,
            env=os.environ | {"TMPDIR": str(folder)},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
        )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The folder for the demo's temporary files."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    return folder


def processes_of(folder: Path) -> list[str]:
    """Return the command lines of the processes that work in the folder, or were told of it by their environment."""
    return [command for process in Path("/proc").iterdir() if (command := _command_if_of(process, folder))]


def _command_if_of(process: Path, folder: Path) -> str:
    try:
        of_folder = str(folder).encode() in (process / "environ").read_bytes() + os.fsencode(
            (process / "cwd").readlink()
        )
        return (process / "cmdline").read_bytes().replace(b"\0", b" ").decode() if of_folder else ""
    except OSError:
        return ""


def assert_nothing_left(folder: Path) -> None:
    """Fail for a file of the demo, and, where /proc tells, for a process of it that does not go away."""
    assert list(folder.iterdir()) == [], "temporary files are left"
    if HAS_PROC:
        wait_for(lambda: not processes_of(folder), END_SECONDS, lambda: f"left behind: {processes_of(folder)}")


def finish(demo: subprocess.Popen[bytes], seconds: float) -> int:
    """Return the exit code; a demo that takes longer is asked to end, so that it takes its processes along."""
    try:
        return demo.wait(seconds)
    except subprocess.TimeoutExpired:
        demo.terminate()
        demo.wait(END_SECONDS)
        raise


@pytest.mark.timeout(180)
def test_demo_keeps_the_promise_where_the_plain_task_breaks_it(folder: Path, tmp_path: Path) -> None:
    """The plain task charges too often, ours charges each payment once; exit code, figures and picture say so."""
    demo = start(folder, "--json", "figures.json", "--svg", "timeline.svg")
    exit_code = finish(demo, PLAY_SECONDS)
    output = (tmp_path / "output.txt").read_text(encoding="utf-8")
    assert exit_code == 0, output
    figures = loads((tmp_path / "figures.json").read_text(encoding="utf-8"))
    plain, ours = figures["plain"], figures["idempotent"]
    assert plain["wanted"] == ours["wanted"] == PAYMENTS
    assert plain["charges"] > PAYMENTS
    assert plain["charged_twice"] > 0
    assert (ours["charges"], ours["charged_twice"], ours["lost"]) == (PAYMENTS, 0, 0)
    assert ours["charged_cents"] == ours["wanted_cents"] == plain["wanted_cents"]
    for phase in (plain, ours):
        assert phase["children_killed"] >= 1
        assert phase["workers_killed"] == 1
        assert phase["recoveries"] >= 2
        assert phase["published"] > PAYMENTS
    assert ours["replays"] > 0
    assert ours["deferrals"] > 0
    assert figures["promise_kept"] is True
    assert "The promise held" in output
    texts = [element.text for element in ET.parse(tmp_path / "timeline.svg").iter() if element.tag.endswith("text")]
    assert {f"pay-{number:02d}" for number in range(1, PAYMENTS + 1)} <= set(texts)
    assert_nothing_left(folder)


@pytest.mark.skipif(not HAS_PROC, reason="reads /proc to find processes")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_demo_that_is_interrupted_leaves_nothing(folder: Path, tmp_path: Path, number: signal.Signals) -> None:
    """Ctrl-C or SIGTERM in the middle of it ends every process and removes every file of the demo."""
    demo = start(folder)
    try:
        wait_for(
            lambda: any("ready" in journal.read_text() for journal in folder.rglob("plain.jsonl")),
            START_SECONDS,
            lambda: f"no worker is ready:\n{(tmp_path / 'output.txt').read_text()}",
        )
        assert len(processes_of(folder)) > FEWEST_PROCESSES
    finally:
        demo.send_signal(number)
        exit_code = finish(demo, END_SECONDS)
    assert exit_code == 128 + number
    assert_nothing_left(folder)
