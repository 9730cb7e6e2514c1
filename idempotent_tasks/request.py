"""The parent's side of a delivery: what only a worker's main process knows reaches the body with the request."""

from typing import Any
from weakref import WeakKeyDictionary

from celery.worker.request import Request

from idempotent_tasks.delivery import CONTENT_TYPE_ENTRY, HARD_LIMIT_ENTRY

__all__ = ["GuardedRequest", "remember_worker"]

_workers: WeakKeyDictionary[Any, Any] = WeakKeyDictionary()


def remember_worker(worker: Any) -> None:
    """Remember the worker (``celery.worker.WorkController``) that runs an app in this process."""
    _workers[worker.app] = worker


class GuardedRequest(Request):
    """A worker's request that tells the body how long it can live at most, and how the message was written.

    Extra entries of the request dict become attributes of ``self.request`` in the pool's process, whatever the start
    method (``celery.worker.request.Request.execute_using_pool``).
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._request_dict[HARD_LIMIT_ENTRY] = self._enforced_hard_limit()
        self._request_dict[CONTENT_TYPE_ENTRY] = self.message.content_type

    def _enforced_hard_limit(self) -> float | None:
        """Return after how many seconds the pool kills the body, None where it does not.

        Only the prefork pool does (https://docs.celeryq.dev/en/stable/userguide/workers.html#time-limits): the call's
        limit, else the task's, which stands for the app's, else the worker's ``--time-limit``.
        """
        worker = _workers.get(self._app)
        if worker is None or not _enforces_limits(worker.pool_cls):
            return None
        limit = self.time_limits[0] or self._task.time_limit or worker.time_limit
        return float(limit) if limit else None


def _enforces_limits(pool_cls: Any) -> bool:
    return getattr(pool_cls, "__module__", "") == "celery.concurrency.prefork"
