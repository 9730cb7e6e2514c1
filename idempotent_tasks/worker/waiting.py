"""Deferred copies that wait in this worker for runs of its own, and are due as soon as these end."""

from collections import deque
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, Final, Protocol
from weakref import WeakValueDictionary

from celery.worker import state
from celery.worker.request import Request

from idempotent_tasks.core.delivery import AwaitedRun, run_digest
from idempotent_tasks.messaging.deferral import LONGEST_WAIT

__all__ = ["LetGo", "OwnRun", "WaitingCopies"]

#: How many copies for one run a worker holds no longer than they say, so that other workers get some if this one dies.
MOVING_COPIES: Final = 4
#: How many runs that have ended a worker remembers, for copies that were on their way meanwhile.
MOST_ENDED: Final = 1_000
#: How many copies are let go at once for each slot of the pool when a run has ended; others queue behind them.
LET_GO_PER_SLOT: Final = 2


class Copy(Protocol):
    """A worker's request for a deferred copy (``celery.worker.request.Request``)."""

    acknowledged: bool

    def let_go(self, by: "LetGo") -> None:
        """Note that it is due because the run that it waits for has ended."""


@dataclass(eq=False, slots=True, weakref_slot=True)
class OwnRun:
    """What a process of the pool runs, which may be the run that holds a key; with the copies that wait for its end."""

    #: Its `run_digest`.
    digest: str
    copies: set[Copy] = field(default_factory=set)
    #: Those that are held no longer than they say.
    moving: set[Copy] = field(default_factory=set)

    def forget(self, copy: Copy) -> None:
        """Forget a copy, if it is one of them."""
        self.copies.discard(copy)
        self.moving.discard(copy)


@dataclass(eq=False, slots=True)
class LetGo:
    """What is left of the copies that waited for a run which has ended: entries of Celery's timer, due later."""

    entries: deque[Any]


class WaitingCopies:
    """The copies that this process holds for the ends of its own runs; only where the worker has an event loop.

    A deferred copy says for which run it waits (`AwaitedRun`).  The worker of that run holds it until the run ends, in
    Celery's timer and longer than its countdown; any other worker holds it for its countdown.  When the run has ended,
    a few copies are due at once, and another one whenever one of them has ended: the rest would keep others waiting.

    Args:
        moving: how many copies for one run are held for their countdown only.
    """

    def __init__(self, moving: int = MOVING_COPIES) -> None:
        self._most_moving = moving
        self._consumer: Any = None
        #: By their `run_digest`; the requests own them.
        self._runs: WeakValueDictionary[str, OwnRun] = WeakValueDictionary()
        #: When runs of this process have ended, in epoch seconds; the last ones.
        self._ended: dict[str, float] = {}
        self._let_go: set[LetGo] = set()

    def connected(self, consumer: Any) -> None:
        """Use a ``celery.worker.consumer.Consumer``; forget the copies of its former connection, which come again."""
        self._consumer = consumer if getattr(consumer, "hub", None) is not None else None
        for run in self._runs.values():
            run.copies.clear()
            run.moving.clear()
        for each in self._let_go:
            each.entries.clear()
        self._let_go.clear()

    def begun(self, owner: str) -> OwnRun:
        """Return the run of a delivery that a process of the pool has, whose claim has this owner token."""
        run = OwnRun(run_digest(owner))
        self._runs[run.digest] = run
        return run

    def hold(self, copy: Copy, awaited: AwaitedRun, due: datetime, now: datetime) -> datetime:
        """Return when a copy is due at the latest.

        Args:
            copy: that has just been received.
            awaited: the run that it waits for.
            due: when its countdown has passed.
            now: the worker's time.
        """
        if self._consumer is None:
            return due
        if awaited.since < self._ended.get(awaited.digest, 0.0):
            # It was on its way when the run ended.
            return now
        run = self._runs.get(awaited.digest)
        if run is None:
            return due
        run.copies.add(copy)
        # Where the number of held messages is limited, these would keep others from the worker
        # (https://docs.celeryq.dev/en/stable/userguide/configuration.html#worker-eta-task-limit).
        is_limited = bool(self._consumer.app.conf.get("worker_eta_task_limit"))
        if is_limited or len(run.moving) < self._most_moving:
            run.moving.add(copy)
            return due
        longest = now + timedelta(seconds=LONGEST_WAIT)
        return max(due, datetime.fromtimestamp(min(awaited.until, longest.timestamp()), UTC))

    def taken(self, copy: Copy, awaited: AwaitedRun) -> None:
        """Note that a copy waits no longer: a process of the pool has it."""
        run = self._runs.get(awaited.digest)
        if run is not None:
            run.forget(copy)

    def ended(self, run: OwnRun, now: datetime) -> None:
        """Let the copies go that wait for a run: it has ended.

        Args:
            run: of this process.
            now: the worker's time.
        """
        if self._consumer is None:
            return
        self._ended[run.digest] = now.timestamp()
        if len(self._ended) > MOST_ENDED:
            # Another thread may have removed it.
            self._ended.pop(next(iter(self._ended)), None)
        if run.copies:
            self._consumer.call_soon(self._let_first_go, run)

    def copy_ended(self, by: LetGo) -> None:
        """Let the next copy go: one of the former ones has ended."""
        if self._consumer is not None:
            self._consumer.call_soon(self._let_next_go, by)

    def _let_first_go(self, run: OwnRun) -> None:
        # In the event loop, whose timer it is; as ``inspect scheduled`` finds its requests (``celery.worker.control``).
        entries = (each.entry for each in self._consumer.timer.queue)
        by = LetGo(deque(each for each in entries if each.args and _is_of(run, each.args[0])))
        run.copies.clear()
        self._let_go.add(by)
        for _ in range(LET_GO_PER_SLOT * self._consumer.pool.num_processes):
            self._let_next_go(by)

    def _let_next_go(self, by: LetGo) -> None:
        while by.entries:
            entry = by.entries.popleft()
            copy = entry.args[0]
            if entry.canceled or copy.acknowledged or copy in state.reserved_requests:
                # Its countdown has passed meanwhile.
                continue
            copy.let_go(by)
            entry.cancel()
            self._consumer.timer.apply_entry(entry)
            return
        self._let_go.discard(by)


def _is_of(run: OwnRun, found: Any) -> bool:
    return isinstance(found, Request) and found in run.copies
