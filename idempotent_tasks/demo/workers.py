"""The demo's Celery workers: real processes with prefork pools, which can be stopped in mid-step and killed."""

import os
import signal
import subprocess
import sys
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from idempotent_tasks.demo.errors import PartError

__all__ = ["POOL_SIZE", "Fleet", "Target"]

#: Children of each worker.
POOL_SIZE = 4
_LOG_TAIL_CHARACTERS = 2000


@dataclass(frozen=True, slots=True)
class Target:
    """What a signal goes to: one pool child, or a worker with all its children."""

    pid: int
    whole_worker: bool

    def send(self, number: signal.Signals) -> None:
        """Send a signal; to those that are gone already it makes no difference."""
        with suppress(ProcessLookupError):
            if self.whole_worker:
                os.killpg(self.pid, number)
            else:
                os.kill(self.pid, number)


@dataclass(frozen=True, slots=True)
class _Worker:
    process: subprocess.Popen[bytes]
    log: Path


class Fleet:
    """The workers of one phase; leaving it as a context manager kills them all."""

    def __init__(self, *, queue: str, folder: Path, environment: dict[str, str]) -> None:
        self._queue = queue
        self._folder = folder
        self._environment = environment
        self._workers: dict[int, _Worker] = {}
        self._started = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for pid in list(self._workers):
            self.kill(Target(pid, whole_worker=True))

    def start_worker(self) -> None:
        """Start one more worker, in a process group of its own."""
        self._started += 1
        path = self._folder / f"{self._queue}-{self._started}.log"
        with path.open("wb") as log:
            process = subprocess.Popen(  # noqa: S603 - our own command line
                self._command(f"{self._queue}-{self._started}@demo"),
                env={**os.environ, **self._environment},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self._workers[process.pid] = _Worker(process, path)

    def _command(self, name: str) -> list[str]:
        return [
            *(sys.executable, "-m", "celery", "-A", "idempotent_tasks.demo.tasks", "worker"),
            *("--queues", self._queue, "--hostname", name, "--concurrency", str(POOL_SIZE), "--loglevel", "INFO"),
            *("--without-gossip", "--without-mingle", "--without-heartbeat"),
        ]

    def check(self) -> None:
        """Raise `PartError`, with the end of its log, for a worker that ended unasked."""
        for worker in self._workers.values():
            if worker.process.poll() is not None:
                log = worker.log.read_text(errors="replace")[-_LOG_TAIL_CHARACTERS:]
                raise PartError(f"a worker ended with exit code {worker.process.returncode}; its log ends with\n{log}")

    def kill(self, target: Target) -> None:
        """Kill a pool child; or a worker with its pool, and collect what is left of it."""
        target.send(signal.SIGKILL)
        if target.whole_worker:
            self._workers.pop(target.pid).process.wait()
