"""The conditional writes of the protocol, in terms of roles: what changes, and on what condition."""

from collections.abc import Mapping
from typing import Final

from idempotent_tasks.records import Claim, ClaimRequest, Outcome, Status, expiration_seconds
from idempotent_tasks.reservation import is_reservation, reservation_owner
from idempotent_tasks.stores import MOST_NOTED
from idempotent_tasks.stores.dynamodb_layout import Update, Value

__all__ = ["claim_update", "commit_update", "deferral_update", "dispatch_update", "release_update", "renew_update"]

#: `idempotent_tasks.records.claimable` as a condition.
_CLAIMABLE: Final = (
    "attribute_not_exists(#key) OR #expiration < :now OR "
    "(#status = :inprogress AND (#in_progress_expiration < :now_ms OR #owner = :reserved){same_payload})"
)
_SAME_PAYLOAD: Final = " AND (attribute_not_exists(#validation) OR #validation = :validation)"
_HELD: Final = "#owner = :holder AND #status = :inprogress"


def claim_update(request: ClaimRequest, now: float, until: int) -> Update:
    """Return the write that takes a key until ``until`` (epoch milliseconds), if claimable ``now`` (epoch seconds)."""
    values: dict[str, Value] = {
        "status": Status.INPROGRESS,
        "expiration": expiration_seconds(request.retention_seconds, until, now),
        "in_progress_expiration": until,
        "owner": request.owner,
        "task": request.task,
        "task_id": request.task_id,
        "worker": request.worker,
        "claimed_at": int(now * 1000),
    }
    optional: dict[str, Value | None] = {
        "validation": request.validation,
        "process": request.process,
        "stands_in_until": request.stands_in_until,
    }
    return Update(
        values=values | _present(optional),
        remove=("data", "codec", "completed_at", "error", "continuation", "dispatched", *_absent(optional)),
        actions=(
            "#fence = if_not_exists(#fence, :first_fence) + :one",
            "#attempt = if_not_exists(#attempt, :zero) + :tries",
            # The notes of deferrals go into this map, which an update can only do where there is one.
            "#deferred = if_not_exists(#deferred, :nobody)",
        ),
        condition=_CLAIMABLE.format(same_payload="" if request.validation is None else _SAME_PAYLOAD),
        operands={
            "inprogress": Status.INPROGRESS,
            "now": int(now),
            "now_ms": int(now * 1000),
            "first_fence": int(now * 1000) - 1,
            "zero": 0,
            "one": 1,
            "tries": 0 if is_reservation(request) else 1,
            "reserved": reservation_owner(request.task_id),
            "nobody": {},
        },
    )


def commit_update(claim: Claim, outcome: Outcome, now: float, retention_seconds: float) -> Update:
    """Return the write that stores an outcome, if the claim is held."""
    values: dict[str, Value] = {
        "status": outcome.status,
        "expiration": expiration_seconds(retention_seconds, claim.in_progress_expiration, now),
        "completed_at": int(now * 1000),
        "attempt": 0,
        "codec": outcome.codec,
    }
    optional = {"data": outcome.data, "error": outcome.error}
    # The claim has removed what an outcome before it left.
    followed = _present({"continuation": outcome.continuation})
    return Update(
        values=values | _present(optional) | followed,
        remove=("deferred", *_absent(optional)),
        condition=_HELD,
        operands=_held_operands(claim),
    )


def release_update(claim: Claim, reason: str, *, crashed: bool) -> Update:
    """Return the write that frees a key, and counts its attempts from 0 unless it crashed, if the claim is held."""
    clean = {} if crashed else {"attempt": 0}
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


def deferral_update(delivery: str, deferrals: int) -> Update:
    """Return the write that notes the highest deferral of a delivery, while the key is in progress."""
    noted = "#deferred.#delivery"
    return Update(
        actions=(f"{noted} = :deferrals",),
        condition=(
            f"#status = :inprogress AND attribute_exists(#deferred) AND ({noted} < :deferrals OR "
            f"(attribute_not_exists({noted}) AND size(#deferred) < :most))"
        ),
        operands={"deferrals": deferrals, "inprogress": Status.INPROGRESS, "most": MOST_NOTED},
        entries={"delivery": delivery},
    )


def dispatch_update(task_id: str) -> Update:
    """Return the write that notes that a task's continuation was sent, where the key has an outcome."""
    return Update(
        add={"dispatched": frozenset([task_id])},
        condition=(
            "attribute_exists(#key) AND #status <> :inprogress AND "
            "(attribute_not_exists(#dispatched) OR size(#dispatched) < :most)"
        ),
        operands={"inprogress": Status.INPROGRESS, "most": MOST_NOTED},
    )


def _held_operands(claim: Claim) -> dict[str, Value]:
    return {"holder": claim.owner, "inprogress": Status.INPROGRESS}


def _present(optional: Mapping[str, Value | None]) -> dict[str, Value]:
    return {role: value for role, value in optional.items() if value is not None}


def _absent(optional: Mapping[str, Value | None]) -> list[str]:
    return [role for role, value in optional.items() if value is None]
