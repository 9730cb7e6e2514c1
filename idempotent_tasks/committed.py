"""The record that a commit leaves behind, for who cannot read it back from the store."""

from idempotent_tasks.records import Claim, Outcome, Record, expiration_seconds

__all__ = ["committed_record"]


def committed_record(claim: Claim, outcome: Outcome, retention_seconds: float, now: float) -> Record:
    """Return the record of an outcome under its claim.

    Args:
        claim: the claim that its owner held, or still believes in.
        outcome: its outcome.
        retention_seconds: how long the record is kept from now.
        now: epoch seconds by the store's clock.
    """
    request = claim.request
    return Record(
        key=claim.key,
        status=outcome.status,
        expiration=expiration_seconds(retention_seconds, claim.in_progress_expiration, now),
        in_progress_expiration=claim.in_progress_expiration,
        data=outcome.data,
        validation=request.validation,
        owner=claim.owner,
        fence=claim.fence,
        task=request.task,
        task_id=request.task_id,
        worker=request.worker,
        completed_at=int(now * 1000),
        codec=outcome.codec,
        error=outcome.error,
        continuation=outcome.continuation,
    )
