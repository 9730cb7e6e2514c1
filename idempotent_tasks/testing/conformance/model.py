"""A model of the store protocol: what a call may answer, and what it may leave of the key's record.

Written from the text of `idempotent_tasks.core.store.Store` and of the records, and from no store: it shares no rule
with one, so that a rule that is wrong for all of them differs from it.  Where the text leaves a store a choice, several
answers are permitted.

Each function takes the key's record (None if it has none), the time in epoch seconds, and the arguments of the call
that it is named after.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import ceil, floor

from idempotent_tasks.core.records import (
    MAX_PARKED_BYTES,
    PARKED_UNTIL,
    Busy,
    Claim,
    ClaimRequest,
    Committed,
    Finished,
    Granted,
    KeptSteps,
    Lost,
    MessageKept,
    Mismatch,
    NoRoom,
    NotParked,
    Outcome,
    Parked,
    Record,
    Released,
    Renewed,
    Status,
    Step,
    Superseded,
    Vanished,
)
from idempotent_tasks.core.store import CLOCK_TOLERANCE_SECONDS, MOST_FORGOTTEN, MOST_NOTED
from idempotent_tasks.errors import RecordExistsError, RecordNotFoundError

__all__ = [
    "Permitted",
    "claim",
    "commit",
    "get",
    "keep_message",
    "keep_step",
    "note_deferral",
    "note_dispatch",
    "park",
    "release",
    "renew",
    "restore",
]

#: By how many seconds a store may keep a record for longer than it has to, for whole seconds and a margin.
_LONGER_SECONDS = 3


@dataclass(frozen=True, slots=True)
class Permitted:
    """One permitted answer, and the record that the key has after it."""

    #: What is returned, or the type of what is raised.
    answer: object
    #: None if the key has no record.
    record: Record | None
    #: Whether the call wrote ``record.expiration``, which is then the earliest that is permitted.
    kept_anew: bool = False

    def fits(self, answer: object, found: Record | None) -> bool:
        """Return whether a store's answer, and the record found after it, are these."""
        wanted = self.record
        if wanted is not None and found is not None and self.kept_anew:
            longer = found.expiration - wanted.expiration
            if 0 <= longer <= _LONGER_SECONDS:
                wanted = replace(wanted, expiration=found.expiration)
        return answer == self.answer and found == wanted


def claim(record: Record | None, now: float, request: ClaimRequest) -> Sequence[Permitted]:
    """Return what a claim of a key may come to."""
    if record is None or record.expiration < floor(now):
        return [_granted(record, request, now)]
    differing = _other_payload(record, request)
    if differing is not None:
        return [Permitted(differing, record)]
    if record.status is not Status.INPROGRESS:
        return [Permitted(Finished(record), record)]
    if _may_be_taken(record, request, now):
        return [_granted(record, request, now)]
    if record.owner == request.owner:
        return _granted_again(record, request, now)
    return [Permitted(_unavailable(record), record)]


def _unavailable(record: Record) -> Busy | Parked:
    """Return why a key in progress is not granted: it is held, settles, or is parked."""
    if record.parked_at is not None:
        return Parked(record)
    ends = float(record.expiration)
    if record.in_progress_expiration is not None:
        ends = min(ends, record.in_progress_expiration / 1000)
    return Busy(ends, record)


def _other_payload(record: Record, request: ClaimRequest) -> Mismatch | None:
    """Return the mismatch of two payloads; None if they are equal, or not comparable."""
    stored, offered = record.validation, request.validation
    comparable = not record.validated_by or not request.validated_by or record.validated_by == request.validated_by
    return Mismatch(stored, offered) if stored and offered and stored != offered and comparable else None


def _may_be_taken(record: Record, request: ClaimRequest, now: float) -> bool:
    """Return whether a key in progress, which has not expired, is granted to a request with the same payload."""
    ends = record.in_progress_expiration
    if ends is None or record.parked_at is not None:
        return False
    is_free = ends == 0 or (record.owner is None and record.fence > 0)
    if is_free and record.settled_at is not None and floor(now * 1000) <= record.settled_at:
        # Not even to the task that it is reserved for.
        return False
    if is_free or record.owner == f"reserved for {request.task_id}":
        return True
    # Its own request, repeated, is no other claim, however late it comes.
    return record.owner != request.owner and ends < floor(now * 1000)


def _counts(request: ClaimRequest) -> int:
    """Return how many attempts, and runs, a grant of a request adds: neither a reservation nor a lock runs a body."""
    return 0 if request.locks or request.owner == f"reserved for {request.task_id}" else 1


def _granted(old: Record | None, request: ClaimRequest, now: float) -> Permitted:
    """Return the grant that follows a record, or that of a key without one."""
    asked_at, ends = floor(now * 1000), floor((now + request.lease_seconds) * 1000)
    # A record of somebody who has no fences is followed by a first one.
    fence = old.fence + 1 if old is not None and old.fence else asked_at
    live = None if old is None or old.expiration < floor(now) else old
    begun = 0 if live is None else _begun(live)
    since = asked_at if live is None else live.unresolved_since or asked_at
    record = Record(
        key=request.key,
        status=Status.INPROGRESS,
        expiration=_earliest(now, _kept_seconds(request), ends),
        in_progress_expiration=ends,
        owner=request.owner,
        fence=fence,
        attempt=(0 if live is None else live.attempt) + _counts(request),
        runs=begun + _counts(request),
        generation=since,
        unresolved_since=since,
        counted_fence=fence,
        validation=request.validation,
        validated_by=request.validated_by,
        task=request.task,
        task_id=request.task_id,
        worker=request.worker,
        process=request.process,
        claimed_at=asked_at,
        stands_in_until=request.stands_in_until,
        parked={} if old is None else old.parked,
        parked_bytes=0 if old is None else old.parked_bytes,
        resolved_fence=None if old is None else old.resolved_fence,
    )
    if live is not None:
        # A run that was not counted may be of a later generation than the steps are.
        record = _preceded(replace(record, steps=live.steps if live.counted_fence == live.fence else KeptSteps()), live)
    return Permitted(Granted(_claim_in(record, request)), record, kept_anew=True)


def _begun(live: Record) -> int:
    """Return how many runs of a key in progress have begun in this generation, and left no outcome."""
    if live.counted_fence is not None and live.counted_fence == live.fence:
        return live.runs
    # Somebody who counts no runs, but crashes, has claimed the key since; a first reservation began none.
    is_reserved = live.task_id is not None and live.owner == f"reserved for {live.task_id}"
    if is_reserved and live.attempt == 0 and live.fence == live.claimed_at:
        return live.runs
    return max(live.attempt, live.runs + 1)


def _preceded(record: Record, live: Record) -> Record:
    """Return a record that names the holder before its own, if an earlier run has begun and that was no reservation."""
    was_reserved = live.task_id is not None and live.owner == f"reserved for {live.task_id}"
    if record.runs <= 1 or was_reserved:
        return record
    return replace(
        record,
        previous_owner=live.owner,
        previous_task_id=live.task_id,
        previous_claimed_at=live.claimed_at,
    )


def _kept_seconds(request: ClaimRequest) -> float:
    """Return for how long a record is kept after a claim or its renewal, without an outcome."""
    return request.retention_seconds if request.unresolved_seconds is None else request.unresolved_seconds


def _claim_in(record: Record, request: ClaimRequest) -> Claim:
    """Return the claim of a request that was granted with a record."""
    return Claim(
        request=request,
        fence=record.fence,
        attempt=record.attempt,
        in_progress_expiration=record.in_progress_expiration or 0,
        claimed_at=record.claimed_at or 0,
        runs=record.runs,
        generation=record.generation or 0,
        parked_bytes=record.parked_bytes,
        steps=record.steps,
    )


def _granted_again(record: Record, request: ClaimRequest, now: float) -> Sequence[Permitted]:
    """Return the grants of a repeated request: with the lease of its first try, or with one that counts from now."""
    first = _claim_in(record, request)
    ends = floor((now + request.lease_seconds) * 1000)
    renewed = replace(record, in_progress_expiration=ends, expiration=_earliest(now, _kept_seconds(request), ends))
    return [
        Permitted(Granted(first), record),
        Permitted(Granted(replace(first, in_progress_expiration=ends)), renewed, kept_anew=True),
    ]


def commit(
    record: Record | None, now: float, held: Claim, outcome: Outcome, retention_seconds: float
) -> Sequence[Permitted]:
    """Return what a commit may come to."""
    if record is None:
        return [Permitted(Vanished(), None)]
    if record.owner != held.owner:
        return [Permitted(Superseded(record), record)]
    if record.status is not Status.INPROGRESS:
        return _committed_again(record, held, retention_seconds, now)
    committed = replace(
        record,
        status=outcome.status,
        data=outcome.data,
        codec=outcome.codec,
        error=outcome.error,
        continuation=outcome.continuation,
        completed_at=floor(now * 1000),
        attempt=0,
        runs=0,
        unresolved_since=None,
        counted_fence=None,
        previous_owner=None,
        previous_task_id=None,
        previous_claimed_at=None,
        deferred={},
        steps=KeptSteps(),
    )
    return [
        Permitted(Committed(), replace(committed, expiration=_earliest(now, retention_seconds, end)), kept_anew=True)
        for end in _ends(record, held)
    ]


def _committed_again(record: Record, held: Claim, retention_seconds: float, now: float) -> Sequence[Permitted]:
    """Return what a commit by the owner of an outcome may come to."""
    if record.completed_at is None:
        # Somebody else's outcome beside our owner: only foreign writers leave out when it was completed.
        return [Permitted(Superseded(record), record)]
    permitted = []
    for end in _ends(record, held):
        earliest = _earliest(now, retention_seconds, end)
        prolonged = replace(record, expiration=max(earliest, record.expiration))
        permitted.append(Permitted(Committed(), prolonged, kept_anew=True))
    if now - record.completed_at / 1000 <= CLOCK_TOLERANCE_SECONDS:
        permitted.append(Permitted(Committed(), record))
    return permitted


def _ends(record: Record, held: Claim) -> tuple[int, int]:
    """Return a claim's expiry as its holder knows it and as a renewal has left it, the earlier one first.

    An outcome may be kept past either.
    """
    known, stored = held.in_progress_expiration, record.in_progress_expiration or 0
    return min(known, stored), max(known, stored)


def restore(old: Record | None, _: float, record: Record) -> Sequence[Permitted]:
    """Return what restoring a record may come to."""
    if old is None:
        return [Permitted(None, record)]
    is_outcome = old.status is not Status.INPROGRESS
    is_as_timed = (old.completed_at is None) == (record.completed_at is None)
    if is_outcome and old.owner == record.owner and is_as_timed:
        return [Permitted(None, old)]
    return [Permitted(RecordExistsError, old)]


def release(
    record: Record | None, now: float, held: Claim, reason: str, *, crashed: bool, began: bool, nothing_done: bool
) -> Sequence[Permitted]:
    """Return what a release may come to."""
    if record is None:
        return [Permitted(Lost(), None)]
    if record.status is not Status.INPROGRESS or record.owner != held.owner:
        is_released = record.status is Status.INPROGRESS and record.owner is None
        by_this_claim = is_released and record.fence == held.fence > 0
        return [Permitted(Released() if by_this_claim else Lost(), record)]
    attempt, runs = record.attempt if crashed else 0, record.runs
    if not began:
        attempt = max(record.attempt - _counts(held.request), 0)
    if nothing_done or not began:
        runs = max(runs - _counts(held.request), 0)
    at = max(floor(now * 1000), held.claimed_at)
    if held.fence == 0:
        # The claim was not seen: its request may carry a time that is a second later than this process's.
        at += 1000
    settled_at = None
    if held.request.settle_seconds and began and not nothing_done and _counts(held.request):
        # What the run has requested elsewhere may arrive until then.
        at = settled_at = at + ceil(held.request.settle_seconds * 1000)
    freed = replace(
        record,
        owner=None,
        deferred={},
        in_progress_expiration=at,
        settled_at=settled_at,
        attempt=attempt,
        runs=runs,
        error=reason,
    )
    if runs <= 1:
        # At most the run of this claim is left: none before it.
        freed = replace(freed, previous_owner=None, previous_task_id=None, previous_claimed_at=None)
    return [Permitted(Released(), freed)]


def renew(
    record: Record | None, now: float, held: Claim, lease_seconds: float, retention_seconds: float
) -> Sequence[Permitted]:
    """Return what a renewal may come to."""
    if record is None or record.status is not Status.INPROGRESS or record.owner != held.owner:
        return [Permitted(Lost(), record)]
    stored = record.in_progress_expiration
    if not stored:
        return [Permitted(Lost(), record)]
    ends = floor((now + lease_seconds) * 1000)
    renewed = replace(record, in_progress_expiration=ends, expiration=_earliest(now, retention_seconds, ends))
    if stored >= ends and stored != held.in_progress_expiration:
        return [Permitted(Renewed(replace(held, in_progress_expiration=stored)), record)]
    return [Permitted(Renewed(replace(held, in_progress_expiration=ends)), renewed, kept_anew=True)]


def note_deferral(  # noqa: PLR0917 - as the store's
    record: Record | None, now: float, owner: str, token: str, due: int, past: Sequence[str]
) -> Sequence[Permitted]:
    """Return what a note of a deferral may come to."""
    if record is None or record.status is not Status.INPROGRESS or record.owner != owner:
        return [Permitted(None, record)]
    left = (record.in_progress_expiration or 0) - floor(now * 1000)
    if left < 0:
        return [Permitted(None, record)]
    removed = set(past[:MOST_FORGOTTEN]) - {token}
    others: Mapping[str, int] = {name: at for name, at in record.deferred.items() if name not in removed}
    noted = Permitted(None, replace(record, deferred={**others, token: due}))
    unnoted = Permitted(None, record)
    if token in record.deferred or len(others) < MOST_NOTED:
        # In its last millisecond a claim may count as ended for a note, and as alive for another claim.
        return [noted] if left else [noted, unnoted]
    # A store may count obsolete notes among those that are there, whether or not they are.
    return [noted, unnoted] if len(record.deferred) < MOST_NOTED + len(removed) else [unnoted]


def note_dispatch(record: Record | None, _: float, task_id: str) -> Sequence[Permitted]:
    """Return what a note of a dispatch may come to."""
    if record is None or record.status is Status.INPROGRESS:
        return [Permitted(None, record)]
    if len(record.dispatched - {task_id}) >= MOST_NOTED:
        return [Permitted(None, record)]
    return [Permitted(None, replace(record, dispatched=record.dispatched | {task_id}))]


def park(record: Record | None, now: float, held: Claim, reason: str) -> Sequence[Permitted]:
    """Return what parking a claim may come to."""
    parked_by = f"parked after {held.owner}"
    if record is None or record.status is not Status.INPROGRESS or record.owner != held.owner:
        is_parked = record is not None and record.parked_at is not None and record.owner == parked_by
        return [Permitted(Parked(record) if record is not None and is_parked else Lost(), record)]
    parked = replace(
        record,
        owner=parked_by,
        parked_at=floor(now * 1000),
        expiration=PARKED_UNTIL,
        in_progress_expiration=PARKED_UNTIL * 1000,
        # No body began under the claim.
        attempt=max(record.attempt - _counts(held.request), 0),
        runs=max(record.runs - _counts(held.request), 0),
        error=reason,
        deferred={},
    )
    if parked.runs == 0:
        parked = replace(parked, previous_owner=None, previous_task_id=None, previous_claimed_at=None)
    return [Permitted(Parked(parked), parked)]


def keep_message(record: Record | None, _: float, task_id: str, message: bytes) -> Sequence[Permitted]:
    """Return what keeping a message of a parked key may come to."""
    if record is None or record.parked_at is None:
        return [Permitted(NotParked(), record)]
    if task_id in record.parked:
        return [Permitted(MessageKept(), record)]
    size = record.parked_bytes + len(task_id.encode()) + len(message)
    if size > MAX_PARKED_BYTES:
        return [Permitted(NoRoom(), record)]
    kept = replace(record, parked={**record.parked, task_id: message}, parked_bytes=size)
    return [Permitted(MessageKept(), kept)]


def keep_step(
    record: Record | None, _: float, held: Claim, name: str, step: Step, __: KeptSteps
) -> Sequence[Permitted]:
    """Return what keeping a step may come to, unless a later claim of the generation has kept it before."""
    if record is None or record.status is not Status.INPROGRESS or record.owner != held.owner:
        return [Permitted(Lost(), record)]
    steps = record.steps if name in record.steps else record.steps.including(name, step)
    return [Permitted(steps, replace(record, steps=steps))]


def get(record: Record | None, _: float) -> Sequence[Permitted]:
    """Return what reading a record may come to."""
    return [Permitted(RecordNotFoundError if record is None else record, record)]


def _earliest(now: float, retention_seconds: float, claim_ends: int) -> int:
    """Return the earliest expiration of a record: after its retention, and later than its claim's end (epoch ms)."""
    return max(floor(now + retention_seconds), claim_ends // 1000 + 1)
