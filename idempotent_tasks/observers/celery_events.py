"""Send the library's events as Celery events, for ``celery events``, Flower and ``idempotency watch``.

Connections of their own, a time-out of a second and a pause after a failure keep an unavailable broker from delaying
task bodies.
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
from idempotent_tasks.core.processes import this_process

__all__ = ["REPORTED", "event_type", "observe"]

#: The events that are sent: all but those of every first run, because each costs a message.
REPORTED: Final = tuple(kind for kind in events.KINDS if kind.level > logging.DEBUG)
#: The events that a monitor shows as the task's state, because Celery's own events do not.  A monitor ranks the state
#: ``REPLAYED`` of ``task-replayed`` above ``STARTED``, below ``SUCCESS`` (``celery.events.state.Task.event``), so
#: events after which the delivery may go on, such as a release, are not among them.
STATES: Final = (events.Replayed, events.Deferred, events.Skipped)
#: Seconds to wait for a connection, and for each answer of the broker.
TIMEOUT_SECONDS: Final = 1.0
#: Seconds for which nothing is sent after a failure.
PAUSE_SECONDS: Final = 30.0
#: The transport options for timeouts, by kombu driver type.
_TIMEOUTS: Final = {
    "amqp": ("read_timeout", "write_timeout"),
    "redis": ("socket_timeout", "socket_connect_timeout"),
}
#: Retry once, on a new connection: the broker may have closed an idle one.
_RETRY: Final = {"max_retries": 1, "interval_start": 0, "interval_step": 0, "interval_max": 0}


def event_type(kind: type[events.Event]) -> str:
    """Return the type of the Celery event, for example ``task-replayed`` or ``idempotency-lost``."""
    return f"{'task' if kind in STATES else 'idempotency'}-{kind.__name__.lower()}"


def observe(event: events.Event) -> None:
    """Send an event to the broker's event exchange, with ``uuid`` (task id), ``name`` (task name) and its own fields.

    Raises:
        kombu.exceptions.OperationalError: the event could not be sent; for `PAUSE_SECONDS` all others are dropped.
    """
    if isinstance(event, REPORTED):
        this_process().own(_Sender).send(event)


class _Sender:
    """Sends Celery events through kombu's connection pools."""

    def __init__(self) -> None:
        self._paused_until = 0.0
        #: By app: a connection that is never opened, as the key of kombu's pool.
        self._connections: WeakKeyDictionary[Any, Any] = WeakKeyDictionary()

    def send(self, event: events.Event) -> None:
        clock = this_process().clock
        if clock.monotonic() < self._paused_until:
            return
        values = {field.name: getattr(event, field.name) for field in fields(event)}
        task, task_id, hostname = values.pop("task"), values.pop("task_id"), values.pop("worker")
        try:
            with self._dispatcher(_state.get_current_app(), hostname or None) as dispatcher:
                dispatcher.send(
                    event_type(type(event)), uuid=task_id, name=task, retry=True, retry_policy=_RETRY, **values
                )
        except Exception:
            self._paused_until = clock.monotonic() + PAUSE_SECONDS
            raise

    @contextmanager
    def _dispatcher(self, app: Any, hostname: str | None) -> Iterator[Any]:
        # kombu makes new pools in a forked child.
        with pools.producers[self._connection(app)].acquire(block=True, timeout=TIMEOUT_SECONDS) as producer:
            try:
                with app.events.Dispatcher(
                    producer.connection, hostname, channel=producer.channel, buffer_while_offline=False
                ) as dispatcher:
                    yield dispatcher
            except BaseException:
                # A late answer would be read as the answer to the next event.
                producer.connection.collect()
                raise

    def _connection(self, app: Any) -> Any:
        if app not in self._connections:
            timeouts = _TIMEOUTS.get(app.connection_for_write().transport.driver_type, ())
            self._connections[app] = app.connection_for_write(
                connect_timeout=TIMEOUT_SECONDS, transport_options=dict.fromkeys(timeouts, TIMEOUT_SECONDS)
            )
        return self._connections[app]
