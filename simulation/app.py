"""The Celery app of every history: the shipped `IdempotentTask`, bodies that follow a plan, and a result backend."""

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

from billiard import einfo
from celery import Celery, _state
from celery.backends.base import KeyValueStoreBackend

from idempotent_tasks import Idempotency, IdempotentTask
from idempotent_tasks.core.processes import this_process
from idempotent_tasks.core.store import Store
from simulation.broker import Transport
from simulation.process import check_alive

if TYPE_CHECKING:
    from simulation.world import World

__all__ = ["QUEUE", "app", "enter", "playing"]

QUEUE: Final = "simulation"
_current: list["World"] = []


def enter(world: "World") -> None:
    """Make a history's world the one that the app lives in."""
    _current[:] = [world]


class _Backend(KeyValueStoreBackend):
    """A result backend in the world's memory."""

    def get(self, key: Any) -> Any:
        """Return a value or None."""
        return _current[0].results.get(_text(key))

    def mget(self, keys: Any) -> list[Any]:
        """Return the values of keys."""
        return [self.get(key) for key in keys]

    def set(self, key: Any, value: Any) -> None:
        """Store a value."""
        check_alive()
        _current[0].results[_text(key)] = value

    def delete(self, key: Any) -> None:
        """Remove a value."""
        check_alive()
        _current[0].results.pop(_text(key), None)

    def incr(self, key: Any) -> int:
        """Count up."""
        check_alive()
        count = int(_current[0].results.get(_text(key), 0)) + 1
        _current[0].results[_text(key)] = count
        return count

    def expire(self, key: Any, value: Any) -> None:
        """Keep everything."""


class _App(Celery):
    """Reads the time from the process that runs."""

    def now(self) -> datetime:
        """Return the time of the current process's clock."""
        return datetime.fromtimestamp(this_process().clock.now(), UTC)


class _ProcessStore:
    """The store of whichever process runs: each process of a worker has its own."""

    @property
    def _own(self) -> Store:
        return _current[0].store_of(this_process())

    @property
    def clock(self) -> Any:
        return self._own.clock

    @property
    def max_data_bytes(self) -> int:
        return self._own.max_data_bytes

    def claim(self, *args: Any) -> Any:
        return self._own.claim(*args)

    def commit(self, *args: Any) -> Any:
        return self._own.commit(*args)

    def restore(self, *args: Any) -> Any:
        return self._own.restore(*args)

    def release(self, *args: Any, **how: Any) -> Any:
        return self._own.release(*args, **how)

    def renew(self, *args: Any) -> Any:
        return self._own.renew(*args)

    def note_deferral(self, *args: Any) -> Any:
        return self._own.note_deferral(*args)

    def note_dispatch(self, *args: Any) -> Any:
        return self._own.note_dispatch(*args)

    def get(self, key: str) -> Any:
        return self._own.get(key)


def _observe(event: Any) -> None:
    check_alive()
    _current[0].on_event(event)


def _text(key: Any) -> str:
    return key.decode() if isinstance(key, bytes) else str(key)


app = _App("simulation", set_as_current=False)
app.conf.update(
    broker_url="simulated://",
    broker_transport=Transport,
    broker_pool_limit=8,
    result_backend="simulation.app:_Backend",
    task_default_queue=QUEUE,
    task_publish_retry=False,
    task_create_missing_queues=True,
    worker_enable_remote_control=False,
    idempotency_store=_ProcessStore(),
    idempotency_observers=[_observe],
    # Longer than any history.
    idempotency_expires=100_000,
)


def _declare(name: str, **options: Any) -> Any:
    @app.task(base=IdempotentTask, bind=True, name=name, shared=False, **options)
    def body(self: Any, order: str, plan: list[Any]) -> Any:
        return _current[0].run_body(self, order, plan)

    return body


LEASE_SECONDS: Final = 10
HARD_LIMIT_SECONDS: Final = 8
_BY_ORDER: Final = Idempotency(key="order", lease=LEASE_SECONDS)
#: By the policy that they show: a claim for the whole time limit, one that is renewed, and the task id as the key.
TASKS: Final = {
    "limited": _declare("limited", time_limit=HARD_LIMIT_SECONDS, idempotency=Idempotency(key="order", grace=2)),
    "leased": _declare("leased", idempotency=_BY_ORDER),
    "own": _declare("own", idempotency=Idempotency(lease=LEASE_SECONDS)),
    "waits": _declare("waits", idempotency=_BY_ORDER.over({"on_busy": "wait", "wait_timeout": 5})),
    "joined": _declare("joined", idempotency=_BY_ORDER.over({"at_publish": "join", "reserve": 30})),
    "exclusive": _declare("exclusive", idempotency=Idempotency.exclusive(lease=LEASE_SECONDS, on_busy="defer")),
}


@app.task(name="follow", bind=True, base=IdempotentTask, shared=False, idempotency=Idempotency(lease=LEASE_SECONDS))
def follow(self: Any, value: Any, of: str) -> Any:
    """Be what follows a task."""
    _current[0].on_follow(of, self.request.id, value)
    return value


@contextmanager
def playing() -> Iterator[None]:
    """Make the app the current one during a block, and keep quiet what goes wrong in it on purpose."""
    loggers = [logging.getLogger(name) for name in ("celery", "idempotent_tasks")]
    levels, current = [logger.level for logger in loggers], _state._tls.current_app  # noqa: SLF001 - no public way back
    for logger in loggers:
        logger.setLevel(logging.CRITICAL + 1)
    # Each deferral copies and formats its traceback, which no history looks at and which took a third of the time.
    sys.tracebacklimit, traceback = 0, einfo.Traceback
    einfo.Traceback = lambda _: einfo._Truncated()  # noqa: SLF001 - billiard's own for frames past its limit
    app.set_current()
    try:
        yield
    finally:
        del sys.tracebacklimit
        einfo.Traceback = traceback
        _state._tls.current_app = current  # noqa: SLF001
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
