"""One phase of the demo: start workers, publish the payments, kill as planned, wait until the broker is empty."""

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

from idempotent_tasks.core.clock import SystemClock
from idempotent_tasks.demo import tasks
from idempotent_tasks.demo.errors import PartError, UnsettledError
from idempotent_tasks.demo.journal import Entry, Journal, Reader, What
from idempotent_tasks.demo.ledger import Ledger, Run, Watcher
from idempotent_tasks.demo.plan import KILL_AFTER_SECONDS, Fault, Payment

__all__ = ["Phase", "play"]

_WORKER_COUNT = 2
#: Pool children of each worker.
_POOL_SIZE = 4
_LOG_TAIL_CHARACTERS = 2000
_TICK_SECONDS = 0.05
_START_TIMEOUT_SECONDS = 30
#: A phase takes about 30 s, and two at this limit still less than two minutes.
_PHASE_TIMEOUT_SECONDS = 55
#: The broker must be empty for this long: a message on its way from the queue is counted nowhere.
_QUIET_SECONDS = 1.0
#: A process that was sent SIGSTOP may still finish its system call.
_STOP_SECONDS = 0.02


@dataclass(frozen=True, slots=True)
class Target:
    """The target of a signal: one pool child, or a worker with all its children."""

    pid: int
    whole_worker: bool

    def send(self, number: signal.Signals) -> None:
        """Send a signal; a process that is gone already is ignored."""
        with suppress(ProcessLookupError):
            if self.whole_worker:
                os.killpg(self.pid, number)
            else:
                os.kill(self.pid, number)


@dataclass(frozen=True, slots=True)
class _Worker:
    process: subprocess.Popen[bytes]
    log: Path


class Workers:
    """The Celery workers of one phase, with prefork pools; leaving the context manager kills them."""

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

    def start(self) -> None:
        """Start one more worker, in its own process group."""
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
        """Raise `PartError` with the end of its log if a worker has exited."""
        for worker in self._workers.values():
            if worker.process.poll() is not None:
                log = worker.log.read_text(errors="replace")[-_LOG_TAIL_CHARACTERS:]
                raise PartError(f"a worker ended with exit code {worker.process.returncode}; its log ends with\n{log}")

    def kill(self, target: Target) -> None:
        """Kill a pool child, or a worker with its pool."""
        target.send(signal.SIGKILL)
        if target.whole_worker:
            self._workers.pop(target.pid).process.wait()


@dataclass(frozen=True, kw_only=True, slots=True)
class Phase:
    """The task, the servers and the files of one phase."""

    #: The task's name.
    task: str
    #: The name of the queue and of the files.
    name: str
    broker_url: str
    store_url: str
    folder: Path

    @property
    def journal(self) -> Journal:
        """The journal of this phase."""
        return Journal(self.folder / f"{self.name}.jsonl")

    def workers(self) -> Workers:
        """Return the workers of this phase's queue, none of them started."""
        return Workers(
            queue=self.name,
            folder=self.folder,
            environment={
                tasks.BROKER_VARIABLE: self.broker_url,
                tasks.STORE_VARIABLE: self.store_url,
                tasks.JOURNAL_VARIABLE: str(self.journal.path),
            },
        )


def play(phase: Phase, payments: tuple[Payment, ...], watch: Watcher) -> Ledger:
    """Run a phase to its end and return its ledger.

    Raises:
        PartError: a worker did not start, or exited unexpectedly.
        UnsettledError: the broker still held messages when the time was over.
    """
    with phase.workers() as workers:
        player = _Player(phase, payments, workers, watch)
        player.start_workers()
        player.play()
        return player.ledger


class _Player:
    """One phase while it runs."""

    def __init__(self, phase: Phase, payments: tuple[Payment, ...], workers: Workers, watch: Watcher) -> None:
        self.ledger = Ledger(payments)
        self._phase = phase
        self._workers = workers
        self._watch = watch
        self._clock = SystemClock()
        self._reader = Reader(phase.journal.path)
        self._producer = tasks.configure(Celery("demo-producer", set_as_current=False), phase.broker_url)
        self._broker = Redis.from_url(phase.broker_url)
        self._unpublished = sorted(_messages(payments), key=lambda message: message[0])
        self._to_kill = {
            payment.name: payment.fault is Fault.WORKER_KILLED
            for payment in payments
            if payment.fault in (Fault.CHILD_KILLED, Fault.WORKER_KILLED)
        }

    def start_workers(self) -> None:
        """Start the workers and return when each of them is ready."""
        for _ in range(_WORKER_COUNT):
            self._workers.start()
        for _ in self._ticks(_START_TIMEOUT_SECONDS):
            if self.ledger.workers_ready == _WORKER_COUNT:
                return
        raise PartError(f"the workers were not ready within {_START_TIMEOUT_SECONDS} s")

    def play(self) -> None:
        """Publish and kill as planned, and return when the broker has been empty for `_QUIET_SECONDS`."""
        begun = busy = self._clock.now()
        for now in self._ticks(_PHASE_TIMEOUT_SECONDS):
            self._publish_until(now - begun)
            self._kill_due(now)
            if self._unpublished or self._messages_held() or any(self.ledger.open_runs()):
                busy = now
            elif now - busy > _QUIET_SECONDS:
                return
        held = f"the broker still holds {self._messages_held()} messages"
        raise UnsettledError(f"{self._phase.name}: {held} after {_PHASE_TIMEOUT_SECONDS} s")

    def _ticks(self, seconds: float) -> Iterator[float]:
        """Update the ledger and yield the time (epoch seconds), every `_TICK_SECONDS`, for this many seconds."""
        give_up_at = self._clock.now() + seconds
        while (now := self._clock.now()) < give_up_at:
            self._workers.check()
            self._read_journal()
            self._watch(self.ledger)
            yield now
            self._clock.sleep(_TICK_SECONDS)

    def _read_journal(self) -> None:
        for entry in self._reader.news():
            self.ledger.add(entry)

    def _messages_held(self) -> int:
        """Return how many messages are queued or unacknowledged."""
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

    def _kill_due(self, now: float) -> None:
        for name, run in list(self.ledger.open_runs()):
            if run.open and name in self._to_kill and now - run.started >= KILL_AFTER_SECONDS:
                self._kill(name, run)

    def _kill(self, name: str, run: Run) -> None:
        """Kill the run's child or worker, unless a run would die between its charge and the commit of its result.

        In that window the library does not prevent a second charge (its stated limit), so the demo does not kill there:
        SIGSTOP first, then SIGCONT instead of the kill if the journal shows a charge that is not finished.
        """
        whole_worker = self._to_kill[name]
        target = Target(run.worker if whole_worker else run.pid, whole_worker=whole_worker)
        target.send(signal.SIGSTOP)
        self._clock.sleep(_STOP_SECONDS)
        self._read_journal()
        affected = [each for _, each in self.ledger.open_runs() if target.pid in (each.pid, each.worker)]
        if run not in affected or any(each.charged for each in affected):
            target.send(signal.SIGCONT)
            return
        del self._to_kill[name]
        self._workers.kill(target)
        self._report(What.WORKER_KILLED if whole_worker else What.CHILD_KILLED, name, target.pid)
        self._read_journal()
        if whole_worker:
            self._workers.start()

    def _report(self, what: What, payment: str, pid: int | None = None) -> None:
        pid = os.getpid() if pid is None else pid
        self._phase.journal.append(Entry(at=self._clock.now(), what=what, payment=payment, pid=pid))


def _messages(payments: tuple[Payment, ...]) -> Iterator[tuple[float, int, Payment]]:
    for payment in payments:
        for number, at in enumerate(payment.publish_at, start=1):
            yield at, number, payment
