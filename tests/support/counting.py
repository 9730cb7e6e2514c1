"""Guarded tasks made in a line, and a body that counts its runs."""

from typing import Any

from celery import Celery

from idempotent_tasks import IdempotentTask

__all__ = ["Counting", "make"]


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
