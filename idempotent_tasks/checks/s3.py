"""Checks of the S3 bucket for large results: its permissions and its lifecycle rule."""

from collections.abc import Iterator
from typing import Any, Final

from idempotent_tasks.checks.context import CheckContext
from idempotent_tasks.checks.findings import Finding
from idempotent_tasks.errors import StoreError
from idempotent_tasks.stores.aws_errors import error_code
from idempotent_tasks.stores.s3 import S3Results, days_of

__all__ = ["BUCKET_FINDINGS", "check_bucket"]

#: The codes of this module's findings.
BUCKET_FINDINGS: Final = ("results-bucket-expires-first", "results-bucket-keeps", "results-bucket-refuses")
_NO_RULES: Final = "NoSuchLifecycleConfiguration"


def check_bucket(context: CheckContext) -> Iterator[Finding]:
    """Find what is wrong with the results bucket and its lifecycle rule; never raises an error of S3.

    Sends a ``HeadBucket`` and a ``GetBucketLifecycleConfiguration``; without permission for the second, the rules are
    not checked.
    """
    results = context.settings.results
    # A ready-made client must not be used before a worker forks.
    if not isinstance(results, S3Results) or not results.verifiable:
        return
    try:
        results.ask("head_bucket", "HeadBucket")
    except StoreError as error:
        yield Finding(
            code="results-bucket-refuses",
            what=f"HeadBucket on {results!r} fails: {error}",
            remedy="create the bucket, allow s3:ListBucket, s3:GetObject and s3:PutObject on it to the worker's role "
            "(celery -A <app> idempotency template --format iam), or fix idempotency_results_bucket",
        )
        return
    try:
        rules = results.ask("get_bucket_lifecycle_configuration", "GetBucketLifecycleConfiguration")["Rules"]
    except StoreError as error:
        if error_code(error) != _NO_RULES:
            return
        rules = []
    longest = max((context.policy(task).retention_seconds for task in context.tasks), default=0.0)
    yield from _check_rules(results, rules, days_of(longest))


def _check_rules(results: S3Results, rules: list[dict[str, Any]], days: int) -> Iterator[Finding]:
    found = [found for rule in rules if (found := _days(rule, results.prefix)) is not None]
    remedy = f"a lifecycle rule that expires objects under {results.prefix!r} after {days} days or more"
    if not found:
        what = f"no lifecycle rule of bucket {results.bucket!r} expires the objects under {results.prefix!r}"
        yield Finding(code="results-bucket-keeps", what=what, remedy=remedy)
    elif min(found) < days:
        what = (
            f"a lifecycle rule of bucket {results.bucket!r} expires objects after {min(found)} days, "
            f"a record may be kept for {days - 1}"
        )
        yield Finding(code="results-bucket-expires-first", what=what, remedy=remedy)


def _days(rule: dict[str, Any], prefix: str) -> int | None:
    """Return after how many days a rule deletes all objects under a prefix; None if it does not delete them all."""
    chosen = rule.get("Filter", {"Prefix": rule.get("Prefix", "")})
    if (
        rule.get("Status") != "Enabled"
        or not set(chosen) <= {"Prefix"}
        or not prefix.startswith(chosen.get("Prefix", ""))
    ):
        return None
    days: int | None = rule.get("Expiration", {}).get("Days")
    return days
