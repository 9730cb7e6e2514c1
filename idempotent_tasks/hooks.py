"""Worker signals: what is remembered, and refused, before a worker takes its first message."""

import logging
from typing import Any

from celery.concurrency import get_implementation
from celery.signals import task_success, worker_init, worker_shutdown

from idempotent_tasks import continuation
from idempotent_tasks.errors import ConfigurationError, StoreError
from idempotent_tasks.request import is_prefork, release_running, remember_worker
from idempotent_tasks.settings import settings_of
from idempotent_tasks.stores.dynamodb import DynamoDBStore
from idempotent_tasks.stores.memory import MemoryStore
from idempotent_tasks.task import IdempotentTask

__all__ = ["check_worker", "note_dispatch", "release_what_runs"]

logger = logging.getLogger("idempotent_tasks")


@worker_init.connect(weak=False, dispatch_uid="idempotent_tasks.check_worker")
def check_worker(sender: Any, **_: Any) -> None:
    """Stop a worker whose configuration cannot keep the promise; warn of a table that is not as it should be.

    Args:
        sender: the ``celery.worker.WorkController`` that starts.

    Raises:
        SystemExit: a setting is wrong.  Celery swallows any other exception of a signal's receiver
            (``celery.utils.dispatch.signal.Signal.send``).
    """
    tasks = [task for task in sender.app.tasks.values() if isinstance(task, IdempotentTask)]
    if not tasks:
        return
    remember_worker(sender)
    try:
        store = settings_of(sender.app).store
        _check_pool(store, get_implementation(sender.pool_cls))
    except ConfigurationError as error:
        logger.critical("the worker does not start: %s", error)
        raise SystemExit(f"idempotent_tasks: {error}") from error
    if isinstance(store, DynamoDBStore) and store.verifiable:
        _verify(store)


@task_success.connect(weak=False, dispatch_uid="idempotent_tasks.note_dispatch")
def note_dispatch(sender: Any, **_: Any) -> None:
    """Note that what follows a task was sent: Celery tells of a success after that, and after the chord's count."""
    if isinstance(sender, IdempotentTask):
        continuation.sent(sender.request)


@worker_shutdown.connect(weak=False, dispatch_uid="idempotent_tasks.release_what_runs")
def release_what_runs(**_: Any) -> None:
    """Release the claims of bodies that a shutdown cut short (``celery.signals.worker_shutdown``)."""
    release_running()


def _check_pool(store: Any, pool_cls: Any) -> None:
    if isinstance(store, MemoryStore) and is_prefork(pool_cls):
        msg = (
            "a memory:// store cannot guard a prefork worker, whose processes do not share memory; "
            'use "dynamodb://REGION/TABLE", or the pool "solo" or "threads"'
        )
        raise ConfigurationError(msg)


def _verify(store: DynamoDBStore) -> None:
    try:
        store.verify()
    except StoreError as error:
        logger.error("the idempotency table is not ready, deliveries may be deferred: %s", error)  # noqa: TRY400
