"""OpenTelemetry: attributes and events of the task's span, and metrics; needs the extra ``opentelemetry``.

The span is the current one, as opentelemetry-instrumentation-celery opens it around a task.  What exports spans and
metrics is the application's own choice of an SDK; without one this does nothing.
"""

from dataclasses import fields
from typing import Final

from opentelemetry import metrics, trace

from idempotent_tasks import events

__all__ = ["observe"]

_meter: Final = metrics.get_meter("idempotent_tasks")
_events: Final = _meter.create_counter("idempotent_tasks.events", description="What happened to deliveries.")
_runs: Final = _meter.create_histogram(
    "idempotent_tasks.run.duration", unit="s", description="From the claim of a key to the commit of its outcome."
)


def observe(event: events.Event) -> None:
    """Count the event, and write it into the current span: an event of its own, the last one also as an attribute."""
    name = type(event).__name__.lower()
    _events.add(1, {"celery.task": event.task, "idempotency.event": name})
    if isinstance(event, events.Committed):
        _runs.record(event.seconds, {"celery.task": event.task})
    span = trace.get_current_span()
    if span.is_recording():
        told = {f"idempotency.{each.name}": getattr(event, each.name) for each in fields(event)}
        span.add_event(f"idempotency.{name}", {each: value for each, value in told.items() if value is not None})
        span.set_attributes({"idempotency.key": event.key, "idempotency.event": name})
