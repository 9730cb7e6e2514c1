"""One phase of the demo: publish the payments, strike the doomed, and watch until the broker holds nothing any more."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from celery import Celery
from redis import Redis

from idempotent_tasks.clock import SystemClock
from idempotent_tasks.demo import tasks
from idempotent_tasks.demo.errors import PartError, UnsettledError
from idempotent_tasks.demo.journal import Entry, Journal, Reader, What
from idempotent_tasks.demo.ledger import Ledger, Run, Watcher
from idempotent_tasks.demo.plan import STRIKE_AFTER_SECONDS, Fate, Payment

__all__ = ["Phase", "play"]

_WORKERS = 2
#: Children of each worker.
_POOL_SIZE = 4
_LOG_TAIL_CHARACTERS = 2000
_TICK_SECONDS = 0.05
_START_TIMEOUT_SECONDS = 30
#: A phase takes about 30 s; two that reach this limit still stay under two minutes.
_PHASE_TIMEOUT_SECONDS = 55
#: The broker must have been empty for this long: a message just taken from the queue is nowhere for a moment.
_QUIET_SECONDS = 1.0
#: A stopped process may still finish the system call it was in.
_STOP_SECONDS = 0.02


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
            *("--queues", self._queue, "--hostname", name, "--concurrency", str(_POOL_SIZE), "--loglevel", "INFO"),
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


@dataclass(frozen=True, kw_only=True, slots=True)
class Phase:
    """Where and how the payments are charged this time."""

    #: The task's name, and of its queue and files.
    task: str
    name: str
    broker_url: str
    store_url: str
    folder: Path

    @property
    def journal(self) -> Journal:
        """Where everyone reports."""
        return Journal(self.folder / f"{self.name}.jsonl")

    def fleet(self) -> Fleet:
        """Return workers, none started yet, that charge from this phase's queue."""
        return Fleet(
            queue=self.name,
            folder=self.folder,
            environment={
                tasks.BROKER_VARIABLE: self.broker_url,
                tasks.STORE_VARIABLE: self.store_url,
                tasks.JOURNAL_VARIABLE: str(self.journal.path),
            },
        )


def play(phase: Phase, payments: tuple[Payment, ...], watch: Watcher) -> Ledger:
    """Play a phase to its end and return what happened.

    Raises:
        PartError: a worker did not come up, or ended unasked.
        UnsettledError: the broker still held messages when the time was over.
    """
    with phase.fleet() as fleet:
        player = _Player(phase, payments, fleet, watch)
        player.start_workers()
        player.play()
        return player.ledger


class _Player:
    """The state of one phase while it is played."""

    def __init__(self, phase: Phase, payments: tuple[Payment, ...], fleet: Fleet, watch: Watcher) -> None:
        self.ledger = Ledger(payments)
        self._phase = phase
        self._fleet = fleet
        self._watch = watch
        self._clock = SystemClock()
        self._reader = Reader(phase.journal.path)
        self._producer = tasks.configure(Celery("demo-producer", set_as_current=False), phase.broker_url)
        self._broker = Redis.from_url(phase.broker_url)
        self._unpublished = sorted(_messages(payments), key=lambda message: message[0])
        self._doomed = {
            payment.name: payment.fate is Fate.WORKER_KILLED
            for payment in payments
            if payment.fate in (Fate.CHILD_KILLED, Fate.WORKER_KILLED)
        }

    def start_workers(self) -> None:
        """Start the workers and return when each of them takes messages."""
        for _ in range(_WORKERS):
            self._fleet.start_worker()
        for _ in self._ticks(_START_TIMEOUT_SECONDS):
            if self.ledger.workers_ready == _WORKERS:
                return
        raise PartError(f"the workers were not ready within {_START_TIMEOUT_SECONDS} s")

    def play(self) -> None:
        """Publish and strike as planned, and return when the broker has been empty for a while."""
        begun = busy = self._clock.now()
        for now in self._ticks(_PHASE_TIMEOUT_SECONDS):
            self._publish_until(now - begun)
            self._strike(now)
            if self._unpublished or self._messages_held() or any(self.ledger.open_runs()):
                busy = now
            elif now - busy > _QUIET_SECONDS:
                return
        held = f"the broker still holds {self._messages_held()} messages"
        raise UnsettledError(f"{self._phase.name}: {held} after {_PHASE_TIMEOUT_SECONDS} s")

    def _ticks(self, seconds: float) -> Iterator[float]:
        """Yield the time again and again until so many seconds are over, with the ledger brought up to date."""
        give_up_at = self._clock.now() + seconds
        while (now := self._clock.now()) < give_up_at:
            self._fleet.check()
            self._read_journal()
            self._watch(self.ledger)
            yield now
            self._clock.sleep(_TICK_SECONDS)

    def _read_journal(self) -> None:
        for entry in self._reader.news():
            self.ledger.take(entry)

    def _messages_held(self) -> int:
        """Return how many messages wait in the queue or were taken and not acknowledged."""
        return self._broker.llen(self._phase.name) + self._broker.hlen("unacked")

    def _publish_until(self, elapsed: float) -> None:
        while self._unpublished and self._unpublished[0][0] <= elapsed:
            _, number, payment = self._unpublished.pop(0)
            self._producer.send_task(
                self._phase.task,
                args=(payment.name, payment.cents, payment.seconds),
                task_id=f"{payment.name}.{number}",
                queue=self._phase.name,
            )
            self._report(What.PUBLISHED, payment.name)

    def _strike(self, now: float) -> None:
        for name, run in list(self.ledger.open_runs()):
            if run.open and name in self._doomed and now - run.started >= STRIKE_AFTER_SECONDS:
                self._kill(name, run)

    def _kill(self, name: str, run: Run) -> None:
        """Kill the run's child or worker, unless a run would die after its charge and before it was recorded.

        That window is the stated limit of the promise, so the demo stays out of it: everyone concerned is stopped
        first, and goes on if the journal now shows a charge that is not finished.
        """
        whole_worker = self._doomed[name]
        target = Target(run.worker if whole_worker else run.pid, whole_worker=whole_worker)
        target.send(signal.SIGSTOP)
        self._clock.sleep(_STOP_SECONDS)
        self._read_journal()
        struck = [each for _, each in self.ledger.open_runs() if target.pid in (each.pid, each.worker)]
        if run not in struck or any(each.charged for each in struck):
            target.send(signal.SIGCONT)
            return
        del self._doomed[name]
        self._fleet.kill(target)
        self._report(What.WORKER_KILLED if whole_worker else What.CHILD_KILLED, name, target.pid)
        self._read_journal()
        if whole_worker:
            self._fleet.start_worker()

    def _report(self, what: What, payment: str, pid: int | None = None) -> None:
        pid = os.getpid() if pid is None else pid
        self._phase.journal.append(Entry(at=self._clock.now(), what=what, payment=payment, pid=pid))


def _messages(payments: tuple[Payment, ...]) -> Iterator[tuple[float, int, Payment]]:
    for payment in payments:
        for number, at in enumerate(payment.publish_at, start=1):
            yield at, number, payment
