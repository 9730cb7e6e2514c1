"""Celery events, so that ``celery events``, Flower and ``idempotency watch`` see a replay as a replay.

They go over a connection of their own that waits a second at most, and not at all for a while after that was in vain:
a body must not stand still because nobody can be told.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields
from typing import Any, Final
from weakref import WeakKeyDictionary

from celery import _state
from kombu import pools

from idempotent_tasks import events
from idempotent_tasks.clock import SystemClock

__all__ = ["TOLD", "event_type", "observe"]

#: What is told: all but what every first run does, which would cost a message each.
TOLD: Final = tuple(kind for kind in events.KINDS if kind.level > logging.DEBUG)
#: What Celery's own events do not show: these become the task's state in a monitor.  A monitor takes an event
#: ``task-replayed`` for the state ``REPLAYED``, and ranks it above ``STARTED``, below ``SUCCESS``
#: (``celery.events.state.Task.event``); so what the delivery may outlive, such as a release, must not be one.
STATES: Final = (events.Replayed, events.Deferred, events.Skipped)
#: Seconds to wait for a connection, and for each answer.
PATIENCE: Final = 1.0
#: Seconds for which nothing is sent after the broker did not take an event.
SILENCE: Final = 30.0
#: What a broker's transport calls its waiting times.
_TIMEOUTS: Final = {
    "amqp": ("read_timeout", "write_timeout"),
    "redis": ("socket_timeout", "socket_connect_timeout"),
}
#: Once more on a new connection: the broker may have closed one that was idle.
_RETRY: Final = {"max_retries": 1, "interval_start": 0, "interval_step": 0, "interval_max": 0}


def event_type(kind: type[events.Event]) -> str:
    """Return the type of the Celery event, for example ``task-replayed`` or ``idempotency-lost``."""
    return f"{'task' if kind in STATES else 'idempotency'}-{kind.__name__.lower()}"


def observe(event: events.Event) -> None:
    """Send the event to the broker's event exchange.

    Its fields are ``uuid`` (the task id), ``name`` (the task) and the event's own.

    Raises:
        kombu.exceptions.OperationalError: the broker does not take it; nothing is sent for `SILENCE` seconds.
    """
    if isinstance(event, TOLD):
        _line.send(event)


class _Line:
    """The line to the broker, which is left alone for a while after it failed."""

    def __init__(self) -> None:
        self._clock = SystemClock()
        self._silent_until = 0.0
        #: By app: a connection that is never opened, and stands for the pool of those that are.
        self._impatient: WeakKeyDictionary[Any, Any] = WeakKeyDictionary()

    def send(self, event: events.Event) -> None:
        if self._clock.now() < self._silent_until:
            return
        told = {field.name: getattr(event, field.name) for field in fields(event)}
        task, task_id, hostname = told.pop("task"), told.pop("task_id"), told.pop("worker")
        try:
            with self._dispatcher(_state.get_current_app(), hostname or None) as dispatcher:
                dispatcher.send(
                    event_type(type(event)), uuid=task_id, name=task, retry=True, retry_policy=_RETRY, **told
                )
        except Exception:
            self._silent_until = self._clock.now() + SILENCE
            raise

    @contextmanager
    def _dispatcher(self, app: Any, hostname: str | None) -> Iterator[Any]:
        # kombu forgets its pools in a forked child.
        with pools.producers[self._connection(app)].acquire(block=True, timeout=PATIENCE) as producer:
            try:
                with app.events.Dispatcher(
                    producer.connection, hostname, channel=producer.channel, buffer_while_offline=False
                ) as dispatcher:
                    yield dispatcher
            except BaseException:
                # An answer that comes late would be taken for that of the next event.
                producer.connection.collect()
                raise

    def _connection(self, app: Any) -> Any:
        if app not in self._impatient:
            timeouts = _TIMEOUTS.get(app.connection_for_write().transport.driver_type, ())
            self._impatient[app] = app.connection_for_write(
                connect_timeout=PATIENCE, transport_options=dict.fromkeys(timeouts, PATIENCE)
            )
        return self._impatient[app]


_line: Final = _Line()
