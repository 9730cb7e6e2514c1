"""``at_publish`` and Django: a publish that waits for a transaction reserves its key when that commits."""

from collections.abc import Iterator
from typing import Any

import pytest
from celery import Celery

from idempotent_tasks import IdempotentTask
from idempotent_tasks.testing import MemoryStore
from tests.support.inline import InlineWorker
from tests.support.shop import make

pytest.importorskip("django")


@pytest.fixture
def transaction() -> Iterator[Any]:
    """Django's transactions, on a database in memory: Django is configured once a process, and by nobody else here."""
    import django
    from django.conf import settings
    from django.db import connection, transaction

    if not settings.configured:
        databases = {"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"}}
        settings.configure(DATABASES=databases, LOGGING_CONFIG=None)
        django.setup()
    yield transaction
    connection.close()


@pytest.fixture
def task(app: Celery) -> Any:
    """A guarded task with Django's shortcuts."""
    from celery.contrib.django.task import DjangoTask

    class ShopTask(IdempotentTask, DjangoTask):
        """What a Django project makes its base."""

        abstract = True

    def body(order: str) -> str:
        return f"{order} done"

    return make(app, body, base=ShopTask, idempotency={"key": "order", "at_publish": "join"})


def test_nothing_is_reserved_before_the_commit(
    transaction: Any, task: Any, worker: InlineWorker, store: MemoryStore
) -> None:
    """``delay_on_commit`` and ``apply_async_on_commit`` ask when the transaction has committed; the second joins."""
    with transaction.atomic():
        task.delay_on_commit("ord-1")
        task.apply_async_on_commit(("ord-1",))
        assert (store.records(), worker.waiting()) == ([], 0)
    assert (len(store.records()), worker.waiting()) == (1, 1)
    assert (worker.drain(), task.delay("ord-1").get()) == (1, "ord-1 done")


def test_a_rollback_reserves_nothing(transaction: Any, task: Any, worker: InlineWorker, store: MemoryStore) -> None:
    """A publish that never happens leaves no key behind."""

    def roll_back() -> None:
        with transaction.atomic():
            task.delay_on_commit("ord-1")
            raise KeyError

    with pytest.raises(KeyError):
        roll_back()
    assert (store.records(), worker.waiting()) == ([], 0)
