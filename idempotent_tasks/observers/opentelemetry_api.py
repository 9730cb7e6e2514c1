"""OpenTelemetry: metrics, and attributes and events of the task's span; needs the extra ``opentelemetry``.

The span is the current one, which opentelemetry-instrumentation-celery opens around a task.  Without an SDK, which the
application chooses, nothing is exported.
"""

from dataclasses import fields
from typing import Final

from opentelemetry import metrics, trace

from idempotent_tasks import events
from idempotent_tasks.errors import CrashLoopError

__all__ = ["observe"]

_meter: Final = metrics.get_meter("idempotent_tasks")
_events: Final = _meter.create_counter("idempotent_tasks.events", description="What happened to deliveries.")
_runs: Final = _meter.create_histogram(
    "idempotent_tasks.run.duration", unit="s", description="From the claim of a key to the commit of its outcome."
)
_ages: Final = _meter.create_histogram(
    "idempotent_tasks.replay.age", unit="s", description="How old replayed outcomes were."
)
#: Events that do not end a delivery.
_INTERMEDIATE: Final = (events.Claimed, events.Renewed, events.Dispatched)


def observe(event: events.Event) -> None:
    """Count the event, and add it to the current span as an event and as searchable attributes."""
    name = type(event).__name__.lower()
    task = {"celery.task_name": event.task}
    _events.add(1, {**task, "idempotency.event": name})
    match event:
        case events.Committed(seconds=seconds):
            _runs.record(seconds, task)
        case events.Replayed(age_seconds=age) if age is not None:
            _ages.record(age, task)
    span = trace.get_current_span()
    if not span.is_recording():
        return
    values = {f"idempotency.{each.name}": getattr(event, each.name) for each in fields(event)}
    span.add_event(f"idempotency.{name}", {each: value for each, value in values.items() if value is not None})
    span.set_attribute("idempotency.key", event.key)
    if isinstance(event, events.Claimed):
        span.set_attribute("idempotency.attempt", event.attempt)
    if not isinstance(event, _INTERMEDIATE) and not _follows_a_crash_loop(event):
        span.set_attribute("idempotency.outcome", name)


def _follows_a_crash_loop(event: events.Event) -> bool:
    return isinstance(event, events.Released) and event.reason == CrashLoopError.__name__
