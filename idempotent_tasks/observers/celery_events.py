"""Celery events, so that ``celery events``, Flower and ``idempotency watch`` see a replay as a replay.

Monitors take an event ``task-replayed`` for the task's state ``REPLAYED``, as they do with every event of a type that
they do not know (``celery.events.state.Task.event``).
"""

import logging
from dataclasses import fields
from typing import Final

from celery import current_app, current_task

from idempotent_tasks import events

__all__ = ["TOLD", "event_type", "observe"]

#: What is told: all but what every first run does, which would cost a message each.
TOLD: Final = tuple(kind for kind in events.KINDS if kind.level > logging.DEBUG)


def event_type(kind: type[events.Event]) -> str:
    """Return the type of the Celery event, for example ``task-replayed``."""
    return f"task-{kind.__name__.lower()}"


def observe(event: events.Event) -> None:
    """Send the event to the broker's event exchange: once, without a retry, so that a broker that is away costs little.

    Its fields are ``uuid`` (the task id), ``name`` (the task) and the event's own.

    Raises:
        kombu.exceptions.OperationalError: the broker does not take it.
    """
    if not isinstance(event, TOLD):
        return
    told = {field.name: getattr(event, field.name) for field in fields(event)}
    task, task_id = told.pop("task"), told.pop("task_id")
    hostname = getattr(getattr(current_task, "request", None), "hostname", None)
    with current_app.events.default_dispatcher(hostname=hostname) as dispatcher:
        dispatcher.send(event_type(type(event)), uuid=task_id, name=task, retry=False, **told)
