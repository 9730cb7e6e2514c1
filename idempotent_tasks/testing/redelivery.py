"""`redeliver`: a task delivered again and again in this process, each time but the last cut short where a test says."""

import functools
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final
from unittest.mock import patch
from uuid import uuid4

from idempotent_tasks.clock import Clock
from idempotent_tasks.events import Event
from idempotent_tasks.records import Claim, ClaimRequest, CommitAnswer, Lost, Outcome, Renewed
from idempotent_tasks.settings import temporary_settings
from idempotent_tasks.stores import Store
from idempotent_tasks.stores.memory import MemoryStore
from idempotent_tasks.testing.clock import FakeClock

__all__ = ["Crash", "Redelivery", "WorkerDied", "redeliver"]

#: What the worker's parent process names as the reason when it releases the claim of a child that died.
_LOST: Final = "WorkerLostError"
#: More deaths in a row than this are a plan that never ends.
_MOST_DELIVERIES: Final = 100


class Crash(StrEnum):
    """Where the process of a delivery dies."""

    #: Nothing has happened yet.
    BEFORE_CLAIM = "before-claim"
    #: The key is claimed; the body dies at its first line.  To die further in, let a double raise `WorkerDied`.
    IN_BODY = "in-body"
    #: The body has returned, so its effects are done; the result is not stored.  No lock closes this window.
    BEFORE_COMMIT = "before-commit"
    #: The result is stored, and all is done but to acknowledge the message.
    BEFORE_ACK = "before-ack"


class WorkerDied(BaseException):
    """The process has died here.  Raised by `redeliver`, or by a test's own double inside a body.

    ``except Exception`` does not catch it.  ``finally`` runs all the same, which it would not in a killed process.
    """


@dataclass(frozen=True, kw_only=True)
class Redelivery:
    """What became of the deliveries of one message."""

    #: For each delivery Celery's ``EagerResult``, or None where its process died.
    results: tuple[Any, ...]
    #: How often the body was begun.
    runs: int
    #: What observers were told, over all deliveries.
    events: tuple[Event, ...]
    #: Where the record is.
    store: Store

    def get(self) -> Any:
        """Return what the last delivery returned, or raise what it raised."""
        return self.results[-1].get()


def redeliver(
    task: Any,
    args: Iterable[Any] = (),
    kwargs: Mapping[str, Any] | None = None,
    *,
    crashes: Iterable[Crash | str] = (Crash.BEFORE_ACK,),
    store: Store | None = None,
    **options: Any,
) -> Redelivery:
    """Deliver one message to a task until a delivery comes to its end.

    The task runs in this process (``apply``).  After a death its claim is released as the worker's parent process
    releases it, and the message is delivered again.

    Args:
        task: the guarded task.
        args, kwargs: its arguments.
        crashes: where the first delivery dies, the second, and so on.
        store: where the record lives meanwhile, instead of where the app's setting says; a new store in memory, on a
            clock that stands still, by default.
        options: further options of ``apply``, such as ``task_id`` or ``idempotency_key``.

    Raises:
        ValueError: a crash is none of `Crash`.
        AssertionError: a delivery never came to where it was to die, for example because it was a replay; or there is
            no end to the deaths.
    """
    plan: list[Crash | None] = [Crash(each) for each in crashes]
    real = task.app.tasks[task.name]
    process = _Process(real.name, store or MemoryStore(clock=FakeClock()))
    options = {"task_id": uuid4().hex, **options, "throw": False}
    results: list[Any] = []
    with temporary_settings(real.app, store=process, observers=[process.observe]), process.running(real):
        for delivery in range(_MOST_DELIVERIES):
            process.start(plan[delivery] if delivery < len(plan) else None)
            results.append(process.deliver(real, tuple(args), dict(kwargs or {}), options))
            if results[-1] is not None:
                break
            process.bury()
        else:
            raise AssertionError(f"{_MOST_DELIVERIES} deliveries died and none came to its end")
    return Redelivery(results=tuple(results), runs=process.runs, events=tuple(process.events), store=process.inner)


class _Process:
    """The store as one process after another sees it: a dead one takes no step any more."""

    def __init__(self, task: str, inner: Store) -> None:
        self.inner = inner
        self.runs = 0
        self.events: list[Event] = []
        self._task = task
        self._crash: Crash | None = None
        self._dead = False
        self._asked: list[ClaimRequest] = []

    @property
    def clock(self) -> Clock:
        """The inner store's: time goes on for the dead too."""
        return self.inner.clock

    def __getattr__(self, name: str) -> Any:
        """Take every other step as the inner store does, while alive."""
        self._live()
        return getattr(self.inner, name)

    def observe(self, event: Event) -> None:
        """Note what this process tells, while alive."""
        if not self._dead:
            self.events.append(event)

    def claim(self, request: ClaimRequest) -> Any:
        """Claim, or die before."""
        self._live(Crash.BEFORE_CLAIM, request.task)
        if request.task == self._task:
            self._asked.append(request)
        return self.inner.claim(request)

    def commit(self, claim: Claim, outcome: Outcome, retention_seconds: float) -> CommitAnswer:
        """Commit, or die before."""
        self._live(Crash.BEFORE_COMMIT, claim.request.task)
        return self.inner.commit(claim, outcome, retention_seconds)

    def renew(self, claim: Claim, lease_seconds: float, retention_seconds: float) -> Renewed | Lost:
        """Renew, or seem to: it is another thread that asks, which may not have noticed the death."""
        return Renewed(claim) if self._dead else self.inner.renew(claim, lease_seconds, retention_seconds)

    @contextmanager
    def running(self, task: Any) -> Iterator[None]:
        """Count the task's bodies for the length of a block."""
        body = task.run

        @functools.wraps(body)
        def run(*args: Any, **kwargs: Any) -> Any:
            self.runs += 1
            self._live(Crash.IN_BODY, task.name)
            return body(*args, **kwargs)

        with patch.object(task, "run", run):
            yield

    def start(self, crash: Crash | None) -> None:
        """Be a new process, which dies as planned."""
        self._crash, self._dead = crash, False
        self._asked.clear()

    def deliver(self, task: Any, args: tuple[Any, ...], kwargs: dict[str, Any], options: dict[str, Any]) -> Any:
        """Return the result of one delivery, or None where this process died."""
        try:
            result = task.apply(args, kwargs, **options)
        except WorkerDied:
            return None
        if self._crash in (None, Crash.BEFORE_ACK):
            return None if self._crash else result
        raise AssertionError(f"this delivery never came to {self._crash.value!r}: it ended with {result.state}")

    def bury(self) -> None:
        """Release what this process claimed, as the worker's parent process does."""
        for request in self._asked:
            self.inner.release(Claim.unseen(request), _LOST, crashed=True)

    def _live(self, window: Crash | None = None, task: str = "") -> None:
        # A body that dies by a double's hand would release its claim on its way out.
        if self._dead or isinstance(sys.exception(), WorkerDied):
            raise WorkerDied
        if window is not None and window is self._crash and task == self._task:
            self._dead = True
            raise WorkerDied
