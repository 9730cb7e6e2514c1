"""The store protocol's conditional updates: what each call changes, and on what condition."""

from collections.abc import Mapping, Sequence
from typing import Final

from idempotent_tasks.core.records import (
    Claim,
    ClaimRequest,
    Outcome,
    Status,
    expiration_seconds,
    is_reservation,
    reservation_owner,
)
from idempotent_tasks.core.store import MOST_FORGOTTEN, MOST_NOTED
from idempotent_tasks.stores.dynamodb.item import Update, Value

__all__ = [
    "claim_update",
    "commit_update",
    "deferral_update",
    "dispatch_update",
    "prolong_update",
    "release_update",
    "renew_update",
]

#: `idempotent_tasks.core.records.claimable` as a condition expression.
_CLAIMABLE: Final = (
    "attribute_not_exists(#key) OR #expiration < :now OR "
    "(#status = :inprogress AND (#in_progress_expiration < :now_ms OR #owner = :reserved){same_payload})"
)
_SAME_PAYLOAD: Final = " AND (attribute_not_exists(#validation) OR #validation = :validation{other_expression})"
#: The digest in the record is of something else.
_OTHER_EXPRESSION: Final = " OR (attribute_exists(#validated_by) AND #validated_by <> :validated_by)"
_HELD: Final = "#owner = :holder AND #status = :inprogress"


def claim_update(request: ClaimRequest, now: float, until: int, *, after: int = 0) -> Update:
    """Return the update that claims a key if it is claimable.

    Args:
        request: the claim that is asked for.
        now: epoch seconds.
        until: the end of the lease, in epoch milliseconds.
        after: the time of a release that the claimer has seen, in epoch milliseconds; it never blocks the claim.
    """
    values: dict[str, Value] = {
        "status": Status.INPROGRESS,
        "expiration": expiration_seconds(request.retention_seconds, until, now),
        "in_progress_expiration": until,
        "owner": request.owner,
        "task": request.task,
        "task_id": request.task_id,
        "worker": request.worker,
        "claimed_at": int(now * 1000),
        # The notes of deferrals go into this map: an update can set an entry only in a map that exists.
        "deferred": {},
    }
    optional: dict[str, Value | None] = {
        "validation": request.validation,
        "validated_by": request.validated_by,
        "process": request.process,
        "stands_in_until": request.stands_in_until,
    }
    return Update(
        values=values | _present(optional),
        remove=("data", "codec", "completed_at", "error", "continuation", "dispatched", *_absent(optional)),
        actions=(
            "#fence = if_not_exists(#fence, :first_fence) + :one",
            "#attempt = if_not_exists(#attempt, :zero) + :tries",
        ),
        condition=_CLAIMABLE.format(same_payload=_same_payload(request)),
        operands={
            "inprogress": Status.INPROGRESS,
            "now": int(now),
            "now_ms": max(int(now * 1000), after + 1),
            "first_fence": int(now * 1000) - 1,
            "zero": 0,
            "one": 1,
            "tries": 0 if is_reservation(request) else 1,
            "reserved": reservation_owner(request.task_id),
        },
    )


def _same_payload(request: ClaimRequest) -> str:
    if request.validation is None:
        return ""
    return _SAME_PAYLOAD.format(other_expression="" if request.validated_by is None else _OTHER_EXPRESSION)


def commit_update(claim: Claim, outcome: Outcome, now: float, retention_seconds: float) -> Update:
    """Return the update that stores an outcome if the claim is held."""
    values: dict[str, Value] = {
        "status": outcome.status,
        "expiration": expiration_seconds(retention_seconds, claim.in_progress_expiration, now),
        "completed_at": int(now * 1000),
        "attempt": 0,
        "codec": outcome.codec,
    }
    optional = {"data": outcome.data, "error": outcome.error}
    # The claim has removed the continuation of an earlier outcome.
    followed = _present({"continuation": outcome.continuation})
    return Update(
        values=values | _present(optional) | followed,
        remove=("deferred", *_absent(optional)),
        condition=_HELD,
        operands=_held_operands(claim),
    )


def prolong_update(claim: Claim, expiration: int) -> Update:
    """Return the update that prolongs the retention of the claim's outcome to ``expiration`` (epoch seconds)."""
    return Update(
        values={"expiration": expiration},
        condition="#owner = :holder AND #status <> :inprogress AND #expiration < :expiration",
        operands=_held_operands(claim),
    )


def release_update(claim: Claim, reason: str, at: int, *, crashed: bool, began: bool) -> Update:
    """Return the update that frees a key ``at`` a time (epoch milliseconds), if the claim is held.

    If the body never ``began``, this attempt is subtracted; else, if the process ``crashed``, all are kept, this one
    included; else they are reset to 0.
    """
    values: dict[str, Value] = {"in_progress_expiration": at, "error": reason}
    operands = _held_operands(claim)
    actions: tuple[str, ...] = ()
    if began and not crashed:
        values["attempt"] = 0
    elif not began and not is_reservation(claim.request):
        # Never below 0: a claim that is no reservation has counted itself.
        actions = ("#attempt = #attempt - :one",)
        operands["one"] = 1
    return Update(values=values, remove=("owner", "deferred"), actions=actions, condition=_HELD, operands=operands)


def renew_update(claim: Claim, until: int, expiration: int) -> Update:
    """Return the update that lets a held claim expire at ``until`` (epoch milliseconds).

    It shortens the lease only if that still ends when ``claim`` says, so that a delayed renewal does not shorten a
    lease that a newer one has prolonged.
    """
    later = "#in_progress_expiration < :in_progress_expiration OR #in_progress_expiration = :known"
    return Update(
        values={"in_progress_expiration": until, "expiration": expiration},
        condition=f"{_HELD} AND #in_progress_expiration > :released AND ({later})",
        operands={**_held_operands(claim), "released": 0, "known": claim.in_progress_expiration},
    )


def deferral_update(owner: str, token: str, due: int, past: Sequence[str], now: float) -> Update:
    """Return the update that notes a message copy's deferral, by its ``token``, while the owner's claim lives.

    ``due`` is when the next copy is delivered, in epoch milliseconds, ``now`` epoch seconds.  The notes of the tokens
    in ``past`` are removed, up to `MOST_FORGOTTEN`.
    """
    forgotten = {f"past_{place}": each for place, each in enumerate(past[:MOST_FORGOTTEN]) if each != token}
    return Update(
        actions=("#deferred.#token = :due",),
        remove=tuple(f"deferred.#{place}" for place in forgotten),
        condition=(
            f"{_HELD} AND #in_progress_expiration > :now_ms AND attribute_exists(#deferred) AND "
            "(attribute_exists(#deferred.#token) OR size(#deferred) < :most)"
        ),
        operands={
            "holder": owner,
            "inprogress": Status.INPROGRESS,
            "now_ms": int(now * 1000),
            "due": due,
            "most": MOST_NOTED + len(forgotten),
        },
        entries={"token": token, **forgotten},
    )


def dispatch_update(task_id: str) -> Update:
    """Return the update that notes that a task's continuation was sent, if the key has an outcome."""
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
