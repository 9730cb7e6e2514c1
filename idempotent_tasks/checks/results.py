"""Checks of stored results: formats that run code, and a bucket that keeps too much or too little."""

from collections.abc import Iterator

from idempotent_tasks.checks.context import Surroundings
from idempotent_tasks.checks.findings import Finding
from idempotent_tasks.checks.s3 import probe_bucket
from idempotent_tasks.codec import PICKLE
from idempotent_tasks.policy import seconds
from idempotent_tasks.stores.s3 import S3Results

__all__ = ["check_bucket", "check_pickle"]


def check_pickle(found: Surroundings) -> Iterator[Finding]:
    """Find tasks whose results run code when they are read."""
    for task in found.tasks:
        if task.idempotency_policy.given.get("codec") == PICKLE:
            yield Finding(
                code="pickled-results",
                what=f"task {task.name!r} has codec='pickle'",
                remedy=f"drop codec='pickle' from {task.name!r}, and register_type() what JSON does not know",
            )
    following = [task for task in found.tasks if "codec" not in task.idempotency_policy.given]
    if any(found.policy(task).codec == PICKLE for task in following):
        yield Finding(
            code="pickled-results",
            what="results are stored as pickle, as app.conf.idempotency_codec says, or else the app's own serializers",
            remedy='app.conf.idempotency_codec = "json", and register_type() what JSON does not know',
        )


def check_bucket(found: Surroundings) -> Iterator[Finding]:
    """Find what keeps large results from their bucket, or the bucket from forgetting them; asks S3."""
    results = found.settings.results
    if isinstance(results, S3Results) and results.verifiable:
        longest = max((seconds(found.policy(task).expires) for task in found.tasks), default=0.0)
        yield from probe_bucket(results, longest)
