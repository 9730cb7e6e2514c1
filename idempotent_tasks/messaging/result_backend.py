"""What Celery's result backend knows of another run: a result that is not in its record, or that it was revoked."""

import logging
from typing import Any

from celery import states
from celery.backends.base import DisabledBackend
from celery.exceptions import SoftTimeLimitExceeded
from celery.worker import state

from idempotent_tasks.core.records import Record
from idempotent_tasks.core.results import Recalled
from idempotent_tasks.errors import StoreUnavailableError

__all__ = ["ResultBackend"]

logger = logging.getLogger("idempotent_tasks")


class ResultBackend:
    """The port to an app's result backend: what it knows of other runs."""

    def recalled(self, task: Any, record: Record) -> Recalled | None:
        """Return the result that the run of a record left in the result backend; None where the backend has none.

        It has none where it forgot (``result_expires``), never had it (``ignore_result``, a worker that was killed
        before), or keeps results for their publisher alone (``rpc://``).

        Args:
            task: the bound Celery task.
            record: a completed record.

        Raises:
            StoreUnavailableError: the backend does not answer.
        """
        backend = task.backend
        # Eager apps have nothing in a backend, and Celery warns of asking.
        if record.task_id is None or task.app.conf.task_always_eager or not _is_readable(backend):
            return None
        try:
            meta = backend.get_task_meta(record.task_id, cache=False)
        except SoftTimeLimitExceeded:
            raise
        except Exception as error:
            msg = f"the result is only in the result backend, which does not answer ({type(error).__name__})"
            raise StoreUnavailableError(msg, record.task, record.key) from error
        # Under ``result_extended`` it says whose result it is.
        if meta.get("status") != states.SUCCESS or meta.get("name") not in (None, record.task):
            return None
        return Recalled(meta.get("result"))

    def is_revoked(self, task: Any, task_id: str) -> bool:
        """Return whether a task is known to be revoked: by this worker, or by a result backend that can say so."""
        if task_id in state.revoked:
            return True
        if task.app.conf.task_always_eager or not _is_readable(task.backend):
            return False
        try:
            return bool(task.backend.get_task_meta(task_id, cache=False).get("status") == states.REVOKED)
        except SoftTimeLimitExceeded:
            raise
        except Exception as error:  # noqa: BLE001 - what any backend's client raises
            logger.warning(
                "the result backend does not say whether task %s is revoked (%s)", task_id, type(error).__name__
            )
            return False


def _is_readable(backend: Any) -> bool:
    return not isinstance(backend, DisabledBackend) and backend.persistent
