"""`redeliver`: crash a task's deliveries at chosen points and deliver its message again, in this process.

`crash_plans` lists the points of a task, for a test that goes through all of them.
"""

import functools
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any, Final
from unittest.mock import patch
from uuid import uuid4

from idempotent_tasks.core.clock import Clock
from idempotent_tasks.core.lease import RunContext
from idempotent_tasks.core.policy import Idempotency
from idempotent_tasks.core.records import Claim, ClaimRequest, CommitAnswer, Lost, Outcome, Renewed
from idempotent_tasks.core.steps import StepCall
from idempotent_tasks.core.store import AtomicStore, ParkingStore, SteppingStore, Store
from idempotent_tasks.events import Event
from idempotent_tasks.settings import Settings, settings_of, temporary_settings
from idempotent_tasks.stores.memory import MemoryStore
from idempotent_tasks.testing.clock import FakeClock

__all__ = ["Crash", "Redelivery", "WorkerDied", "crash_plans", "redeliver"]

#: The reason with which a worker's parent process releases the claim of a dead child.
_LOST: Final = "WorkerLostError"
#: Seconds after the time at which a key settles.  It is granted a millisecond later, of a time in binary fractions.
_MOMENT: Final = 0.002
#: A point of a step as a text.
_STEP_POINT: Final = re.compile("(before|in|after)-step:.+")
#: The most deliveries of one message, in case the plan crashes all of them.
_MOST_DELIVERIES: Final = 100


class Crash(StrEnum):
    """The point at which the process of a delivery dies."""

    #: Before the key is claimed.
    BEFORE_CLAIM = "before-claim"
    #: At the first line of the body, after the claim.  To die later, let a test double raise `WorkerDied`.
    IN_BODY = "in-body"
    #: The body, or ``recover``, has returned, so effects are done, but the result is not stored.  No lock closes this
    #: window.
    BEFORE_COMMIT = "before-commit"
    #: The result, of the body or of ``recover``, is stored, but the message is not acknowledged.
    BEFORE_ACK = "before-ack"
    #: At the first line of the task's ``recover``, or of a step's, so in a rerun only.
    IN_RECOVER = "in-recover"

    @staticmethod
    def before_step(step: int | str) -> str:
        """Return the point where the body calls a step, by its number in the body (from 1) or its name.

        As a text it is ``before-step:charge`` or ``before-step:2``.
        """
        return f"before-step:{step}"

    @staticmethod
    def in_step(step: int | str) -> str:
        """Return the point where a step's effect is done, with its receipt if it has one, and its result not kept."""
        return f"in-step:{step}"

    @staticmethod
    def after_step(step: int | str) -> str:
        """Return the point where a step's result is kept, and the body has not gone on."""
        return f"after-step:{step}"


class WorkerDied(BaseException):
    """Simulates the death of the worker process; raised by `redeliver`, or by a test double inside a body.

    ``except Exception`` does not catch it.  ``finally`` does run, which it would not in a killed process.
    """


@dataclass(frozen=True, kw_only=True)
class Redelivery:
    """The deliveries of one message: results, runs, events, and the store."""

    #: Celery's ``EagerResult`` of each delivery, or None if its process died.
    results: tuple[Any, ...]
    #: How often the body was started.
    runs: int
    #: How often it was started as a rerun: an earlier run had begun and left no outcome.
    reruns: int
    #: How often the task's ``recover``, or a step's, was called.
    recoveries: int
    #: The events of all deliveries.
    events: tuple[Event, ...]
    #: The store that holds the record.
    store: Store
    #: The names of the steps whose functions were called, in order.
    steps: tuple[str, ...] = ()

    def get(self) -> Any:
        """Return the result of the last delivery, or raise its error."""
        return self.results[-1].get()


def redeliver(
    task: Any,
    args: Iterable[Any] = (),
    kwargs: Mapping[str, Any] | None = None,
    *,
    crashes: Iterable[str] = (Crash.BEFORE_ACK,),
    store: Store | None = None,
    **options: Any,
) -> Redelivery:
    """Deliver one message to a task, crash its deliveries as planned, and redeliver until one finishes.

    The task runs in this process (``apply``).  After a crash the claim is released as by a worker's parent process, and
    the next delivery comes when the task's ``settle`` has passed, for which the store's clock sleeps: a `FakeClock`
    advances.

    Args:
        task: the guarded task.
        args, kwargs: its arguments.
        crashes: where the first delivery dies, where the second, and so on.
        store: the store to use instead of the app's; by default a new `MemoryStore` on a `FakeClock`.
        options: further options of ``apply``, such as ``task_id`` or ``idempotency_key``.

    Raises:
        ValueError: a value of ``crashes`` is no point of `Crash`.
        AssertionError: a delivery did not reach its crash, for example because it was a replay, or all of 100 crashed.
    """
    plan: list[str | None] = [_point(each) for each in crashes]
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
            process.release_claims()
        else:
            raise AssertionError(f"{_MOST_DELIVERIES} deliveries died and none came to its end")
    return Redelivery(
        results=tuple(results),
        runs=process.runs,
        reruns=process.reruns,
        recoveries=process.recoveries,
        events=tuple(process.events),
        store=process.inner,
        steps=tuple(process.steps),
    )


def _point(crash: str) -> str:
    return crash if _STEP_POINT.fullmatch(crash) else Crash(crash)


def crash_plans(task: Any, *, steps: int | Iterable[str] = 0) -> list[tuple[str, ...]]:
    """Return every way in which a task's process may die, as plans for the ``crashes`` of `redeliver`.

    It dies before the claim, before the effects, before, in and after each step, after the effects, and after the
    outcome is stored.  If the task has a ``recover``, it also dies once more in the rerun: in ``recover``, and after
    what follows that.

    Args:
        task: the guarded task.
        steps: how many its body has, or their names.
    """
    real = task.app.tasks[task.name]
    with temporary_settings(real.app, store=MemoryStore(clock=FakeClock())):
        recovers = real.policy_under(settings_of(real.app)).recover is not None
    named: Iterable[int | str] = range(1, steps + 1) if isinstance(steps, int) else steps
    points = [
        point for step in named for point in (Crash.before_step(step), Crash.in_step(step), Crash.after_step(step))
    ]
    begun: list[str] = [Crash.IN_BODY, *points, Crash.BEFORE_COMMIT]
    plans: list[tuple[str, ...]] = [(each,) for each in (Crash.BEFORE_CLAIM, *begun, Crash.BEFORE_ACK)]
    if recovers:
        plans += [(first, second) for first in begun for second in (Crash.IN_RECOVER, Crash.BEFORE_COMMIT)]
    return plans


class _Process:
    """A store as successive worker processes see it; raises `WorkerDied` once the current process is dead."""

    def __init__(self, task: str, inner: Store) -> None:
        self.inner = inner
        self.runs = 0
        self.reruns = 0
        self.recoveries = 0
        self.events: list[Event] = []
        #: The names of the steps whose functions were called.
        self.steps: list[str] = []
        self._task = task
        self._crash: str | None = None
        self._dead = False
        self._requests: list[ClaimRequest] = []
        #: By name, which of the body's steps it is.
        self._numbers: dict[str, int] = {}
        watched = {"commit_with": self._commit_with, "keep_step": self._keep_step}
        # Python 3.12 looks for the methods of a protocol without `__getattr__`.
        for protocol in (ParkingStore, AtomicStore, SteppingStore):
            if isinstance(inner, protocol):
                names = [name for name in vars(protocol) if not name.startswith("_")]
                vars(self).update({name: watched.get(name) or self._delegate(name) for name in names})

    @property
    def clock(self) -> Clock:
        """The inner store's clock, also for a dead process."""
        return self.inner.clock

    def __getattr__(self, name: str) -> Any:
        """Delegate the rest to the inner store, while alive."""
        self._reach()
        return getattr(self.inner, name)

    def _delegate(self, name: str) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            self._reach()
            return getattr(self.inner, name)(*args, **kwargs)

        return call

    def observe(self, event: Event) -> None:
        """Collect the events of this process, while alive."""
        if not self._dead:
            self.events.append(event)

    def claim(self, request: ClaimRequest) -> Any:
        """Die before the claim if planned, else claim."""
        self._reach(Crash.BEFORE_CLAIM, task=request.task)
        if request.task == self._task:
            self._requests.append(request)
        return self.inner.claim(request)

    def commit(self, claim: Claim, outcome: Outcome, retention_seconds: float) -> CommitAnswer:
        """Die before the commit if planned, else commit."""
        self._reach(Crash.BEFORE_COMMIT, task=claim.request.task)
        return self.inner.commit(claim, outcome, retention_seconds)

    def _commit_with(self, claim: Claim, *args: Any) -> Any:
        self._reach(Crash.BEFORE_COMMIT, task=claim.request.task)
        return self.inner.commit_with(claim, *args)  # type: ignore[attr-defined]

    def _keep_step(self, claim: Claim, name: str, *args: Any) -> Any:
        """Keep a step, and die before or after that if planned."""
        task = claim.request.task
        self._reach_step(Crash.in_step, name, task)
        answer = self.inner.keep_step(claim, name, *args)  # type: ignore[attr-defined]
        self._reach_step(Crash.after_step, name, task)
        return answer

    def renew(self, claim: Claim, lease_seconds: float, retention_seconds: float) -> Renewed | Lost:
        """Renew; if dead, only pretend to: the renewing thread may still run."""
        return Renewed(claim) if self._dead else self.inner.renew(claim, lease_seconds, retention_seconds)

    @contextmanager
    def running(self, task: Any) -> Iterator[None]:
        """Count the runs of the task's body and its steps, and the calls of ``recover``, inside a with block."""
        body, policy_under = task.run, task.policy_under

        @functools.wraps(body)
        def run(*args: Any, **kwargs: Any) -> Any:
            self.runs += 1
            self.reruns += task.idempotency.rerun
            self._watch_steps(task.idempotency, task.name)
            self._reach(Crash.IN_BODY, task=task.name)
            return body(*args, **kwargs)

        def policy_of(settings: Settings) -> Idempotency:
            policy: Idempotency = policy_under(settings)
            if policy.recover is None:
                return policy
            return Idempotency(**{**policy.given, "recover": self._recover(policy.recover, task.name)})

        with patch.object(task, "run", run), patch.object(task, "policy_under", policy_of):
            yield

    def _watch_steps(self, run: Any, task: str) -> None:
        """Have the steps of a run counted."""
        self._numbers = {}
        if not isinstance(run, RunContext) or run.steps is None:
            return
        caller = run.steps

        def perform(call: StepCall) -> Any:
            self._numbers[call.name] = len(self._numbers) + 1
            self._reach_step(Crash.before_step, call.name, task)

            @functools.wraps(call.function)
            def counted(*args: Any, **kwargs: Any) -> Any:
                self.steps.append(call.name)
                return call.function(*args, **kwargs)

            recover = None if call.recover is None else self._recover(call.recover, task)
            return caller.perform(replace(call, function=counted, recover=recover))

        run.steps = replace(caller, perform=perform)

    def _recover(self, recover: Any, task: str) -> Any:
        @functools.wraps(recover)
        def counted(*args: Any, **kwargs: Any) -> Any:
            self.recoveries += 1
            self._reach(Crash.IN_RECOVER, task=task)
            return recover(*args, **kwargs)

        return counted

    def start(self, crash: str | None) -> None:
        """Become a new process that dies at this point."""
        self._crash, self._dead = crash, False
        self._requests.clear()

    def deliver(self, task: Any, args: tuple[Any, ...], kwargs: dict[str, Any], options: dict[str, Any]) -> Any:
        """Return the result of one delivery, or None if this process died."""
        try:
            result = task.apply(args, kwargs, **options)
        except WorkerDied:
            return None
        if self._crash in (None, Crash.BEFORE_ACK):
            return None if self._crash else result
        raise AssertionError(f"this delivery never came to {str(self._crash)!r}: it ended with {result.state}")

    def release_claims(self) -> None:
        """Release the claims of the dead process, as the worker's parent process does, and wait until they settle."""
        for request in self._requests:
            self.inner.release(Claim.unseen(request), _LOST, crashed=True)
            record = self.inner.get(request.key)
            now = self.clock.now()
            if record is not None and record.settles_at(now):
                self.clock.sleep(record.held_until - now + _MOMENT)

    def _reach_step(self, point: Callable[[int | str], str], name: str, task: str) -> None:
        self._reach(point(name), point(self._numbers.get(name, 0)), task=task)

    def _reach(self, *points: str, task: str = "") -> None:
        """Raise `WorkerDied` if this process is dead, or is planned to die at this point of the task under test."""
        # The guard would release the claim while a test double's `WorkerDied` unwinds the body.
        if self._dead or isinstance(sys.exception(), WorkerDied):
            raise WorkerDied
        if self._crash in points and task == self._task:
            self._dead = True
            raise WorkerDied
