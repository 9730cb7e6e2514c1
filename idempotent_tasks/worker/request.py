"""The parent's side of a delivery: what only a worker's main process knows, and what a dead child cannot do."""

import logging
from collections.abc import Callable, Mapping
from concurrent.futures import Future
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
)
from idempotent_tasks.core.guard import PROCESS_ENDS
from idempotent_tasks.core.processes import this_process
from idempotent_tasks.core.records import ClaimRequest
from idempotent_tasks.messaging.claim_request import request_of
from idempotent_tasks.messaging.deferral import GivenBack
from idempotent_tasks.messaging.queues import name_queues, received_message
from idempotent_tasks.settings import Settings, settings_of
from idempotent_tasks.worker.reaper import ChildExitWatcher, ClaimReaper

__all__ = ["GuardedRequest", "is_prefork", "release_running", "remember_worker", "withdraw_reservation"]

logger = logging.getLogger("idempotent_tasks")

#: What the parent reports of a child that is dead or dying.  billiard 4.3 passes on the exception of one that leaves by
#: itself, before it is gone.
_DEADLY: Final = (WorkerLostError, TimeLimitExceeded, Terminated, *PROCESS_ENDS)

#: How many messages a worker remembers to have given back.
MOST_RETURNED: Final = 1_000


class _Workers:
    """The worker of each app that one runs in this process, and how often it gave messages back."""

    def __init__(self) -> None:
        self.by_app: WeakKeyDictionary[Any, Any] = WeakKeyDictionary()
        #: By task id: how often a message was given back that could not be published again; those given back last.
        self._returns: dict[str, int] = {}

    def note_return(self, task_id: str) -> None:
        """Count one more return of a task's message."""
        self._returns[task_id] = self._returns.pop(task_id, 0) + 1
        if len(self._returns) > MOST_RETURNED:
            del self._returns[next(iter(self._returns))]

    def returns_of(self, task_id: str) -> int:
        """Return how often a task's message was given back."""
        return self._returns.get(task_id, 0)

    def forget_returns(self, task_id: str) -> None:
        """Count the returns of a task's message from 0 again."""
        self._returns.pop(task_id, None)


def remember_worker(worker: Any) -> None:
    """Remember the worker (``celery.worker.WorkController``) that runs an app in this process, before it starts."""
    _workers().by_app[worker.app] = worker
    worker.app.steps["consumer"].add(_QueueNames)


class _QueueNames(StartStopStep):
    """Has each message say from which queue it was consumed; once a connection, between its consumer and its loop."""

    requires = ("celery.worker.consumer.tasks:Tasks",)

    def start(self, parent: Any) -> None:
        """Begin with a ``celery.worker.consumer.Consumer``."""
        name_queues(parent.task_consumer.channel)


def release_running() -> None:
    """Release what the children of a worker that shuts down still hold, each when it is gone.

    The interpreter waits for these releases before it exits.
    """
    for request in list(state.active_requests):
        if isinstance(request, GuardedRequest) and not request.acknowledged:
            request.release_claim("WorkerShutdown", crashed=False)


def withdraw_reservation(task: Any, context: Any, reason: str) -> Future[bool] | None:
    """Free the key that a producer reserved for a delivery that the worker drops: revoked, or past its ``expires``.

    Args:
        task: the bound task.
        context: the delivery's ``celery.app.task.Context``.
        reason: for the record.

    Returns:
        Whether there was something to free, in the future; None where nobody reserves.
    """
    settings = settings_of(task.app)
    if settings.disabled or task.policy_under(settings).at_publish == "send":
        return None
    request = _request_or_none(task, settings, context, context.args, context.kwargs)
    return None if request is None else this_process().own(ClaimReaper).withdraw(settings, request, reason)


class GuardedRequest(Request):
    """A worker's request that frees the claim of a child that died, so that the next delivery runs at once.

    It tells the child its owner token, how long it can live at most and what a copy of the message needs: extra entries
    of the request dict become attributes of ``self.request`` in the pool's process, whatever the start method
    (``celery.worker.request.Request.execute_using_pool``).
    """

    _releasing: Future[None] | None = None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._request_dict[OWNER_ENTRY] = OwnerToken(this_process().token())
        self._request_dict[HARD_LIMIT_ENTRY] = self._enforced_hard_limit()
        self._request_dict[WATCHER_ENTRY] = this_process().pid if is_prefork(self._pool_cls) else None
        received = self._received_message(decoded=kwargs.get("decoded", False))
        self._request_dict["properties"] = {**(self._request_dict.get("properties") or {}), MESSAGE_ENTRY: received}

    def on_accepted(self, pid: int, time_accepted: float) -> None:
        """Have the end of the process that took the delivery noticed at once."""
        loop = this_process().event_loop()
        # A transport without an event loop has a thread of the pool look after it all the time.
        if loop is not None and is_prefork(self._pool_cls):
            this_process().own(ChildExitWatcher).watch(pid, loop, self._worker.pool.maintain_pool)
        super().on_accepted(pid, time_accepted)

    def on_failure(self, exc_info: Any, *args: Any, **kwargs: Any) -> None:
        """Let the delivery go back to its queue only when the claim of its dead child is released."""
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
            # Nothing goes back to a queue here, and in a shutdown no event loop would come back to it.
            self.release_claim(type(error).__name__, crashed=False)
            handle(exc_info, *args, **kwargs)
        else:
            self._after_release(type(error).__name__, lambda: handle(exc_info, *args, **kwargs))

    def on_timeout(self, soft: bool, timeout: float | None) -> None:  # noqa: FBT001 - Celery's signature
        """At a hard time limit, which billiard announces before it kills the child, do as `on_failure` does."""
        handle = super().on_timeout
        if soft:
            handle(soft, timeout)
        else:
            self._after_release(TimeLimitExceeded.__name__, lambda: handle(soft, timeout))

    def release_claim(self, reason: str, *, crashed: bool) -> Future[None] | None:
        """Release the claim when the child is gone; return None where no child was given the delivery."""
        settings = settings_of(self._app)
        if settings.disabled:
            return None
        if self._releasing is None and self.worker_pid is not None and is_prefork(self._pool_cls):
            request = _request_or_none(self.task, settings, self._context, self._args, self._kwargs)
            reaper = this_process().own(ClaimReaper)
            self._releasing = reaper.release(settings, request, self.worker_pid, reason, crashed=crashed)
        return self._releasing

    def _after_release(self, reason: str, handle: Callable[[], None]) -> None:
        releasing = self.release_claim(reason, crashed=True)
        if releasing is None:
            handle()
            return
        loop = this_process().event_loop()
        # A transport without an event loop has the pool's own threads handle failures, so any thread will do.
        run = _guarded if loop is None else partial(loop.call_soon, _guarded)
        releasing.add_done_callback(lambda _: run(handle))

    def _received_message(self, *, decoded: bool) -> ReceivedMessage | None:
        """Return what a copy needs; None for a message of protocol 1 that says its ETA in its body."""
        if decoded and "args" not in self.message.payload:
            return None
        return received_message(self.message, _workers().returns_of(self.id))

    def _leave_hidden(self, *_: Any) -> None:
        """Forget the message, which SQS delivers again when it is to come, without telling SQS."""
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
    def _pool_cls(self) -> Any:
        return getattr(self._worker, "pool_cls", None)

    def _enforced_hard_limit(self) -> float | None:
        """Return after how many seconds the pool kills the body, None where it does not.

        Only the prefork pool does (https://docs.celeryq.dev/en/stable/userguide/workers.html#time-limits): the call's
        limit, else the task's, which stands for the app's, else the worker's ``--time-limit``.
        """
        if not is_prefork(self._pool_cls):
            return None
        limit = self.time_limits[0] or self._task.time_limit or self._worker.time_limit
        return float(limit) if limit else None


def is_prefork(pool_cls: Any) -> bool:
    """Return whether a pool class is the one whose bodies run in processes of their own, which it can kill."""
    return getattr(pool_cls, "__module__", "") == "celery.concurrency.prefork"


def _workers() -> _Workers:
    return this_process().own(_Workers)


def _request_or_none(
    task: Any, settings: Settings, context: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> ClaimRequest | None:
    """Return what a delivery claims; None where it cannot have a claim.

    Called where the worker forks, not in a thread beside it: working out a key may import modules, and a child that is
    forked meanwhile waits indefinitely for the lock of a module that another thread was importing.
    """
    try:
        return request_of(task, settings, context, args, kwargs)
    except Exception:  # noqa: BLE001 - whatever it is, the key's own code raised it in the child too
        return None


def _lost(error: BaseException) -> ExceptionInfo:
    try:
        raise WorkerLostError(f"Worker exited prematurely: {error!r}") from error  # noqa: TRY301 - einfo wants a traceback
    except WorkerLostError:
        return ExceptionInfo()


def _guarded(handle: Callable[[], None]) -> None:
    try:
        handle()
    except Exception:
        # As billiard does with its callbacks: the consumer's loop must not end with one request.
        logger.exception("the failure of a delivery could not be handled; its message stays unacknowledged")
