"""The workers of one contender: a supervisor replaces those that are gone, a nemesis strikes as planned."""

import os
import signal
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from benchmarks.chaos.arena import Arena, Journal
from benchmarks.chaos.history import History, Run, What
from benchmarks.chaos.plan import Strike
from tests.testbed.workers import CeleryWorker

__all__ = ["POOL_SIZE", "WORKERS", "WORKER_APP", "Fleet", "Nemesis", "environment_of"]

#: Workers of a contender, and children (or threads) of a worker: two workers can carry the load, so that while the
#: third starts no key waits for anything but its recovery.
WORKERS: Final = 3
POOL_SIZE: Final = 4
#: What ``celery -A`` loads.
WORKER_APP: Final = "benchmarks.chaos.worker_app"
STATIC_CREDENTIALS: Final = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")


def environment_of(arena: Arena) -> dict[str, str]:
    """Return the whole environment of a process that loads `WORKER_APP`."""
    environment = os.environ | arena.environment()
    if arena.credentials_uri:
        environment["AWS_CONTAINER_CREDENTIALS_FULL_URI"] = arena.credentials_uri
        # The SDKs look there first.
        for name in STATIC_CREDENTIALS:
            environment.pop(name, None)
    return environment


class Fleet:
    """Leaving it as a context manager kills every worker."""

    def __init__(self, arena: Arena, pool: str) -> None:
        self._arena = arena
        self._pool = pool
        self._workers: dict[str, CeleryWorker] = {}
        self._started = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for worker in self._workers.values():
            worker.kill()

    def fill(self) -> None:
        """Replace the workers that ended unasked, and start as many as there should be."""
        for worker in list(self._workers.values()):
            if worker.process.returncode is not None:
                # What is left of its pool must not work on beside the new one.
                worker.kill()
                del self._workers[worker.name]
                self._arena.journal.append(What.EXITED, worker=worker.name)
        while len(self._workers) < WORKERS:
            self._start()

    def kill(self, name: str) -> None:
        """SIGKILL a worker and its whole pool, then start another."""
        self._workers.pop(name).kill()
        self.fill()

    def send(self, name: str, number: signal.Signals) -> None:
        """Send a signal to a worker's whole process group, if it is still there."""
        if name in self._workers:
            self._workers[name].signal_all(number)

    def send_to_child(self, name: str, pid: int, number: signal.Signals) -> None:
        """Send a signal to one process of a worker's pool, if it is still there."""
        if name in self._workers:
            self._workers[name].signal_child(pid, number)

    def has(self, name: str) -> bool:
        """Return whether a worker of this name is there."""
        return name in self._workers

    def tails(self) -> str:
        """Return the end of each worker's log, for a failure message."""
        return "\n".join(f"{each.name}:\n{each.process.tail(20)}" for each in self._workers.values())

    def _start(self) -> None:
        self._started += 1
        name = f"w{self._started}@{self._arena.contender}"
        self._workers[name] = CeleryWorker(
            WORKER_APP,
            name,
            self._arena.queue,
            Path(self._arena.directory),
            environment_of(self._arena),
            pool=self._pool,
            concurrency=POOL_SIZE,
        )


#: A blow that finds no victim for so many seconds falls no more.
WAIT_SECONDS: Final = 15.0


@dataclass(kw_only=True)
class Nemesis:
    """Strikes one contender as planned."""

    strikes: Sequence[Strike]
    fleet: Fleet
    journal: Journal
    #: How many blows found no victim.
    missed: int = 0
    _next: int = 0
    _stopped: list[tuple[float, Run, Strike]] = field(default_factory=list)

    @property
    def done(self) -> bool:
        """Whether every blow fell, and everything that was paused goes on again."""
        return self._next == len(self.strikes) and not self._stopped

    def strike(self, elapsed: float, history: History) -> None:
        """Let the blows fall that are due.

        Args:
            elapsed: seconds from the beginning.
            history: everything until now; what falls here is not in it yet.
        """
        self._resume(elapsed)
        victims = [run for run in history.running() if not self._is_stopped(run) and self.fleet.has(run.started.worker)]
        while self._next < len(self.strikes) and self.strikes[self._next].at <= elapsed:
            strike = self.strikes[self._next]
            if victims:
                victim = victims[int(strike.rank * len(victims))]
                self._fall(strike, victim, elapsed)
                victims = [run for run in victims if run.started.worker != victim.started.worker]
            elif elapsed - strike.at < WAIT_SECONDS:
                return
            else:
                self.missed += 1
            self._next += 1

    def resume_all(self) -> None:
        """Let everything go on that is still paused."""
        self._resume(float("inf"))

    def _fall(self, strike: Strike, victim: Run, elapsed: float) -> None:
        what = What.KILLED if strike.kind.kills else What.PAUSED
        worker, pid = victim.started.worker, victim.started.pid
        # Before the signal: what a victim's successor does is then never older than the blow.
        self.journal.append(what, worker=worker, pid=0 if strike.kind.whole_worker else pid, key=victim.key)
        if not strike.kind.kills:
            self._stopped.append((elapsed + strike.seconds, victim, strike))
        number = signal.SIGKILL if strike.kind.kills else signal.SIGSTOP
        if not strike.kind.whole_worker:
            self.fleet.send_to_child(worker, pid, number)
        elif strike.kind.kills:
            self.fleet.kill(worker)
        else:
            self.fleet.send(worker, number)
        if strike.kind.kills:
            self.journal.append(What.STRUCK, worker=worker, pid=0 if strike.kind.whole_worker else pid)

    def _resume(self, elapsed: float) -> None:
        for due in [each for each in self._stopped if each[0] <= elapsed]:
            self._stopped.remove(due)
            _, victim, strike = due
            worker, pid = victim.started.worker, victim.started.pid
            if strike.kind.whole_worker:
                self.fleet.send(worker, signal.SIGCONT)
            else:
                self.fleet.send_to_child(worker, pid, signal.SIGCONT)
            self.journal.append(What.RESUMED, worker=worker, pid=0 if strike.kind.whole_worker else pid)

    def _is_stopped(self, run: Run) -> bool:
        return any(
            run.started.worker == victim.started.worker
            if strike.kind.whole_worker
            else run.started.pid == victim.started.pid
            for _, victim, strike in self._stopped
        )
