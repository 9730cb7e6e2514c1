"""Whether the end of a process is noticed at the moment at which it can be reaped."""

import os
import signal
import subprocess
from collections.abc import Iterator

import pytest
from kombu.asynchronous import Hub

from idempotent_tasks.worker.reaper import ChildExitWatcher

#: Rounds of the loop, each of which waits for up to a second where nothing happens.
ROUNDS = 30

pytestmark = pytest.mark.skipif(not hasattr(os, "pidfd_open"), reason="Linux only: this Python has no pidfd_open")


@pytest.fixture
def loop() -> Iterator[Hub]:
    """An event loop as a worker's."""
    hub = Hub()
    yield hub
    hub.close()


@pytest.fixture
def process() -> Iterator[subprocess.Popen[bytes]]:
    """A process that lives until it is killed."""
    with subprocess.Popen(["sleep", "600"]) as process:
        yield process
        process.kill()


def turn_until(loop: Hub, happened: list[bool]) -> None:
    """Turn the loop until something has happened, or for a bounded number of rounds."""
    for _ in range(ROUNDS):
        if happened:
            return
        loop.run_once()


def test_the_pool_is_looked_after_once_the_process_can_be_reaped(loop: Hub, process: subprocess.Popen[bytes]) -> None:
    """A killed process is a zombie when the pool is told, so that it is certain to find it dead."""
    seen: list[bool] = []
    ChildExitWatcher().watch(process.pid, loop, lambda: seen.append(process.poll() is not None))
    process.send_signal(signal.SIGKILL)
    turn_until(loop, seen)
    assert seen == [True]


def test_a_process_is_watched_once(loop: Hub, process: subprocess.Popen[bytes]) -> None:
    """A process that takes many deliveries costs one handle and tells of its end once."""
    seen: list[bool] = []
    exits = ChildExitWatcher()
    for _ in range(3):
        exits.watch(process.pid, loop, lambda: seen.append(True))
    assert len(loop.readers) == 1
    process.kill()
    turn_until(loop, seen)
    assert seen == [True]
    assert not loop.readers


def test_a_loop_that_forgot_is_told_again(loop: Hub, process: subprocess.Popen[bytes]) -> None:
    """A worker that connects again resets its loop; the next delivery of the process has it watched again."""
    seen: list[bool] = []
    exits = ChildExitWatcher()
    exits.watch(process.pid, loop, lambda: seen.append(True))
    loop.reset()
    exits.watch(process.pid, loop, lambda: seen.append(True))
    process.kill()
    turn_until(loop, seen)
    assert seen == [True]


def test_a_process_that_is_gone_is_no_failure(loop: Hub, process: subprocess.Popen[bytes]) -> None:
    """A process that was reaped before it could be watched is the pool's business already."""
    process.kill()
    process.wait()
    ChildExitWatcher().watch(process.pid, loop, lambda: pytest.fail("there was nothing to tell"))
    assert not loop.readers


def test_nothing_is_watched_without_a_handle(
    loop: Hub, process: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the system has no handles for processes, Celery's own notice must do."""
    monkeypatch.delattr(os, "pidfd_open")
    ChildExitWatcher().watch(process.pid, loop, lambda: pytest.fail("nobody can tell"))
    assert not loop.readers
