"""Real ``celery worker`` processes, each a process group that a test can kill as a whole or in part."""

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

from tests.support.app import VARIABLE, AppConfig
from tests.testbed.processes import ChildProcess, running_in_group
from tests.testbed.waiting import wait_for

__all__ = ["Worker"]

PROJECT_ROOT = Path(__file__).parents[2]
START_SECONDS = 30.0
#: Each makes a worker start by an interpreter of its own; the first is there for nothing else.
FRESH_VARIABLES = {"IDEMPOTENT_TASKS_FRESH_WORKERS", "REMAP_SIGTERM"}


class Worker:
    """One worker, by default with a pool of child processes; starting it returns when it consumes."""

    def __init__(self, config: AppConfig, concurrency: int = 2, *options: str, pool: str = "prefork") -> None:
        self.name = f"w{uuid4().hex[:6]}@localhost"
        command = [sys.executable, "-m", "celery", "-A", "tests.support.worker_app", "worker", "--pool", pool]
        command += ["--concurrency", str(concurrency), "--hostname", self.name, "--queues", config.queue]
        command += ["--loglevel", "INFO", "--without-gossip", "--without-mingle", "--without-heartbeat", *options]
        log = Path(config.directory) / f"{self.name}.log"
        environment = os.environ | {VARIABLE: config.to_json()}
        # gevent and eventlet replace what other modules import, and must come before them; the variables are read by
        # what was imported already.
        preloaded = pool in ("prefork", "solo", "threads") and not FRESH_VARIABLES & set(os.environ)
        self.process = ChildProcess(command, log, environment, PROJECT_ROOT, preloaded=preloaded)
        self._journal = config.journal

    def wait_until_ready(self) -> None:
        """Return when the worker consumes.

        Raises:
            TimeoutError: with the end of its log.
        """
        wait_for(
            lambda: self.process.returncode is not None or self._journal.entries("worker-ready", worker=self.name),
            START_SECONDS,
            lambda: f"worker {self.name} is not ready:\n{self.process.tail()}",
        )
        assert self.process.returncode is None, f"worker {self.name} exited:\n{self.process.tail()}"

    def kill(self) -> None:
        """SIGKILL the parent and every child of its pool at once."""
        self.process.kill()

    def retire(self) -> None:
        """Terminate the parent when it has acknowledged every delivery that it received, and return when it has exited.

        Raises:
            TimeoutError: with the journal, or the end of its log.
        """
        here = {"pid": self.process.pid}
        self._journal.wait_for("acknowledged", times=self._journal.count("received", **here), **here)
        self.process.terminate()

    def shut_down(self, *numbers: signal.Signals) -> None:
        """Send the parent one signal after another, each when it heard the one before, and return when it has exited.

        Raises:
            TimeoutError: with the end of its log.
        """
        *first, last = numbers
        for heard, number in enumerate(first, 1):
            self.process.send(number)
            self._wait_until_heard(heard)
        self.process.end_by(last, START_SECONDS)

    def kill_child(self, pid: int) -> None:
        """SIGKILL one child of the pool; a body writes its own id into the journal."""
        self._signal_child(pid, signal.SIGKILL)

    @contextmanager
    def frozen_child(self, pid: int) -> Iterator[None]:
        """Let one child of the pool stand still, all its threads included, for the length of a block."""
        self._signal_child(pid, signal.SIGSTOP)
        try:
            yield
        finally:
            self._signal_child(pid, signal.SIGCONT)

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """Let the parent and every child of its pool stand still for the length of a block."""
        os.killpg(self.process.pid, signal.SIGSTOP)
        try:
            yield
        finally:
            os.killpg(self.process.pid, signal.SIGCONT)

    def children(self) -> list[int]:
        """Return the ids of the pool's processes."""
        return [pid for pid in running_in_group(self.process.pid) if pid != self.process.pid]

    def log(self) -> str:
        """Return everything the worker logged."""
        return self.process.log.read_text(errors="replace")

    def _wait_until_heard(self, shutdowns: int) -> None:
        wait_for(
            lambda: self.log().count(" shutdown (MainProcess)") >= shutdowns,
            START_SECONDS,
            lambda: f"worker {self.name} does not hear:\n{self.process.tail()}",
        )

    def _signal_child(self, pid: int, number: signal.Signals) -> None:
        assert pid in self.children(), f"{pid} is no child of {self.name}: {self.children()}"
        os.kill(pid, number)
