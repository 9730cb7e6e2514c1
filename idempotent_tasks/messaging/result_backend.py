"""Celery's result backend: the result of another run that its record has not, and whether a task was revoked."""

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
    """Reads an app's result backend for other runs of a task."""

    def recalled(self, task: Any, record: Record) -> Recalled | None:
        """Return the result of a record's run; None where the backend has none.

        It has none after ``result_expires``, under ``ignore_result``, where the worker was killed before it stored
        one, and where the backend keeps results for their publisher alone (``rpc://``).

        Args:
            task: the bound Celery task.
            record: a completed record.

        Raises:
            StoreUnavailableError: the backend cannot be read.
        """
        backend = task.backend
        # Eager apps store nothing in a backend, and Celery warns of reads.
        if record.task_id is None or task.app.conf.task_always_eager or not _is_readable(backend):
            return None
        try:
            meta = backend.get_task_meta(record.task_id, cache=False)
        except SoftTimeLimitExceeded:
            raise
        except Exception as error:
            msg = f"the result is only in the result backend, which does not answer ({type(error).__name__})"
            raise StoreUnavailableError(msg, record.task, record.key) from error
        # A backend with ``result_extended`` names the task.
        if meta.get("status") != states.SUCCESS or meta.get("name") not in (None, record.task):
            return None
        return Recalled(meta.get("result"))

    def is_revoked(self, task: Any, task_id: str) -> bool:
        """Return whether this worker or the result backend knows a task as revoked; False where neither can say."""
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
