"""The four conditional writes of the protocol, in terms of roles: what changes, and on what condition."""

from typing import Final

from idempotent_tasks.records import Claim, ClaimRequest, Outcome, Status, expiration_seconds
from idempotent_tasks.stores.dynamodb_layout import Update

__all__ = ["claim_update", "commit_update", "release_update", "renew_update"]

#: `idempotent_tasks.records.claimable` as a condition.
_CLAIMABLE: Final = (
    "attribute_not_exists(#key) OR #expiration < :now OR "
    "(#status = :inprogress AND #in_progress_expiration < :now_ms{same_payload})"
)
_SAME_PAYLOAD: Final = " AND (attribute_not_exists(#validation) OR #validation = :validation)"
_HELD: Final = "#owner = :holder AND #status = :inprogress"


def claim_update(request: ClaimRequest, now: float, until: int) -> Update:
    """Return the write that takes a key until ``until`` (epoch milliseconds), if claimable ``now`` (epoch seconds)."""
    values: dict[str, str | int | bytes] = {
        "status": Status.INPROGRESS,
        "expiration": expiration_seconds(request.retention_seconds, until, now),
        "in_progress_expiration": until,
        "owner": request.owner,
        "task": request.task,
        "task_id": request.task_id,
        "worker": request.worker,
        "claimed_at": int(now * 1000),
    }
    remove = ["data", "codec", "completed_at", "error"]
    if request.validation is None:
        remove.append("validation")
    else:
        values["validation"] = request.validation
    return Update(
        values=values,
        remove=tuple(remove),
        actions=(
            "#fence = if_not_exists(#fence, :first_fence) + :one",
            "#attempt = if_not_exists(#attempt, :zero) + :one",
        ),
        condition=_CLAIMABLE.format(same_payload="" if request.validation is None else _SAME_PAYLOAD),
        operands={
            "inprogress": Status.INPROGRESS,
            "now": int(now),
            "now_ms": int(now * 1000),
            "first_fence": int(now * 1000) - 1,
            "zero": 0,
            "one": 1,
        },
    )


def commit_update(claim: Claim, outcome: Outcome, now: float, retention_seconds: float) -> Update:
    """Return the write that stores an outcome, if the claim is held."""
    values: dict[str, str | int | bytes] = {
        "status": outcome.status,
        "expiration": expiration_seconds(retention_seconds, claim.in_progress_expiration, now),
        "completed_at": int(now * 1000),
        "attempt": 0,
        "codec": outcome.codec,
    }
    optional = {"data": outcome.data, "error": outcome.error}
    return Update(
        values=values | {role: value for role, value in optional.items() if value is not None},
        remove=tuple(role for role, value in optional.items() if value is None),
        condition=_HELD,
        operands=_held_operands(claim),
    )


def release_update(claim: Claim, reason: str, *, crashed: bool) -> Update:
    """Return the write that frees a key, and counts its attempts from 0 unless it crashed, if the claim is held."""
    clean: dict[str, str | int | bytes] = {} if crashed else {"attempt": 0}
    return Update(
        values={"in_progress_expiration": 0, "error": reason, **clean},
        condition=_HELD,
        operands=_held_operands(claim),
    )


def renew_update(claim: Claim, until: int, expiration: int) -> Update:
    """Return the write that lets a claim expire at ``until`` (epoch milliseconds) instead, if it is held."""
    return Update(
        values={"in_progress_expiration": until, "expiration": expiration},
        condition=f"{_HELD} AND #in_progress_expiration > :released",
        operands={**_held_operands(claim), "released": 0},
    )


def _held_operands(claim: Claim) -> dict[str, str | int]:
    return {"holder": claim.owner, "inprogress": Status.INPROGRESS}
