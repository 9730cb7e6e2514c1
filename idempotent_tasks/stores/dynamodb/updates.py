"""The store protocol's conditional updates: what each call changes, and on what condition."""

from collections.abc import Mapping, Sequence
from typing import Final

from idempotent_tasks.core.records import (
    MAX_PARKED_BYTES,
    PARKED_UNTIL,
    Claim,
    ClaimRequest,
    Outcome,
    Record,
    Status,
    Step,
    expiration_seconds,
    message_bytes,
    parked_owner,
    reservation_owner,
    settling_milliseconds,
    step_id,
)
from idempotent_tasks.core.store import MOST_FORGOTTEN, MOST_NOTED
from idempotent_tasks.stores.dynamodb.item import ROLES, Update, Value, steps_of, values_of, values_of_step

__all__ = [
    "claim_update",
    "commit_update",
    "deferral_update",
    "dispatch_update",
    "message_removal",
    "message_update",
    "park_update",
    "prolong_update",
    "release_update",
    "renew_update",
    "replace_update",
    "resolve_update",
    "step_mark_update",
    "step_update",
    "unchanged",
]

#: `idempotent_tasks.core.records.claimable` as a condition expression, for what one and the same update turns into
#: `idempotent_tasks.core.records.granted_record`: a missing item, an outcome that has expired, and a live item whose
#: last claim has counted runs.  An outcome has ended the counts and steps, unless who does not know them wrote it.
_CLAIMABLE: Final = (
    "attribute_not_exists(#key) OR "
    "(#expiration < :now AND #status <> :inprogress AND attribute_not_exists(#runs) AND "
    "attribute_not_exists(#steps) AND attribute_not_exists(#steps_elsewhere) AND "
    "(attribute_not_exists(#attempt) OR #attempt = :zero)) OR "
    "(#status = :inprogress AND (#in_progress_expiration < :now_ms OR "
    # An older request is of an earlier run of the reservation's task, which has made it for its retry.
    "(#owner = :reserved AND #claimed_at <= :claimed_at)){same_payload} AND "
    "(#owner <> :owner OR #owner = :reserved) AND #expiration >= :now AND "
    # A stand-in takes two missing attributes for equal.
    "attribute_exists(#counted_fence) AND #counted_fence = #fence)"
)
#: The fence of a claim; of a key's first it is the time.
_NEXT_FENCE: Final = "if_not_exists(#fence, :first_fence) + :one"
#: What a claim computes from the item.  An outcome has ended the count of runs, and its generation.
_SUCCEED: Final = (
    f"#fence = {_NEXT_FENCE}",
    f"#counted_fence = {_NEXT_FENCE}",
    "#attempt = if_not_exists(#attempt, :zero) + :tries",
    "#runs = if_not_exists(#runs, :zero) + :tries",
    "#generation = if_not_exists(#unresolved_since, :claimed_at)",
    "#unresolved_since = if_not_exists(#unresolved_since, :claimed_at)",
    "#previous_owner = if_not_exists(#owner, :nobody)",
    "#previous_task_id = if_not_exists(#task_id, :nobody)",
    "#previous_claimed_at = if_not_exists(#claimed_at, :zero)",
)
#: The messages of a parked key, which stay until they are published again.
_KEPT: Final = ("parked", "parked_bytes")
#: The reason that a person's decision for another run stores in the record.
RESOLVED: Final = "resolved by an operator"
#: What an item has only until its key has an outcome.
_UNRESOLVED: Final = (
    "runs",
    "unresolved_since",
    "counted_fence",
    "previous_owner",
    "previous_task_id",
    "previous_claimed_at",
    "steps",
    "steps_elsewhere",
)
_SAME_PAYLOAD: Final = " AND (attribute_not_exists(#validation) OR #validation = :validation{other_expression})"
#: The digest in the record is of something else.
_OTHER_EXPRESSION: Final = " OR (attribute_exists(#validated_by) AND #validated_by <> :validated_by)"
_HELD: Final = "#owner = :holder AND #status = :inprogress"


def claim_update(request: ClaimRequest, now: float, until: int) -> Update:
    """Return the update that claims a key if it is claimable, whatever its item is, but for rare ones.

    An item that it refuses although the key is claimable is one for `replace_update`.

    Args:
        request: the claim that is asked for.
        now: epoch seconds.
        until: the end of the lease, in epoch milliseconds.
    """
    values, optional = _requested(request, now, until)
    return Update(
        values=values | _present(optional),
        remove=(
            "data",
            "codec",
            "completed_at",
            "error",
            "continuation",
            "dispatched",
            "settled_at",
            *_absent(optional),
        ),
        actions=_SUCCEED,
        condition=_CLAIMABLE.format(same_payload=_same_payload(request)),
        operands={
            "inprogress": Status.INPROGRESS,
            "now": int(now),
            "now_ms": int(now * 1000),
            "first_fence": int(now * 1000) - 1,
            "zero": 0,
            "one": 1,
            "tries": int(request.is_for_run),
            "nobody": "",
            "reserved": reservation_owner(request.task_id),
        },
    )


def _requested(request: ClaimRequest, now: float, until: int) -> tuple[dict[str, Value], dict[str, Value | None]]:
    """Return what a claim writes by role, and what it writes or removes."""
    values: dict[str, Value] = {
        "status": Status.INPROGRESS,
        "expiration": expiration_seconds(request.kept_seconds, until, now),
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
    return values, optional


def replace_update(seen: Record, record: Record) -> Update:
    """Return the update that replaces a key's record, if the item still is as it was seen."""
    values: dict[str, Value] = {**values_of(record), **steps_of(record), "deferred": {}}
    condition, operands = unchanged(seen, ("status", "owner", "fence", "expiration", "in_progress_expiration"))
    absent = tuple(role for role in ROLES if role not in (*values, *_KEPT))
    return Update(values=values, remove=absent, condition=condition, operands=operands)


def unchanged(seen: Record, roles: Sequence[str]) -> tuple[str, dict[str, Value]]:
    """Return the condition that an item still has what a record shows, by role, and its operands."""
    shown = {role: value for role, value in values_of(seen).items() if role in roles}
    clauses = [f"#{role} = :seen_{role}" if role in shown else f"attribute_not_exists(#{role})" for role in roles]
    return " AND ".join(clauses), {f"seen_{role}": value for role, value in shown.items()}


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
    optional: dict[str, Value | None] = {"data": outcome.data, "error": outcome.error, **dict.fromkeys(_UNRESOLVED)}
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


def release_update(
    claim: Claim, reason: str, at: int, *, crashed: bool, began: bool, nothing_done: bool = False
) -> Update:
    """Return the update that frees a key ``at`` a time (epoch milliseconds), if the claim is held.

    It is not granted before what a run that began has requested elsewhere has settled.

    If the body never ``began``, this attempt is subtracted; else, if the process ``crashed``, all are kept, this one
    included; else they are reset to 0.  If the body never ``began``, or has ``nothing_done``, the run is subtracted.
    """
    settles = settling_milliseconds(claim, began=began, nothing_done=nothing_done)
    values: dict[str, Value] = {"in_progress_expiration": at + settles, "error": reason}
    if settles:
        values["settled_at"] = at + settles
    operands = _held_operands(claim)
    actions: tuple[str, ...] = ()
    if began and not crashed:
        values["attempt"] = 0
    elif not began and claim.request.is_for_run:
        # Never below 0: a claim for a run has counted itself.
        actions += ("#attempt = #attempt - :one",)
    if (nothing_done or not began) and claim.request.is_for_run:
        # An older version's claim, which this version releases for it, may have counted no runs.
        actions += ("#runs = if_not_exists(#runs, :one) - :one",)
    if actions:
        operands["one"] = 1
    return Update(values=values, remove=("owner", "deferred"), actions=actions, condition=_HELD, operands=operands)


def park_update(claim: Claim, reason: str, now: float) -> Update:
    """Return the update that parks the key of a held claim, whose run has not begun, at ``now`` (epoch seconds)."""
    counts: tuple[str, ...] = ()
    if claim.request.is_for_run:
        counts = ("#attempt = #attempt - :one", "#runs = if_not_exists(#runs, :one) - :one")
    return Update(
        values={
            "owner": parked_owner(claim),
            "expiration": PARKED_UNTIL,
            "in_progress_expiration": PARKED_UNTIL * 1000,
            "parked_at": int(now * 1000),
            "error": reason,
        },
        remove=("deferred",),
        actions=(
            # Messages of an earlier decision that are to be published again yet stay.
            "#parked = if_not_exists(#parked, :nothing)",
            "#parked_bytes = if_not_exists(#parked_bytes, :zero)",
            *counts,
        ),
        condition=_HELD,
        operands={**_held_operands(claim), "nothing": {}, "zero": 0, **({"one": 1} if counts else {})},
    )


def message_update(task_id: str, message: bytes) -> Update:
    """Return the update that adds a task's message to the record of a parked key: `kept_message` as a condition."""
    size = message_bytes(task_id, message)
    return Update(
        actions=("#parked.#message = :message", "#parked_bytes = #parked_bytes + :size"),
        condition="attribute_exists(#parked_at) AND attribute_not_exists(#parked.#message) AND #parked_bytes <= :room",
        operands={"message": message, "size": size, "room": MAX_PARKED_BYTES - size},
        entries={"message": task_id},
    )


def message_removal(task_id: str, message: bytes, resolved_fence: int | None) -> Update:
    """Return the update that removes a task's message that was published again.

    Not once the key was parked again, nor after the next decision: a delivery of that copy relies on the message, which
    is to be published once more.

    Args:
        task_id: of the message's task.
        message: the message, encoded.
        resolved_fence: of the record when the message was read from it.
    """
    is_latest = "attribute_not_exists(#resolved_fence)"
    operands: dict[str, Value] = {"message": message, "size": message_bytes(task_id, message)}
    if resolved_fence is not None:
        is_latest = "#resolved_fence = :resolved_fence"
        operands["resolved_fence"] = resolved_fence
    return Update(
        actions=("#parked_bytes = #parked_bytes - :size",),
        remove=("parked.#message",),
        condition=f"attribute_not_exists(#parked_at) AND {is_latest} AND #parked.#message = :message",
        operands=operands,
        entries={"message": task_id},
    )


def step_update(claim: Claim, name: str, step: Step, *, is_first: bool) -> Update:
    """Return the update that keeps a step in the record of a held claim, if it has others, or has none."""
    entry: Value = values_of_step(step)
    if is_first:
        condition, values = f"{_HELD} AND attribute_not_exists(#steps)", {"steps": {name: entry}}
        return Update(values=values, condition=condition, operands=_held_operands(claim))
    # A record whose steps were removed by hand is answered as it is, instead of by DynamoDB's error about the path.
    # What a try has kept whose answer was lost stays: a result in the bucket has another address in each try.
    return Update(
        actions=("#steps.#step_name = :step",),
        condition=f"{_HELD} AND attribute_exists(#steps) AND attribute_not_exists(#steps.#step_name)",
        operands={**_held_operands(claim), "step": entry},
        entries={"step_name": name},
    )


def step_mark_update(claim: Claim, name: str) -> Update:
    """Return the update that notes in the record of a held claim that a step has an item of its own."""
    return Update(add={"steps_elsewhere": frozenset([step_id(name)])}, condition=_HELD, operands=_held_operands(claim))


def resolve_update(shown: Record, outcome: Outcome | None, now: float, kept_seconds: float) -> Update:
    """Return the update that gives a parked key an outcome, or frees it for a first run, if its record is as shown.

    Args:
        shown: the parked record as it was shown.
        outcome: the outcome; None to free the key.
        now: epoch seconds.
        kept_seconds: for how long the record is kept from now.
    """
    condition, operands = unchanged(shown, ("status", "owner", "fence", "in_progress_expiration"))
    at = int(now * 1000)
    values: dict[str, Value] = {
        "expiration": expiration_seconds(kept_seconds, at, now),
        "in_progress_expiration": at,
        "attempt": 0,
        "resolved_fence": shown.fence,
    }
    if outcome is None:
        values |= {"runs": 0, "error": RESOLVED}
        return Update(values=values, remove=("owner", "parked_at"), condition=condition, operands=operands)
    optional = {"data": outcome.data, "error": outcome.error}
    values |= {"status": outcome.status, "completed_at": at, "codec": outcome.codec, **_present(optional)}
    remove = ("parked_at", *_UNRESOLVED, *_absent(optional))
    return Update(values=values, remove=remove, condition=condition, operands=operands)


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
