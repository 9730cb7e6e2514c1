"""Deliveries of one task's arguments, and the keys that they get."""

import inspect
from collections.abc import Callable
from typing import Any

from idempotent_tasks.core.delivery import Delivery
from idempotent_tasks.core.keys import Selector, record_key

__all__ = ["SECRET", "TASK", "charge", "deliver", "key_of"]

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
