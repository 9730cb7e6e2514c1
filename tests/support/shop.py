"""Guarded tasks named ``shop.charge``: on a worker in this thread, counted, or as bare deliveries."""

import inspect
from collections.abc import Callable
from typing import Any
from uuid import uuid4

from celery import Celery

from idempotent_tasks import IdempotentTask
from idempotent_tasks.core.delivery import Delivery
from idempotent_tasks.core.keys import Selector, record_key
from idempotent_tasks.core.records import Claim, Granted, Record
from idempotent_tasks.events import Deferred, Event
from idempotent_tasks.testing import MemoryStore
from tests.support.guarding import request_by
from tests.support.inline import InlineWorker

__all__ = ["SECRET", "TASK", "Counting", "Shop", "charge", "deliver", "key_of", "make", "raising"]

Body = Callable[..., Any]


def raising(error: BaseException) -> Body:
    """Return a body that raises."""

    def body(task: Any) -> None:
        raise error

    return body


class Shop:
    """One guarded task on one worker; all its messages have one task id, which is the key."""

    def __init__(self, app: Celery, worker: InlineWorker, seen: list[Event], store: MemoryStore) -> None:
        self.app = app
        self.worker = worker
        self.seen = seen
        self.store = store
        self.runs = 0
        self.task: Any = None
        #: Unique, because the result backend's memory is the whole process's.
        self.id = uuid4().hex

    def sells(self, body: Body, **options: Any) -> None:
        """Make the task; its body is bound, and counted."""

        def charge(task: Any) -> Any:
            self.runs += 1
            return body(task)

        self.task = self.app.task(charge, base=IdempotentTask, name="shop.charge", bind=True, shared=False, **options)

    def publish(self, **options: Any) -> None:
        """Publish the task's message."""
        self.task.apply_async(**{"task_id": self.id, **options})

    def deliver(self, **options: Any) -> None:
        """Publish, and run that one message."""
        self.publish(**options)
        self.worker.run_next()

    def claim_elsewhere(self, owner: str = "elsewhere") -> Claim:
        """Let another worker hold the key."""
        answer = self.store.claim(request_by(owner, key=self.key))
        assert isinstance(answer, Granted)
        return answer.claim

    @property
    def key(self) -> str:
        """The record's key."""
        return f"shop.charge#{self.id}"

    @property
    def record(self) -> Record:
        """The key's record."""
        return self.store.get(self.key)

    @property
    def state(self) -> str:
        """The state in the result backend."""
        return self.worker.state(self.id)

    @property
    def result(self) -> Any:
        """The result, or error, in the result backend."""
        return self.worker.result(self.id)

    def deferrals(self) -> list[str]:
        """Return why messages were deferred."""
        return [event.reason for event in self.seen if isinstance(event, Deferred)]


def make(app: Celery, body: Any, **options: Any) -> Any:
    """Return a guarded task of the app."""
    return app.task(body, **{"base": IdempotentTask, "name": "shop.charge", "shared": False, **options})


class Counting:
    """A body that counts its runs and returns the count and its arguments."""

    def __init__(self) -> None:
        self.runs = 0

    def make(self, app: Celery, **options: Any) -> Any:
        """Return a guarded task that runs this body."""

        def charge(order: Any = None, amount: int = 5) -> list[Any]:
            self.runs += 1
            return [self.runs, order, amount]

        return make(app, charge, **options)


TASK = "shop.charge"
#: What must appear in no message.
SECRET = "4111111111111111"


def charge(order: Any, amount: Any = 5, *rest: Any, note: Any = None, **more: Any) -> None:
    """Have every kind of parameter."""


def deliver(*args: Any, explicit_key: object = None, task_id: str = "id-1", **kwargs: Any) -> Delivery:
    """Return a delivery of these arguments."""
    return Delivery(task=TASK, task_id=task_id, args=args, kwargs=kwargs, explicit_key=explicit_key)


def key_of(source: str | Callable[..., Any] | None, delivery: Delivery, function: Callable[..., Any] = charge) -> str:
    """Return the record's key under a key source."""
    selector = None if source is None else Selector.of("key", source)
    return record_key(delivery, TASK, selector, inspect.signature(function))
