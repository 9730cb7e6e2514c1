"""What a worker, and ``celery -A proj idempotency check``, looks at before anything goes wrong."""

from collections.abc import Callable, Iterator
from typing import Final

from idempotent_tasks.checks import configuration, delivery, queues, results
from idempotent_tasks.checks.surroundings import Surroundings
from idempotent_tasks.checks.table import check_table
from idempotent_tasks.findings import WHY, Finding

__all__ = ["CHECKS", "WHY", "Finding", "Surroundings", "findings"]

CHECKS: Final[tuple[Callable[[Surroundings], Iterator[Finding]], ...]] = (
    delivery.check_celery,
    delivery.check_transport,
    delivery.check_acknowledgements,
    delivery.check_requests,
    delivery.check_visibility,
    delivery.check_prefetch,
    delivery.check_pool_limits,
    delivery.check_expiries,
    delivery.check_delivery_limits,
    queues.check_subscribers,
    queues.check_queue_limits,
    results.check_pickle,
    results.check_bucket,
    configuration.check_settings,
    configuration.check_prefixes,
    check_table,
)


def findings(surroundings: Surroundings) -> list[Finding]:
    """Return everything found, but for what ``idempotency_silenced_checks`` names."""
    silenced = surroundings.settings.silenced_checks
    return [each for check in CHECKS for each in check(surroundings) if each.code not in silenced]
