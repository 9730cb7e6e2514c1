"""The task bodies of the integration tests: each writes what it does into the journal and can be held at a gate."""

import os
import signal
from collections.abc import Callable
from typing import Any

from celery import Task

from tests.support.journal import Journal

Body = Callable[..., Any]


def bodies(journal: Journal) -> dict[str, Body]:
    """Return every body by its task name; all are bound."""

    def begin(task: Task, key: Any) -> None:
        journal.write("started", **_about(task), key=key)

    def charge(self: Task, order: str, value: Any = None) -> Any:
        """Do one side effect between two gates and return the value."""
        begin(self, order)
        journal.pass_gate("before-effect")
        journal.write("effect", **_about(self), key=order)
        journal.pass_gate("after-effect")
        journal.write("finished", **_about(self), key=order)
        return value

    def retry(self: Task, order: str, failures: int) -> int:
        """Ask for a retry as often as told, then do the side effect and return the number of tries."""
        begin(self, order)
        if self.request.retries < failures:
            raise self.retry(countdown=0, max_retries=failures)
        journal.write("effect", **_about(self), key=order)
        return int(self.request.retries) + 1

    def fail(self: Task, order: str, failures: int) -> int:
        """Raise as often as told (``autoretry_for`` turns it into retries), then do as `retry` does."""
        begin(self, order)
        if self.request.retries < failures:
            raise ConnectionError(f"try {self.request.retries} of {order}")
        journal.write("effect", **_about(self), key=order)
        return int(self.request.retries) + 1

    def add(self: Task, left: int, right: int) -> int:
        """Add, as a link of a chain or a member of a chord's header."""
        begin(self, [left, right])
        journal.pass_gate(f"add-{left}-{right}")
        journal.write("effect", **_about(self), key=[left, right])
        return left + right

    def total(self: Task, numbers: list[int]) -> int:
        """Add up what a chord's header returned."""
        begin(self, numbers)
        journal.write("effect", **_about(self), key=numbers)
        return sum(numbers)

    def die(self: Task, order: str) -> None:
        """End the process, as a body does that runs out of memory."""
        begin(self, order)
        os.kill(os.getpid(), signal.SIGKILL)

    return {body.__name__: body for body in (charge, retry, fail, add, total, die, _heed(journal))}


def _heed(journal: Journal) -> Body:
    def heed(self: Task, order: str, value: Any = None, failing_attempt: int = 0) -> Any:
        """Do as `charge` does after a gate of its attempt, or fail; and write down whether the claim was lost."""
        attempt = self.idempotency.attempt
        journal.write("started", **_about(self), key=order)
        journal.pass_gate(f"attempt-{attempt}")
        journal.write("heeded", **_about(self), lost=self.idempotency.lost)
        if attempt == failing_attempt:
            raise ValueError(f"attempt {attempt} of {order}")
        journal.write("effect", **_about(self), key=order)
        return value

    return heed


def _about(task: Task) -> dict[str, Any]:
    return {"task": task.name, "id": task.request.id, "retries": task.request.retries, **_claim(task)}


def _claim(task: Task) -> dict[str, Any]:
    claim = getattr(task, "idempotency", None)
    return {} if claim is None else {"fence": claim.fence, "attempt": claim.attempt}
