"""Checks of configuration, broker and store, which a starting worker and ``celery -A proj idempotency check`` run."""

from collections.abc import Callable, Iterator
from typing import Final

from idempotent_tasks.checks import broker, tasks
from idempotent_tasks.checks.context import CheckContext, check_pickle, check_prefixes, check_settings
from idempotent_tasks.checks.dynamodb import check_table
from idempotent_tasks.checks.findings import WHY, Finding
from idempotent_tasks.checks.s3 import check_bucket

__all__ = ["CHECKS", "WHY", "CheckContext", "Finding", "run_checks"]

CHECKS: Final[tuple[Callable[[CheckContext], Iterator[Finding]], ...]] = (
    broker.check_celery,
    tasks.check_unguarded,
    tasks.check_skipping,
    tasks.check_keys,
    tasks.check_missing_limits,
    broker.check_transport,
    broker.check_acknowledgements,
    broker.check_requests,
    broker.check_visibility,
    broker.check_visibility_excess,
    broker.check_prefetch,
    broker.check_pool_limits,
    broker.check_expiries,
    broker.check_delivery_limits,
    broker.check_subscribers,
    broker.check_queue_limits,
    check_pickle,
    check_bucket,
    check_settings,
    check_prefixes,
    check_table,
)


def run_checks(context: CheckContext) -> list[Finding]:
    """Return the findings of all checks, except those that ``idempotency_silenced_checks`` names.

    Checks themselves leave out the tasks that silence a finding.
    """
    silenced = context.settings.silenced_checks
    return [finding for check in CHECKS for finding in check(context) if finding.code not in silenced]
