"""Observers for what people run anyway: a log, Celery's events, Prometheus, OpenTelemetry.

Each is a module with a function ``observe(event)``, imported only by who names it in ``idempotency_observers``.
"""

from typing import Final

__all__ = ["SHORT_NAMES"]

#: What ``idempotency_observers`` may say instead of ``module:name``.
SHORT_NAMES: Final = {
    "log": "idempotent_tasks.events:log_event",
    "celery": "idempotent_tasks.observers.celery_events:observe",
    "opentelemetry": "idempotent_tasks.observers.opentelemetry_api:observe",
    "prometheus": "idempotent_tasks.observers.prometheus_metrics:observe",
}
