"""The workers of one contender and their supervisor: a worker that is gone is replaced at once."""

import os
import signal
import sys
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from benchmarks.chaos.arena import VARIABLE, Arena
from benchmarks.chaos.history import What
from tests.testbed.processes import ChildProcess

__all__ = ["POOL_SIZE", "WORKERS", "Fleet"]

PROJECT_ROOT: Final = Path(__file__).parents[2]
#: Workers of a contender, and children (or threads) of a worker: two workers can carry the load, so that while the
#: third starts no key waits for anything but its recovery.
WORKERS: Final = 3
POOL_SIZE: Final = 4
STATIC_CREDENTIALS: Final = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")


@dataclass(frozen=True, slots=True)
class _Worker:
    name: str
    process: ChildProcess


class Fleet:
    """Leaving it as a context manager kills every worker."""

    def __init__(self, arena: Arena, pool: str) -> None:
        self._arena = arena
        self._pool = pool
        self._workers: dict[str, _Worker] = {}
        self._started = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for worker in self._workers.values():
            worker.process.kill()

    def fill(self) -> None:
        """Replace the workers that ended unasked, and start as many as there should be."""
        for worker in list(self._workers.values()):
            if worker.process.returncode is not None:
                # What is left of its pool must not work on beside the new one.
                worker.process.kill()
                del self._workers[worker.name]
                self._arena.journal.append(What.EXITED, worker=worker.name)
        while len(self._workers) < WORKERS:
            self._start()

    def kill(self, name: str) -> None:
        """SIGKILL a worker and its whole pool, then start another."""
        self._workers.pop(name).process.kill()
        self.fill()

    def send(self, name: str, number: signal.Signals) -> None:
        """Send a signal to a worker's whole process group, if it is still there."""
        worker = self._workers.get(name)
        if worker is not None:
            with suppress(ProcessLookupError):
                os.killpg(worker.process.pid, number)

    def send_to_child(self, name: str, pid: int, number: signal.Signals) -> bool:
        """Send a signal to one process of a worker's pool, and return whether it was there."""
        worker = self._workers.get(name)
        with suppress(ProcessLookupError):
            if worker is not None and os.getpgid(pid) == worker.process.pid != pid:
                os.kill(pid, number)
                return True
        return False

    def has(self, name: str) -> bool:
        """Return whether a worker of this name is there."""
        return name in self._workers

    def tails(self) -> str:
        """Return the end of each worker's log, for a failure message."""
        return "\n".join(f"{each.name}:\n{each.process.tail(20)}" for each in self._workers.values())

    def _start(self) -> None:
        self._started += 1
        name = f"w{self._started}@{self._arena.contender}"
        command = [sys.executable, "-m", "celery", "-A", "benchmarks.chaos.worker_app", "worker", "--pool", self._pool]
        command += ["--concurrency", str(POOL_SIZE), "--hostname", name, "--queues", self._arena.queue]
        command += ["--loglevel", "INFO", "--without-gossip", "--without-mingle", "--without-heartbeat"]
        log = Path(self._arena.directory) / f"{name}.log"
        self._workers[name] = _Worker(name, ChildProcess(command, log, self._environment(), PROJECT_ROOT))

    def _environment(self) -> dict[str, str]:
        environment = os.environ | {VARIABLE: self._arena.to_json()}
        if self._arena.credentials_uri:
            environment["AWS_CONTAINER_CREDENTIALS_FULL_URI"] = self._arena.credentials_uri
            # The SDKs look there first.
            for name in STATIC_CREDENTIALS:
                environment.pop(name, None)
        return environment
