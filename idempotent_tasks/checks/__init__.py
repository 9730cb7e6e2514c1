"""Checks of configuration, broker and store, which a starting worker and ``celery -A proj idempotency check`` run."""

import logging
from collections.abc import Callable, Iterator
from typing import Final

from idempotent_tasks.checks import broker, tasks
from idempotent_tasks.checks.context import (
    CheckContext,
    check_downstream,
    check_pickle,
    check_prefixes,
    check_settings,
)
from idempotent_tasks.checks.dynamodb import check_table, check_versions
from idempotent_tasks.checks.findings import WHY, Finding, place_of
from idempotent_tasks.checks.receipts import check_receipts
from idempotent_tasks.checks.s3 import check_bucket
from idempotent_tasks.errors import ConfigurationError

__all__ = ["CHECKS", "WHY", "CheckContext", "Finding", "run_checks"]

logger = logging.getLogger("idempotent_tasks")

CHECKS: Final[tuple[Callable[[CheckContext], Iterator[Finding]], ...]] = (
    broker.check_celery,
    tasks.check_unguarded,
    tasks.check_misplaced,
    tasks.check_skipping,
    tasks.check_keys,
    tasks.check_parked_retries,
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
    check_receipts,
    check_settings,
    check_prefixes,
    check_downstream,
    check_table,
    check_versions,
)


def run_checks(context: CheckContext) -> list[Finding]:
    """Return the findings of all checks, except those that ``idempotency_silenced_checks`` names.

    Checks themselves leave out the tasks that silence a finding.  A check that raises is a finding itself.

    Raises:
        ConfigurationError: an option of a task is wrong under the app's settings.
    """
    silenced = context.settings.silenced_checks
    return [finding for check in CHECKS for finding in _findings(check, context) if finding.code not in silenced]


def _findings(check: Callable[[CheckContext], Iterator[Finding]], context: CheckContext) -> Iterator[Finding]:
    try:
        yield from check(context)
    except ConfigurationError:
        raise
    except Exception as error:
        logger.debug("%s raised", check.__name__, exc_info=True)
        # The error's own text may quote a URL with a password.
        what = f"{check.__name__} raised {type(error).__name__} {place_of(error)}"
        remedy = "fix the setting that it reads there; the log of level DEBUG has the whole error"
        yield Finding(code="check-failed", what=what, remedy=remedy)
