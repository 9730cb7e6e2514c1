"""Two versions of a shop's code on one broker, result backend and store, as while a deployment rolls out."""

import threading
from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from typing import Any, TypeVar
from uuid import uuid4

from celery import Celery
from celery.result import AsyncResult

from idempotent_tasks import IdempotentTask, MemoryStore
from idempotent_tasks.core.records import is_reservation
from idempotent_tasks.stores import Store
from tests.support.inline import InlineWorker

__all__ = ["Carried", "Code", "Deployment", "Version", "charge", "row"]

F = TypeVar("F", bound=Callable[..., Any])

BOUND_SECONDS = 30.0


def row(change: str) -> Callable[[F], F]:
    """Mark a test as that of a row of the table in ``docs/how-to/deploying.md``, by the row's first column."""
    return lambda test: test


def charge(order_id: Any, cents: int) -> None:
    """Do nothing: which version of the code ran is all that counts."""


@dataclass(frozen=True)
class Code:
    """What one version of the code declares: a task, and its policy."""

    policy: dict[str, Any]
    body: Callable[..., Any] = charge
    name: str = "shop.charge"
    base: Any = IdempotentTask
    #: More of ``app.conf``.
    conf: tuple[tuple[str, Any], ...] = ()
    #: Where the records are; None for where all versions have them.
    store: Store | None = None


class Version:
    """An app with the tasks of one version, and a worker of it in this thread.

    Args:
        name: what each body returns, beside its arguments: the version that has run.
        app: of this version alone.
        queue: of all versions.
        codes: what the version declares; the first is what it publishes.
    """

    def __init__(self, name: str, app: Celery, queue: str, *codes: Code) -> None:
        self.app = app
        self.worker = InlineWorker(app, queue)
        #: The arguments of each run.
        self.runs: list[tuple[Any, ...]] = []
        #: Called in the next body.
        self.during: Callable[[], None] | None = None
        self._name = name
        self.task, *_ = [self._declare(code) for code in codes]

    def _declare(self, code: Code) -> Any:
        @wraps(code.body)
        def run(*args: Any, **kwargs: Any) -> Any:
            # As the body sees them: by position, whatever the message says.
            self.runs.append((*args, *kwargs.values()))
            code.body(*args, **kwargs)
            during, self.during = self.during, None
            if during is not None:
                during()
            return [self._name, *args, *kwargs.values()]

        guarded = {"idempotency": code.policy} if code.base is IdempotentTask else {}
        return self.app.task(run, base=code.base, name=code.name, shared=False, **guarded)

    def publish(self, *args: Any, **options: Any) -> AsyncResult:
        """Publish as a producer of this version does, under a task id that no other test uses."""
        return self.task.apply_async(args, **{"task_id": uuid4().hex, **options})

    def run_next(self) -> None:
        """Run the next message of the queue, whichever version has published it."""
        self.app.set_current()
        self.worker.run_next()

    def deliver(self, *args: Any, **options: Any) -> AsyncResult:
        """Publish and run a message; return its result."""
        published = self.publish(*args, **options)
        self.run_next()
        return published

    def close(self) -> None:
        """Close the worker and the app."""
        self.worker.close()
        self.app.close()


@dataclass(frozen=True)
class Carried:
    """What the new version makes of what the old one left."""

    #: A duplicate of a key that the old version has finished gets that result.
    replayed: bool
    #: A duplicate of a key that the old version is running waits for it, and gets its result.
    waited: bool
    #: A message for which the old version's producer has reserved its key takes the reservation over.
    taken_over: bool


class Deployment:
    """An old and a new version, and an old one whose producer reserves keys (``at_publish="join"``)."""

    def __init__(self, old: Version, new: Version, reserving: Version, store: MemoryStore) -> None:
        self.old = old
        self.new = new
        self.reserving = reserving
        self.store = store

    def carried(self, *rest: Any, publisher: Version | None = None, **options: Any) -> Carried:
        """Return what becomes of three orders.

        Args:
            rest: the arguments after the order's number.
            publisher: the version that publishes the duplicates; the old one by default.
            options: of each publish.
        """
        by = publisher or self.old
        return Carried(
            replayed=self._replayed(by, "finished", *rest, **options),
            waited=self._waited(by, "running", *rest, **options),
            taken_over=self._taken_over("reserved", *rest, **options),
        )

    def _replayed(self, by: Version, *args: Any, **options: Any) -> bool:
        self.old.deliver(*args, **options)
        return self._is_old(by.publish(*args, **options))

    def _is_old(self, duplicate: AsyncResult) -> bool:
        """Run a duplicate by the new version; return whether it gets the old version's result without a run."""
        before = len(self.new.runs)
        self.new.run_next()
        assert duplicate.state == "SUCCESS", (duplicate.state, duplicate.result)
        is_old = bool(duplicate.result[0] == "old")
        assert is_old is (len(self.new.runs) == before)
        return is_old

    def _waited(self, by: Version, *args: Any, **options: Any) -> bool:
        before = len(self.new.runs)
        duplicate = self.while_running(lambda: by.publish(*args, **options), *args, **options)
        if len(self.new.runs) > before:
            return False
        assert (duplicate.state, self.new.worker.waiting()) == ("PENDING", 1)
        return self._is_old(duplicate)

    def while_running(self, publish: Callable[[], AsyncResult], *args: Any, **options: Any) -> AsyncResult:
        """Have the new version run a duplicate while the old version runs the key's body; return the duplicate."""
        published: list[AsyncResult] = []
        failures: list[BaseException] = []

        def run() -> None:
            try:
                published.append(publish())
                self.new.run_next()
            except BaseException as error:  # noqa: BLE001 - raised again in the test's thread
                failures.append(error)

        def beside() -> None:
            # Another process's, as far as Celery knows: its current app and task belong to a thread.
            thread = threading.Thread(target=run)
            thread.start()
            thread.join(BOUND_SECONDS)
            assert not thread.is_alive(), "the new version does not end its delivery"

        self.old.during = beside
        self.old.deliver(*args, **options)
        if failures:
            raise failures[0]
        return published[0]

    def _taken_over(self, *args: Any, **options: Any) -> bool:
        before = len(self.new.runs)
        self.reserving.publish(*args, **options)
        self.new.run_next()
        assert len(self.new.runs) == before + 1
        return not any(map(is_reservation, self.store.records()))
