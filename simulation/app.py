"""The Celery app of every history: its broker, store, result backend and clock are those of the history that runs."""

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

from billiard import einfo
from celery import Celery, _state
from celery.backends.base import KeyValueStoreBackend

from idempotent_tasks.core.processes import this_process
from simulation.broker import Transport
from simulation.calls import RecordedStore
from simulation.process import check_alive

if TYPE_CHECKING:
    from simulation.world import World

__all__ = ["QUEUE", "RECEIPTS", "app", "enter", "playing", "world"]

QUEUE: Final = "simulation"
#: Celery's own tasks that complete chords and replacements by groups.
CANVAS_TASKS: Final = ("celery.chord_unlock", "celery.accumulate")
#: Seconds between two looks at the parts of a chord.
POLL_SECONDS: Final = 10.0
#: For longer than the clocks of two machines differ.
MOST_POLLS: Final = 100
_current: list["World"] = []


def enter(entered: "World") -> None:
    """Make a history's world the one that the app lives in."""
    _current[:] = [entered]


def world() -> "World":
    """Return the world of the history that runs."""
    return _current[0]


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
        _current[0].on_result(_text(key), value)

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
        """Return the time as the clock of the current process's machine shows it now, whatever it was set to since."""
        return datetime.fromtimestamp(_current[0].machine_time(this_process()), UTC)


class _ProcessClock:
    """The clock of the store of whichever process runs."""

    def now(self) -> float:
        return _current[0].store_of(this_process()).clock.now()

    def monotonic(self) -> float:
        return this_process().clock.monotonic()

    def sleep(self, seconds: float) -> None:
        this_process().clock.sleep(seconds)


class _ProcessStore:
    """The store of whichever process runs: each process of a worker has its own."""

    clock: Final = _ProcessClock()

    @property
    def _own(self) -> RecordedStore:
        return _current[0].store_of(this_process())

    @property
    def max_data_bytes(self) -> int:
        return _current[0].max_data_bytes

    def claim(self, *args: Any) -> Any:
        return self._own.claim(*args)

    def commit(self, *args: Any) -> Any:
        return self._own.commit(*args)

    def check_writes(self, *args: Any) -> Any:
        return self._own.check_writes(*args)

    def commit_with(self, *args: Any) -> Any:
        return self._own.commit_with(*args)

    def write(self, *args: Any) -> Any:
        return self._own.write(*args)

    def restore(self, *args: Any) -> Any:
        return self._own.restore(*args)

    def release(self, *args: Any, **how: Any) -> Any:
        return self._own.release(*args, **how)

    def renew(self, *args: Any) -> Any:
        return self._own.renew(*args)

    def park(self, *args: Any) -> Any:
        return self._own.park(*args)

    def keep_message(self, *args: Any) -> Any:
        return self._own.keep_message(*args)

    def keep_step(self, *args: Any) -> Any:
        return self._own.keep_step(*args)

    def kept_step(self, *args: Any) -> Any:
        return self._own.kept_step(*args)

    def note_deferral(self, *args: Any) -> Any:
        return self._own.note_deferral(*args)

    def note_dispatch(self, *args: Any) -> Any:
        return self._own.note_dispatch(*args)

    def get(self, key: str) -> Any:
        return self._own.get(key)


class _Bucket:
    """The bucket of the history that runs."""

    @property
    def above_bytes(self) -> int | None:
        return _current[0].bucket.above_bytes

    def put(self, data: bytes, expires_at: float) -> str:
        return _current[0].bucket.put(data, expires_at)

    def get(self, address: str) -> bytes:
        return _current[0].bucket.get(address)


class _Receipts:
    """The receipts in the database of the history that runs."""

    def begin(self, *args: Any) -> Any:
        return _current[0].database.begin(*args)

    def look(self) -> Any:
        return _current[0].database.look()

    def purge(self, before: float) -> int:
        return _current[0].database.purge(before)


RECEIPTS: Final = _Receipts()


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
    # As ``docs/how-to/canvas.md`` says: Celery's own tasks of a canvas must not be lost with their worker either.
    task_annotations={
        # Where a header was not published as a whole, nobody else ends the polling.
        name: {"acks_late": True, "reject_on_worker_lost": True, "max_retries": MOST_POLLS}
        for name in CANVAS_TASKS
    },
    # A process's own memory of results, which all processes of a history would share, and the next history too.
    result_cache_max=-1,
    result_chord_retry_interval=POLL_SECONDS,
    idempotency_store=_ProcessStore(),
    idempotency_results_bucket=_Bucket(),
    idempotency_observers=[_observe],
    # Longer than any history.
    idempotency_expires=100_000,
)


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
