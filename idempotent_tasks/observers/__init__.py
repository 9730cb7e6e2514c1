"""Observers for Celery events, Prometheus and OpenTelemetry.

Each module has a function ``observe(event)``, and is only imported if ``idempotency_observers`` names it.
"""

from typing import Final

__all__ = ["SHORT_NAMES"]

#: Short names that ``idempotency_observers`` accepts for ``module:name``.
SHORT_NAMES: Final = {
    "log": "idempotent_tasks.events:log_event",
    "celery": "idempotent_tasks.observers.celery_events:observe",
    "opentelemetry": "idempotent_tasks.observers.opentelemetry_api:observe",
    "prometheus": "idempotent_tasks.observers.prometheus_metrics:observe",
}
