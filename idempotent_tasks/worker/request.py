"""The worker's request class: passes the message and the owner token to the child, releases a dead child's claim."""

import logging
from collections.abc import Callable
from concurrent.futures import Future
from datetime import datetime
from functools import partial
from typing import Any, Final
from weakref import WeakKeyDictionary

from billiard.einfo import ExceptionInfo, ExceptionWithTraceback
from celery.bootsteps import StartStopStep
from celery.exceptions import Terminated, TimeLimitExceeded, WorkerLostError
from celery.worker import state
from celery.worker.request import Request

from idempotent_tasks.core.delivery import (
    HARD_LIMIT_ENTRY,
    MESSAGE_ENTRY,
    OWNER_ENTRY,
    WATCHER_ENTRY,
    OwnerToken,
    ReceivedMessage,
    awaited_run,
)
from idempotent_tasks.core.guard import PROCESS_ENDS
from idempotent_tasks.core.processes import this_process
from idempotent_tasks.messaging.claim_request import request_or_none
from idempotent_tasks.messaging.deferral import GivenBack
from idempotent_tasks.messaging.queues import name_queues, received_message
from idempotent_tasks.settings import settings_of
from idempotent_tasks.worker.reaper import ChildExitWatcher, ClaimReaper
from idempotent_tasks.worker.waiting import LetGo, OwnRun, WaitingCopies

__all__ = ["GuardedRequest", "is_prefork", "remember_worker"]

logger = logging.getLogger("idempotent_tasks")

#: The failures of a child that is dead or dying.  Of one that exits by itself, billiard 4.3 passes on the exception
#: before it is gone.
_DEADLY: Final = (WorkerLostError, TimeLimitExceeded, Terminated, *PROCESS_ENDS)

#: How many messages a worker counts the returns of.
MOST_RETURNED: Final = 1_000


class _Workers:
    """The worker that runs each app in this process, and how often each task's message was given back."""

    def __init__(self) -> None:
        self.by_app: WeakKeyDictionary[Any, Any] = WeakKeyDictionary()
        #: How often a message was given back that could not be published again, by task id; the latest ones only.
        self._returns: dict[str, int] = {}

    def note_return(self, task_id: str) -> None:
        """Count a return of a task's message."""
        self._returns[task_id] = self._returns.pop(task_id, 0) + 1
        if len(self._returns) > MOST_RETURNED:
            del self._returns[next(iter(self._returns))]

    def returns_of(self, task_id: str) -> int:
        """Return how often a task's message was given back."""
        return self._returns.get(task_id, 0)

    def forget_returns(self, task_id: str) -> None:
        """Reset the count of a task's message to 0."""
        self._returns.pop(task_id, None)


def remember_worker(worker: Any) -> None:
    """Register the ``celery.worker.WorkController`` that runs an app in this process, before it starts."""
    _workers().by_app[worker.app] = worker
    worker.app.steps["consumer"].add(_Connected)


class _Connected(StartStopStep):
    """Bootstep that starts with each connection of a worker: names queues, forgets what the former one delivered."""

    requires = ("celery.worker.consumer.tasks:Tasks",)

    def start(self, parent: Any) -> None:
        """Start with a ``celery.worker.consumer.Consumer``."""
        name_queues(parent.task_consumer.channel)
        this_process().own(WaitingCopies).connected(parent)


class GuardedRequest(Request):
    """A worker's request that releases the claim of a child that died, so that the next delivery runs at once.

    It passes the owner token, the hard time limit and the message to the child: extra entries of the request dict
    become attributes of ``self.request`` in the pool's process, whatever the start method
    (``celery.worker.request.Request.execute_using_pool``).
    """

    _releasing: Future[None] | None = None
    #: What a process of the pool runs for this delivery.
    _run: OwnRun | None = None
    #: When a deferred copy is due that says for which run it waits.
    _due: datetime | None = None
    #: What let this copy go before its countdown had passed.
    _let_go: LetGo | None = None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._request_dict[OWNER_ENTRY] = OwnerToken(this_process().token())
        self._request_dict[HARD_LIMIT_ENTRY] = self._enforced_hard_limit()
        self._request_dict[WATCHER_ENTRY] = this_process().pid if self._is_prefork else None
        received = self._received_message(decoded=kwargs.get("decoded", False))
        self._request_dict["properties"] = {**(self._request_dict.get("properties") or {}), MESSAGE_ENTRY: received}
        self._awaited = awaited_run(self._request_dict)
        due = super().eta
        if self._awaited is not None and due is not None:
            self._due = _waiting_copies().hold(self, self._awaited, due, self._app.now())

    @property
    def eta(self) -> datetime | None:
        """When the message is due; Celery's timer holds it until then."""
        due: datetime | None = super().eta if self._due is None else self._due
        return due

    def let_go(self, by: LetGo) -> None:
        """Note that this copy is due because the run that it waited for has ended."""
        self._let_go = by

    def acknowledge(self) -> None:
        """Acknowledge the message; what waits for the end of its run is due."""
        try:
            super().acknowledge()
        finally:
            self._end()

    def reject(self, requeue: bool = False) -> None:  # noqa: FBT001, FBT002 - Celery's signature
        """Reject the message; what waits for the end of its run is due."""
        try:
            super().reject(requeue)
        finally:
            self._end()

    def _end(self) -> None:
        """Let go what waits for the end of this delivery, once."""
        run, self._run = self._run, None
        if run is not None:
            _waiting_copies().ended(run, self._app.now())
        by, self._let_go = self._let_go, None
        if by is not None:
            _waiting_copies().copy_ended(by)

    def on_accepted(self, pid: int, time_accepted: float) -> None:
        """Watch the process that took the delivery for its exit."""
        loop = this_process().event_loop()
        # Without an event loop a thread of the pool polls its processes.
        if loop is not None and self._is_prefork:
            this_process().own(ChildExitWatcher).watch(pid, loop, self._worker.pool.maintain_pool)
        if self._awaited is not None:
            _waiting_copies().taken(self, self._awaited)
        self._run = _waiting_copies().begun(self._request_dict[OWNER_ENTRY])
        super().on_accepted(pid, time_accepted)

    def on_failure(self, exc_info: Any, *args: Any, **kwargs: Any) -> None:
        """Release the claim of a dead child before its message goes back to the queue."""
        error = exc_info.exception
        error = error.exc if isinstance(error, ExceptionWithTraceback) else error
        handle = super().on_failure
        if isinstance(error, GivenBack):
            _workers().note_return(self.id)
            if error.hidden:
                self.on_reject = self._leave_hidden
        else:
            _workers().forget_returns(self.id)
        if isinstance(error, PROCESS_ENDS):
            # Celery before 5.7 would acknowledge the message, then fail to encode the exception: a lost delivery.
            exc_info = _lost(error)
        if not isinstance(error, _DEADLY):
            handle(exc_info, *args, **kwargs)
        elif isinstance(error, Terminated) or state.should_terminate:
            # Nothing goes back to a queue, and in a shutdown the event loop runs no more callbacks.
            self.release_claim(type(error).__name__, crashed=False)
            handle(exc_info, *args, **kwargs)
        else:
            self._after_release(type(error).__name__, lambda: handle(exc_info, *args, **kwargs))

    def on_timeout(self, soft: bool, timeout: float | None) -> None:  # noqa: FBT001 - Celery's signature
        """Release the claim before Celery handles a hard time limit; billiard reports it before it kills the child."""
        handle = super().on_timeout
        if soft:
            handle(soft, timeout)
        else:
            self._after_release(TimeLimitExceeded.__name__, lambda: handle(soft, timeout))

    def release_claim(self, reason: str, *, crashed: bool) -> Future[None] | None:
        """Release the claim once the child is gone; return None if no child has the delivery."""
        settings = settings_of(self._app)
        if settings.disabled:
            return None
        if self._releasing is None and self.worker_pid is not None and self._is_prefork:
            request = request_or_none(self.task, settings, self._context, self._args, self._kwargs)
            reaper = this_process().own(ClaimReaper)
            self._releasing = reaper.release(settings, request, self.worker_pid, reason, crashed=crashed)
        return self._releasing

    def _after_release(self, reason: str, handle: Callable[[], None]) -> None:
        releasing = self.release_claim(reason, crashed=True)
        if releasing is None:
            handle()
            return
        loop = this_process().event_loop()
        # Without an event loop the pool's threads handle failures, so any thread will do.
        run = _guarded if loop is None else partial(loop.call_soon, _guarded)
        releasing.add_done_callback(lambda _: run(handle))

    def _received_message(self, *, decoded: bool) -> ReceivedMessage | None:
        """Return the message, to publish a copy of it; None for one of protocol 1 with the ETA in its body."""
        if decoded and "args" not in self.message.payload:
            return None
        return received_message(self.message, _workers().returns_of(self.id))

    def _leave_hidden(self, *_: Any) -> None:
        """Remove the message from kombu's unacknowledged ones without a request to SQS, which delivers it when due."""
        message, worker = self.message, self._worker
        forget = partial(message.channel.qos.ack, message.delivery_tag)
        call_soon = getattr(getattr(worker, "consumer", None), "call_soon", None)
        # The channel is the event loop's.
        if call_soon is None:
            forget()
        else:
            call_soon(forget)

    @property
    def _worker(self) -> Any:
        return _workers().by_app.get(self._app)

    @property
    def _is_prefork(self) -> bool:
        return is_prefork(getattr(self._worker, "pool_cls", None))

    def _enforced_hard_limit(self) -> float | None:
        """Return after how many seconds the pool kills the body; None if it never does.

        Only the prefork pool does (https://docs.celeryq.dev/en/stable/userguide/workers.html#time-limits): the call's
        limit, else the task's, which defaults to the app's, else the worker's ``--time-limit``.
        """
        if not self._is_prefork:
            return None
        limit = self.time_limits[0] or self._task.time_limit or self._worker.time_limit
        return float(limit) if limit else None


def is_prefork(pool_cls: Any) -> bool:
    """Return whether a pool class is Celery's prefork pool."""
    return getattr(pool_cls, "__module__", "") == "celery.concurrency.prefork"


def _waiting_copies() -> WaitingCopies:
    return this_process().own(WaitingCopies)


def _workers() -> _Workers:
    return this_process().own(_Workers)


def _lost(error: BaseException) -> ExceptionInfo:
    try:
        raise WorkerLostError(f"Worker exited prematurely: {error!r}") from error  # noqa: TRY301 - einfo wants a traceback
    except WorkerLostError:
        return ExceptionInfo()


def _guarded(handle: Callable[[], None]) -> None:
    try:
        handle()
    except Exception:
        # As billiard does with its callbacks: one request must not end the consumer's loop.
        logger.exception("the failure of a delivery could not be handled; its message stays unacknowledged")
