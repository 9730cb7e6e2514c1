"""The task bodies of the integration tests: each writes what it does into the journal and can be held at a gate."""

import base64
import ctypes
import os
import signal
import sys
from collections.abc import Callable
from typing import Any, NoReturn

from billiard.common import TERM_SIGNAL
from celery import Task
from sqlalchemy import text

from idempotent_tasks import Atomic
from tests.testbed.journal import Journal
from tests.testbed.processes import PR_SET_PDEATHSIG

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

    def large(self: Task, order: str, length: int) -> str:
        """Do the side effect and return so many characters, others for each run, which hardly compress."""
        begin(self, order)
        journal.write("effect", **_about(self), key=order)
        return base64.b64encode(os.urandom(length)).decode()[:length]

    def die(self: Task, order: str) -> None:
        """End the process, as a body does that runs out of memory."""
        begin(self, order)
        os.kill(os.getpid(), signal.SIGKILL)

    def exhaust(self: Task, order: str) -> None:
        """Find no memory left, in a process that lives on."""
        begin(self, order)
        raise MemoryError(order)

    own: list[Body] = [charge, retry, fail, large, die, exhaust]
    own += [make(journal) for make in (_heed, _deposit, _save, _fulfil)]
    return {body.__name__: body for body in own} | _canvas_bodies(journal, begin) | _leaving_bodies(journal, charge)


def _canvas_bodies(journal: Journal, begin: Callable[[Task, Any], None]) -> dict[str, Body]:
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

    def follow(self: Task, value: Any, name: str) -> Any:
        """Follow another task: do one side effect with what it returned, and pass that on."""
        begin(self, name)
        journal.pass_gate(f"follow-{name}")
        journal.write("effect", **_about(self), key=name, value=value)
        return value

    def follow_plain(self: Task, value: Any, name: str) -> Any:
        """Do as `follow`, as a task of Celery's own class."""
        begin(self, name)
        journal.write("effect", **_about(self), key=name, value=value)
        return value

    def swap(self: Task, order: str, substitute: str | None) -> None:
        """Let a task of another name, or of this one, take this task's place; without one do the side effect."""
        begin(self, order)
        if substitute is not None:
            raise self.replace(self.app.tasks[substitute].s(order, None))
        journal.write("effect", **_about(self), key=order)

    return {body.__name__: body for body in (add, total, follow, follow_plain, swap)}


def _leaving_bodies(journal: Journal, charge: Body) -> dict[str, Body]:
    """Return the bodies whose processes end in unusual ways, or do not end when they should."""

    def brittle(self: Task, order: str, value: Any = None) -> Any:
        """Do as `charge` does, in a process that billiard's signal ends at once, so that nothing here cleans up."""
        signal.signal(TERM_SIGNAL, signal.SIG_DFL)
        return charge(self, order, value)

    def outlive(self: Task, order: str, value: Any = None) -> Any:
        """Do as `charge` does, in a process that does not die with its parent, as Celery wants it where Linux can."""
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, 0)
        return charge(self, order, value)

    def leave(self: Task, order: str, way: str, times: int = 1) -> str:
        """Leave the process in one of `WAYS` as often as told, then do the side effect and return the way."""
        journal.write("started", **_about(self), key=order)
        if journal.count("started", key=order) <= times:
            WAYS[way]()
        journal.write("effect", **_about(self), key=order)
        return way

    return {body.__name__: body for body in (brittle, outlive, leave)}


def _run_out_of_memory() -> NoReturn:
    raise MemoryError


#: How a body can take its process with it.
WAYS: dict[str, Callable[[], object]] = {
    "sys.exit": lambda: sys.exit(3),
    "os._exit": lambda: os._exit(3),
    "os._exit(0)": lambda: os._exit(0),
    "segfault": lambda: ctypes.string_at(0),
    "MemoryError": _run_out_of_memory,
}


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


def _deposit(journal: Journal) -> Body:
    def deposit(self: Task, order: str, table: str) -> Atomic:
        """Add 1 to a counter in DynamoDB, in the transaction of the outcome, and return the order."""
        journal.write("started", **_about(self), key=order)
        journal.pass_gate("before-effect")
        add = {"UpdateExpression": "ADD amount :one", "ExpressionAttributeValues": {":one": {"N": "1"}}}
        return Atomic(order, [{"Update": {"TableName": table, "Key": {"id": {"S": "till"}}, **add}}])

    return deposit


def _save(journal: Journal) -> Body:
    def save(self: Task, order: str, follower: str | None = None) -> int:
        """Write an order's row in the transaction of a receipt, have a task follow it, and return the process."""
        journal.write("started", **_about(self), key=order, run=self.idempotency.run)
        self.idempotency.session.execute(text("INSERT INTO orders VALUES (:order)"), {"order": order})
        if follower is not None:
            self.idempotency.after_commit(self.app.tasks["follow"].si(order, follower))
        journal.pass_gate("in-transaction")
        return os.getpid()

    return save


def _fulfil(journal: Journal) -> Body:
    def fulfil(self: Task, order: str, table: str) -> Atomic:
        """Fulfil an order in four steps of different tools, then by a write; return the process that did each step.

        Each step's effect is between two gates of the body, ``before-`` and ``after-`` its name, and has one, ``in-``
        its name, behind it.  The journal is the books of two providers: one that takes keys, and one that can be asked.
        """
        run = self.idempotency
        journal.write("started", **_about(self), key=order, run=run.run)

        def charge() -> int:
            key = run.step_key("charge")
            journal.write("charge", key=order, provider_key=key)
            journal.pass_gate("in-charge")
            return int(journal.entries("charge", provider_key=key)[0]["pid"])

        def do(name: str) -> int:
            journal.write(name, key=order)
            journal.pass_gate(f"in-{name}")
            return os.getpid()

        def save(order: str) -> int:
            run.session.execute(text("INSERT INTO orders VALUES (:order)"), {"order": order})
            return do("save")

        steps: dict[str, Callable[[], Any]] = {
            "charge": lambda: run.step("charge", charge),
            "ship": lambda: run.step.options(recover="tests.support.recovery:find_step")("ship", do, "ship"),
            "save": lambda: run.step.options(receipts="tests.support.bank:receipts")("save", save, order),
            "notify": lambda: run.step("notify", do, "notify"),
        }
        done = {}
        for name, step in steps.items():
            journal.pass_gate(f"before-{name}")
            done[name] = step()
            journal.pass_gate(f"after-{name}")
        add = {"UpdateExpression": "ADD amount :one", "ExpressionAttributeValues": {":one": {"N": "1"}}}
        return Atomic(done, [{"Update": {"TableName": table, "Key": {"id": {"S": "till"}}, **add}}])

    return fulfil


def _about(task: Task) -> dict[str, Any]:
    return {"task": task.name, "id": task.request.id, "retries": task.request.retries, **_claim(task)}


def _claim(task: Task) -> dict[str, Any]:
    claim = getattr(task, "idempotency", None)
    return {} if claim is None else {"record": claim.key, "fence": claim.fence, "attempt": claim.attempt}
