"""What a worker, and ``celery -A proj idempotency check``, looks at before anything goes wrong."""

from collections.abc import Callable, Iterator
from typing import Final

from idempotent_tasks.checks import broker, configuration, queues, results
from idempotent_tasks.checks.context import Surroundings
from idempotent_tasks.checks.findings import WHY, Finding
from idempotent_tasks.checks.table import check_table

__all__ = ["CHECKS", "WHY", "Finding", "Surroundings", "run_checks"]

CHECKS: Final[tuple[Callable[[Surroundings], Iterator[Finding]], ...]] = (
    broker.check_celery,
    broker.check_transport,
    broker.check_acknowledgements,
    broker.check_requests,
    broker.check_visibility,
    broker.check_prefetch,
    broker.check_pool_limits,
    broker.check_expiries,
    broker.check_delivery_limits,
    queues.check_subscribers,
    queues.check_queue_limits,
    results.check_pickle,
    results.check_bucket,
    configuration.check_settings,
    configuration.check_prefixes,
    check_table,
)


def run_checks(surroundings: Surroundings) -> list[Finding]:
    """Return everything found, but for what ``idempotency_silenced_checks`` names."""
    silenced = surroundings.settings.silenced_checks
    return [each for check in CHECKS for each in check(surroundings) if each.code not in silenced]
