"""The record of a key, claims, and a store's answers: pure values, without Celery, DynamoDB or a clock."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from math import ceil
from typing import Final

from idempotent_tasks.errors import StoreError

__all__ = [
    "MAX_PARKED_BYTES",
    "MAX_STEP_BYTES",
    "MOST_STEPS",
    "PARKED_UNTIL",
    "Busy",
    "Claim",
    "ClaimAnswer",
    "ClaimRequest",
    "CommitAnswer",
    "Committed",
    "Finished",
    "Granted",
    "KeptSteps",
    "Lost",
    "MessageKept",
    "Mismatch",
    "NoRoom",
    "NotParked",
    "Outcome",
    "Parked",
    "Record",
    "Released",
    "Renewed",
    "Status",
    "Step",
    "Superseded",
    "Unanswered",
    "Vanished",
    "WritesRefused",
    "answer_refusal",
    "claimable",
    "committed_record",
    "expiration_seconds",
    "granted_record",
    "held_claim",
    "is_first_try",
    "is_reservation",
    "kept_message",
    "message_bytes",
    "outcome_record",
    "parked_owner",
    "parked_record",
    "release_time",
    "released_record",
    "reservation_owner",
    "reservation_seconds",
    "settling_milliseconds",
    "step_id",
    "step_item_key",
    "step_item_keys",
    "was_committed",
    "was_parked",
    "was_released",
    "without_stale_previous",
]

#: How far apart the server's time may be in two processes: its ``Date`` has whole seconds.
CLOCK_SPREAD_MILLISECONDS: Final = 1000
#: Until when a parked key is held, in epoch seconds: the end of the year 9999.  Who does not know parked records, such
#: as an older version, takes the key for one in progress.
PARKED_UNTIL: Final = 253_402_300_799
#: The most bytes of the messages that a parked record keeps, with their task ids.
MAX_PARKED_BYTES: Final = 300 * 1024
#: The most steps of one key.
MOST_STEPS: Final = 500
#: The most bytes of the steps that lie in a record: each claim, renewal and release of the key pays for them.
MAX_STEP_BYTES: Final = 4 * 1024
#: Bytes of a step beside its own texts: the names of its attributes, and what DynamoDB adds for each.
_STEP_OVERHEAD_BYTES: Final = 24
#: Hexadecimal digits that name a step's item: with 500 steps, two are the same once in 10**14 keys.
_STEP_DIGITS: Final = 16


class Status(StrEnum):
    """What a record says about its key."""

    #: A delivery claimed the key and has not finished; or it was released and not claimed since.
    INPROGRESS = "INPROGRESS"
    #: The body returned; the outcome is the result.
    COMPLETED = "COMPLETED"
    #: The body raised a final failure; the outcome is its error.
    FAILED = "FAILED"
    #: The record's retention has passed; never stored.
    EXPIRED = "EXPIRED"


@dataclass(frozen=True, kw_only=True, slots=True)
class Step:
    """The outcome of a step of a body, encoded for the store."""

    #: Digest of its arguments.
    inputs: str
    #: As in `Outcome`.
    codec: str
    #: The encoded result; None where it could not be stored.
    data: str | bytes | None = None
    #: Why there is no data.
    error: str | None = None

    @property
    def size_bytes(self) -> int:
        """How many bytes it takes in a record, without its name."""
        texts = (self.inputs, self.codec, self.data or "", self.error or "")
        return _STEP_OVERHEAD_BYTES + sum(len(text if isinstance(text, bytes) else text.encode()) for text in texts)


@dataclass(frozen=True, kw_only=True, slots=True)
class KeptSteps:
    """The steps of a key whose outcomes are kept."""

    #: By name, those that lie in the record.
    here: Mapping[str, Step] = field(default_factory=dict)
    #: The `step_id` of each that has an item of its own.
    elsewhere: frozenset[str] = frozenset()

    def __len__(self) -> int:
        return len(self.here) + len(self.elsewhere)

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and (name in self.here or step_id(name) in self.elsewhere)

    @property
    def size_bytes(self) -> int:
        """How many bytes of the record those take that lie there."""
        return sum(len(name.encode()) + step.size_bytes for name, step in self.here.items())

    def has_room(self, name: str, step: Step) -> bool:
        """Return whether a step is to lie in the record."""
        return self.size_bytes + len(name.encode()) + step.size_bytes <= MAX_STEP_BYTES

    def joined(self, others: "KeptSteps") -> "KeptSteps":
        """Return these steps and others."""
        return KeptSteps(here={**self.here, **others.here}, elsewhere=self.elsewhere | others.elsewhere)

    def including(self, name: str, step: Step) -> "KeptSteps":
        """Return these steps and one more, wherever it is to lie."""
        if self.has_room(name, step):
            return replace(self, here={**self.here, name: step})
        return replace(self, elsewhere=self.elsewhere | {step_id(name)})


@dataclass(frozen=True, kw_only=True, slots=True)
class ClaimRequest:
    """A delivery's request to claim a key, or a producer's to reserve one."""

    #: The record's key, ``{prefix}#{digest or id}``.
    key: str
    #: Owner token: whoever has it may renew, commit and release the claim.
    owner: str
    #: Seconds from the claim, or a renewal, to its expiry.
    lease_seconds: float
    #: Seconds from the outcome for which the record is kept; the store keeps it longer than the claim.
    retention_seconds: float
    #: Seconds from the claim, or a renewal, for which the record is kept without an outcome; None for
    #: `retention_seconds`.
    unresolved_seconds: float | None = None
    #: Digest of the validated part of the payload.
    validation: str | None = None
    #: What selected that part; digests that different expressions made are not compared.  None for Powertools' way.
    validated_by: str | None = None
    #: For people: the Celery task's name, its id, and the worker's node name.
    task: str = ""
    task_id: str = ""
    worker: str = ""
    #: Of a reservation: until when its message may replace another publish of the key, in epoch milliseconds by the
    #: store's clock; None for always.
    stands_in_until: int | None = None
    #: The process that requests it, as ``current_process`` names it.
    process: str | None = None
    #: The request for the lock that the body needs too, of the same owner; None for none.
    lock: "ClaimRequest | None" = None
    #: Whether this is the request for such a lock, whose grants are no runs.
    locks: bool = False
    #: The key for downstream systems that the task declares; None for the record's own.
    downstream: str | None = None
    #: Seconds for which what a run has requested elsewhere may still be on its way after the run has ended; the lease
    #: has them already.
    settle_seconds: float = 0.0

    @property
    def downstream_key(self) -> str:
        """The key to pass to downstream systems."""
        return self.key if self.downstream is None else self.downstream

    @property
    def parts(self) -> "tuple[ClaimRequest, ...]":
        """This request, and that for its lock."""
        return (self,) if self.lock is None else (self, self.lock)

    @property
    def is_for_run(self) -> bool:
        """Whether a body runs under the claim: not under a reservation, and not under a lock by itself."""
        return not self.locks and not is_reservation(self)

    @property
    def kept_seconds(self) -> float:
        """For how many seconds from the claim, or a renewal, the record is kept without an outcome."""
        return self.retention_seconds if self.unresolved_seconds is None else self.unresolved_seconds

    def locking(self, key: str) -> "ClaimRequest":
        """Return the request of another key, whose body needs this request's key as a lock."""
        lock = replace(
            self, validation=None, validated_by=None, unresolved_seconds=None, settle_seconds=0.0, locks=True
        )
        return replace(self, key=key, lock=lock)

    def by(self, owner: str) -> "ClaimRequest":
        """Return the same request of another owner token."""
        lock = None if self.lock is None else self.lock.by(owner)
        return replace(self, owner=owner, lock=lock)


@dataclass(frozen=True, kw_only=True, slots=True)
class Claim:
    """A granted request: the right to run the body until it expires."""

    request: ClaimRequest
    #: Fencing token: every later claim of the key has a larger one.  64 bits: about epoch milliseconds at first.
    fence: int
    #: Claims in a row that ended without commit or release, plus 1 for this one.
    attempt: int
    #: When the claim expires, in epoch milliseconds by the store's clock.
    in_progress_expiration: int
    #: When it was requested, in epoch milliseconds by the store's clock; 0 if unknown.
    claimed_at: int = 0
    #: As in `Record`, this claim's run included; 0 if unknown, as from a store that does not count.
    runs: int = 0
    #: As in `Record`; 0 if unknown.
    generation: int = 0
    #: As in `Record`: so many bytes less can the outcome have.
    parked_bytes: int = 0
    #: The steps that earlier runs of the generation have left.
    steps: KeptSteps = KeptSteps()

    @classmethod
    def unseen(cls, request: ClaimRequest) -> "Claim":
        """Return the claim that a request may have been granted, to release it without having seen the answer."""
        return cls(request=request, fence=0, attempt=0, in_progress_expiration=0)

    @classmethod
    def shown_by(cls, holder: "Record", settle_seconds: float = 0.0) -> "Claim":
        """Return a claim with the owner token in a record, to release the key in that owner's place.

        Args:
            holder: the record.
            settle_seconds: as for `ClaimRequest`.
        """
        request = ClaimRequest(
            key=holder.key,
            owner=holder.owner or "",
            lease_seconds=0,
            retention_seconds=0,
            task=holder.task or "",
            task_id=holder.task_id or "",
            worker=holder.worker or "",
            settle_seconds=settle_seconds,
        )
        return cls(request=request, fence=0, attempt=0, in_progress_expiration=0, claimed_at=holder.claimed_at or 0)

    @classmethod
    def recorded(cls, request: ClaimRequest, record: "Record") -> "Claim":
        """Return the claim of a request that a record shows as granted."""
        return cls(
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

    @property
    def key(self) -> str:
        """The record's key."""
        return self.request.key

    @property
    def owner(self) -> str:
        """The owner token."""
        return self.request.owner

    @property
    def expires_at(self) -> float:
        """When the claim expires, in epoch seconds by the store's clock."""
        return self.in_progress_expiration / 1000


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """An outcome of a body, encoded for the store."""

    #: `Status.COMPLETED` or `Status.FAILED`.
    status: Status
    #: The name of the codec that wrote `data`.
    codec: str
    #: The encoded result; None where the result could not be stored.
    data: str | bytes | None
    #: Why there is no data, or the type of the stored failure.
    error: str | None = None
    #: The continuation (links, chain, chord) that the body has set instead of its message's; None for the message's.
    continuation: str | None = None

    @classmethod
    def of_step(cls, step: "Step") -> "Outcome":
        """Return a step's outcome as that of a body."""
        return cls(status=Status.COMPLETED, codec=step.codec, data=step.data, error=step.error)


@dataclass(frozen=True, kw_only=True, slots=True)
class Record:
    """A store's item; units as Powertools for AWS Lambda (Python): ``expiration`` in seconds, other times in ms."""

    key: str
    status: Status
    #: Epoch seconds; after it the record counts as absent.
    expiration: int
    #: Epoch milliseconds: when the claim expires, or once the key is `free` when it was released (0 in older records);
    #: None where a foreign writer set none.
    in_progress_expiration: int | None = None
    data: str | bytes | None = None
    validation: str | None = None
    owner: str | None = None
    fence: int = 0
    attempt: int = 0
    #: The runs that began in this generation, the holder's included; 0 once the key has an outcome.
    runs: int = 0
    #: A number that grows with every fresh start of the key, whose earlier records are expired or deleted; None where
    #: another writer, or an older version, has started it.  About epoch milliseconds.
    generation: int | None = None
    #: When the first claim of the generation was requested, in epoch milliseconds; None once the key has an outcome.
    unresolved_since: int | None = None
    #: The fence up to which ``runs`` has counted: another than the record's where an older version has claimed the key
    #: since.
    counted_fence: int | None = None
    #: Owner token, task id and time (epoch milliseconds) of the claim before this one, where `runs` has an earlier run;
    #: None where that claim was a reservation, and no owner where it was released.
    previous_owner: str | None = None
    previous_task_id: str | None = None
    previous_claimed_at: int | None = None
    task: str | None = None
    task_id: str | None = None
    worker: str | None = None
    #: Epoch milliseconds.
    claimed_at: int | None = None
    #: Epoch milliseconds.
    completed_at: int | None = None
    #: Of a `free` key: until when nobody is granted it, in epoch milliseconds by the store's clock, because what the
    #: last run has requested elsewhere may be on its way; None for no such time.
    settled_at: int | None = None
    #: When the key was parked, in epoch milliseconds: its next run waits for a person's decision.  None if it is not.
    parked_at: int | None = None
    #: By task id, the messages that wait for that decision, or are to be published again after it.
    parked: Mapping[str, bytes] = field(default_factory=dict)
    #: The bytes of these messages and of their task ids.
    parked_bytes: int = 0
    #: The fence that the record had when it was parked for the latest of such decisions; None if there was none.
    resolved_fence: int | None = None
    #: What runs of the generation have left; none once the key has an outcome.
    steps: KeptSteps = KeptSteps()
    #: None where a foreign writer named none: its data is JSON.
    codec: str | None = None
    error: str | None = None
    #: As in `ClaimRequest`.
    stands_in_until: int | None = None
    process: str | None = None
    #: As in `ClaimRequest`.
    validated_by: str | None = None
    #: By the token of each copy that was deferred while this claim held the key: when its successor is due, in epoch
    #: milliseconds by the store's clock.  Older versions noted a small number for each delivery instead.
    deferred: Mapping[str, int] = field(default_factory=dict)
    #: As in `Outcome`.
    continuation: str | None = None
    #: The task ids whose continuation is known to have been sent.
    dispatched: frozenset[str] = frozenset()

    def status_at(self, now: float) -> Status:
        """Return the status at a time in epoch seconds, `Status.EXPIRED` included."""
        return Status.EXPIRED if self.expiration < int(now) else self.status

    def awaits_successor(self, token: str, now: float) -> bool:
        """Return whether this token's copy was deferred and its next copy is not yet due at ``now`` (epoch seconds)."""
        return self.deferred.get(token, 0) > now * 1000

    def past_deferrals(self, now: float) -> list[str]:
        """Return the tokens in `deferred` whose next copies are due at ``now`` (epoch seconds), for removal."""
        return [token for token in self.deferred if not self.awaits_successor(token, now)]

    @property
    def is_counted(self) -> bool:
        """Whether the last claim of the key counted its run: not one of Powertools, nor of an older version."""
        if self.status is Status.INPROGRESS:
            return self.counted_fence is not None and self.counted_fence == self.fence
        return self.generation is not None

    @property
    def free(self) -> bool:
        """Whether the key was released and not claimed since: in progress, with a fence, and without an owner.

        A record of Powertools in progress has neither owner nor fence.
        """
        if self.status is not Status.INPROGRESS:
            return False
        return self.in_progress_expiration == 0 or (self.owner is None and self.fence > 0)

    def settles_at(self, now: float) -> bool:
        """Return whether the key is free, and not to be granted yet at ``now`` (epoch seconds): see `settled_at`."""
        return self.free and self.settled_at is not None and self.settled_at >= int(now * 1000)

    @property
    def held_until(self) -> float:
        """The latest time at which a key in progress becomes claimable, in epoch seconds."""
        if self.in_progress_expiration is None:
            return float(self.expiration)
        return min(self.in_progress_expiration / 1000, float(self.expiration))


@dataclass(frozen=True, slots=True)
class Granted:
    """The body may run."""

    claim: Claim


@dataclass(frozen=True, slots=True)
class Finished:
    """The key has an outcome already."""

    record: Record


@dataclass(frozen=True, slots=True)
class Busy:
    """Another delivery holds the key; or nobody does, and it is not to be granted yet (`Record.settles_at`)."""

    #: When its claim expires, or the key is granted again, in epoch seconds by the store's clock.
    until: float
    #: The holder's record.
    holder: Record


@dataclass(frozen=True, slots=True)
class Parked:
    """The key's next run waits for a person's decision."""

    record: Record


@dataclass(frozen=True, slots=True)
class Mismatch:
    """The key was used with a different payload."""

    #: Digests of the record's payload and of the request's.
    stored: str
    offered: str


@dataclass(frozen=True, slots=True)
class Committed:
    """The outcome is stored as the key's."""


@dataclass(frozen=True, slots=True)
class Superseded:
    """Another owner claimed the key since; this outcome was not stored."""

    record: Record


@dataclass(frozen=True, slots=True)
class Vanished:
    """The record was deleted while the claim was held; nothing was stored."""


@dataclass(frozen=True, slots=True)
class WritesRefused:
    """DynamoDB refused a transaction of a commit because of the body's writes; nothing was written."""

    #: For each write DynamoDB's code, such as ``ConditionalCheckFailed``; ``None`` for one that was not the reason.
    codes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Released:
    """The key is free again: by this release, or by an earlier try of it."""


@dataclass(frozen=True, slots=True)
class Renewed:
    """The claim is still held, with the expiry in ``claim``."""

    claim: Claim


@dataclass(frozen=True, slots=True)
class Lost:
    """The claim is not held any more: another owner has it, or it has an outcome, or its record is gone."""


@dataclass(frozen=True, slots=True)
class MessageKept:
    """The record of a parked key has the task's message: by this call, or by an earlier one."""


@dataclass(frozen=True, slots=True)
class NoRoom:
    """The record of a parked key cannot take so large a message."""


@dataclass(frozen=True, slots=True)
class NotParked:
    """The key is not parked, or not any more."""


@dataclass(frozen=True, slots=True)
class Unanswered:
    """The store gave no answer in time: it may have taken the step."""

    error: StoreError


ClaimAnswer = Granted | Finished | Busy | Parked | Mismatch
CommitAnswer = Committed | Superseded | Vanished


def claimable(record: Record | None, request: ClaimRequest, now: float) -> bool:
    """Return whether a claim must be granted: the rule of every store's conditional write.

    Args:
        record: the key's record, or None.
        request: the claim request.
        now: epoch seconds by the store's clock.
    """
    if record is None or record.expiration < int(now):
        return True
    if record.status is not Status.INPROGRESS or record.in_progress_expiration is None:
        return False
    if _payloads_differ(record, request) or record.settles_at(now):
        return False
    # A request that finds the release comes after it, whatever the clocks say.
    if record.free or record.owner == reservation_owner(request.task_id):
        return True
    # What an earlier try of this request was granted is its own still: another grant would count another run.
    if record.owner == request.owner:
        return False
    return record.in_progress_expiration < int(now * 1000)


def answer_refusal(record: Record, request: ClaimRequest) -> ClaimAnswer:
    """Return why a claim was refused, from the record that the refusal returned.

    A record with the request's own owner token is from an earlier try of it whose answer was lost
    (https://github.com/aws/aws-sdk-java/issues/2667): that is a grant.
    """
    if record.validation and request.validation and _payloads_differ(record, request):
        return Mismatch(record.validation, request.validation)
    if record.owner == request.owner and record.status is Status.INPROGRESS:
        return Granted(Claim.recorded(request, record))
    if record.status is Status.INPROGRESS:
        return Busy(record.held_until, record) if record.parked_at is None else Parked(record)
    return Finished(record)


def granted_record(old: Record | None, request: ClaimRequest, now: float, until: int) -> Record:
    """Return the record that a grant leaves: the rule of every store's claim.

    An expired record is as good as none: a new generation begins, whose first run this is.  In a live one that an older
    version or Powertools for AWS Lambda (Python) has claimed since, that claim counts as one more run, unless it is the
    reservation of a key that had no record.

    Args:
        old: the key's record, which is `claimable`, or None.
        request: the claim request.
        now: epoch seconds by the store's clock.
        until: the end of the lease, in epoch milliseconds.
    """
    at, counted = int(now * 1000), int(request.is_for_run)
    live = None if old is None or old.expiration < int(now) else old
    fence = old.fence + 1 if old is not None and old.fence else at
    since = at if live is None or live.unresolved_since is None else live.unresolved_since
    granted = Record(
        key=request.key,
        status=Status.INPROGRESS,
        expiration=expiration_seconds(request.kept_seconds, until, now),
        in_progress_expiration=until,
        validation=request.validation,
        validated_by=request.validated_by,
        owner=request.owner,
        fence=fence,
        attempt=counted if live is None else live.attempt + counted,
        runs=counted if live is None else _runs_begun(live) + counted,
        generation=since,
        unresolved_since=since,
        counted_fence=fence,
        task=request.task,
        task_id=request.task_id,
        worker=request.worker,
        process=request.process,
        stands_in_until=request.stands_in_until,
        claimed_at=at,
        # What nobody has published again yet outlives the record.
        parked={} if old is None else old.parked,
        parked_bytes=0 if old is None else old.parked_bytes,
        resolved_fence=None if old is None else old.resolved_fence,
    )
    if live is None:
        return granted
    return without_stale_previous(
        replace(
            granted,
            previous_owner=live.owner,
            previous_task_id=live.task_id,
            previous_claimed_at=live.claimed_at,
            steps=_steps_left(live),
        )
    )


def outcome_record(held: Record, outcome: Outcome, retention_seconds: float, now: float) -> Record:
    """Return the record that a commit leaves: the rule of every store's commit.

    Args:
        held: the record of the claim that is committed.
        outcome: what is stored.
        retention_seconds: for how long the outcome is kept from now.
        now: epoch seconds by the store's clock.
    """
    return replace(
        held,
        status=outcome.status,
        data=outcome.data,
        codec=outcome.codec,
        error=outcome.error,
        continuation=outcome.continuation,
        attempt=0,
        runs=0,
        unresolved_since=None,
        counted_fence=None,
        previous_owner=None,
        previous_task_id=None,
        previous_claimed_at=None,
        deferred={},
        steps=KeptSteps(),
        completed_at=int(now * 1000),
        expiration=expiration_seconds(retention_seconds, held.in_progress_expiration or 0, now),
    )


def released_record(
    held: Record, claim: Claim, reason: str, now: float, *, crashed: bool, began: bool, nothing_done: bool
) -> Record:
    """Return the record that a release leaves: the rule of every store's release.

    Args:
        held: the record of the claim that is released.
        claim: the claim, seen or unseen.
        reason: why it is released.
        now: epoch seconds by the store's clock.
        crashed, began, nothing_done: as for `idempotent_tasks.stores.Store.release`.
    """
    counted = int(claim.request.is_for_run)
    at, settles = release_time(claim, now), settling_milliseconds(claim, began=began, nothing_done=nothing_done)
    released = replace(
        held,
        owner=None,
        deferred={},
        in_progress_expiration=at + settles,
        settled_at=at + settles if settles else None,
        attempt=max(held.attempt - counted, 0) if not began else held.attempt if crashed else 0,
        runs=max(held.runs - counted, 0) if nothing_done or not began else held.runs,
        error=reason,
    )
    return without_stale_previous(released)


def settling_milliseconds(claim: Claim, *, began: bool, nothing_done: bool) -> int:
    """Return for how long nobody is granted a key after its release; arguments as for `Store.release`."""
    settles = began and not nothing_done and claim.request.is_for_run
    return ceil(claim.request.settle_seconds * 1000) if settles else 0


def parked_record(held: Record, claim: Claim, reason: str, now: float) -> Record:
    """Return the record that parking a claim leaves: the rule of every store that can park.

    Args:
        held: the record of the claim, whose run has not begun.
        claim: the claim.
        reason: why it is parked.
        now: epoch seconds by the store's clock.
    """
    counted = int(claim.request.is_for_run)
    parked = replace(
        held,
        owner=parked_owner(claim),
        expiration=PARKED_UNTIL,
        in_progress_expiration=PARKED_UNTIL * 1000,
        parked_at=int(now * 1000),
        attempt=max(held.attempt - counted, 0),
        runs=max(held.runs - counted, 0),
        error=reason,
        deferred={},
    )
    return without_stale_previous(parked)


def parked_owner(claim: Claim) -> str:
    """Return the owner of the key that a claim has parked: no late renewal, commit or release of the claim lands."""
    return f"parked after {claim.owner}"


def was_parked(record: Record | None, claim: Claim) -> bool:
    """Return whether this claim's parking left the record."""
    return record is not None and record.parked_at is not None and record.owner == parked_owner(claim)


def message_bytes(task_id: str, message: bytes) -> int:
    """Return how many of `MAX_PARKED_BYTES` a message takes."""
    return len(message) + len(task_id.encode())


def kept_message(record: Record | None, task_id: str, message: bytes) -> Record | MessageKept | NoRoom | NotParked:
    """Return the record with a task's message, or why it stays as it is: the rule of every store that can park.

    Args:
        record: the key's record, or None.
        task_id: of the message's task; the first message of a task id counts.
        message: the message, encoded.
    """
    if record is None or record.parked_at is None:
        return NotParked()
    if task_id in record.parked:
        return MessageKept()
    taken = record.parked_bytes + message_bytes(task_id, message)
    if taken > MAX_PARKED_BYTES:
        return NoRoom()
    return replace(record, parked={**record.parked, task_id: message}, parked_bytes=taken)


def step_id(name: str) -> str:
    """Return what names a step's item: so many hexadecimal digits of the SHA-256 of its name."""
    return hashlib.sha256(name.encode()).hexdigest()[:_STEP_DIGITS]


def step_item_key(claim: Claim, name: str) -> str:
    """Return the key of a step's item: ``{key}#{generation}#{step_id}``."""
    return _step_item_key(claim.key, claim.generation, step_id(name))


def step_item_keys(record: Record) -> dict[str, str]:
    """Return the keys of the items of a record's steps that do not lie in it, by their `step_id`."""
    return {id_: _step_item_key(record.key, record.generation or 0, id_) for id_ in sorted(record.steps.elsewhere)}


def _step_item_key(key: str, generation: int, id_: str) -> str:
    return f"{key}#{generation}#{id_}"


def _runs_begun(live: Record) -> int:
    """Return how many runs have begun without an outcome, by the record of a key in progress."""
    # The first claim of a missing key has the time as its fence: nobody was before that reservation.
    is_first = is_reservation(live) and live.fence == live.claimed_at and live.attempt == 0
    if live.is_counted or is_first:
        return live.runs
    # Somebody who does not count runs has claimed the key since; of his own runs he counts the crashes.
    return max(live.runs + 1, live.attempt)


def _steps_left(live: Record) -> KeptSteps:
    """Return the steps that the next run of a key in progress finds, by its record."""
    # Who does not count runs does not know steps: he has done the body without, maybe in a later generation.
    return live.steps if live.is_counted else KeptSteps()


def without_stale_previous(record: Record) -> Record:
    """Return a record without the claim before its own, where no run of that one is known to have begun."""
    claim = record.previous_task_id
    # A parked key's runs are all earlier ones: that of the claim which parked it never began.
    earlier = record.runs - (record.parked_at is None)
    if earlier > 0 and (claim is None or record.previous_owner != reservation_owner(claim)):
        return record
    return replace(record, previous_owner=None, previous_task_id=None, previous_claimed_at=None)


def held_claim(record: Record | None, claim: Claim) -> Claim | None:
    """Return a claim with the expiry of its record; None if its owner does not hold the key any more."""
    if record is None or record.owner != claim.owner or record.status is not Status.INPROGRESS or record.free:
        return None
    return replace(claim, in_progress_expiration=record.in_progress_expiration or 0)


def is_first_try(old: Record, record: Record) -> bool:
    """Return whether ``old`` is from an earlier try to restore ``record``: an outcome of the same owner.

    A late claim of that owner is no outcome; one that Powertools wrote keeps our owner, but has no ``completed_at``.
    """
    timed = (old.completed_at is None) is (record.completed_at is None)
    return old.owner == record.owner and old.status is not Status.INPROGRESS and timed


def was_committed(record: Record, claim: Claim) -> bool:
    """Return whether this claim's commit left the record: a timed outcome of its owner.

    Powertools' last write keeps our owner, but has no ``completed_at``: that outcome is not the claim's.
    """
    is_timed_outcome = record.status is not Status.INPROGRESS and record.completed_at is not None
    return record.owner == claim.owner and is_timed_outcome


def was_released(record: Record | None, claim: Claim) -> bool:
    """Return whether this claim's release left the record, by the fence; an unseen claim has none and never matches."""
    return record is not None and record.free and record.owner is None and 0 < record.fence == claim.fence


def release_time(claim: Claim, now: float) -> int:
    """Return the time of a claim's release (epoch milliseconds), never before that of the claim's own request.

    By this time a store refuses an older request that arrives after the release.

    Args:
        claim: the claim, seen or unseen; another process may have requested an unseen one.
        now: epoch seconds by the store's clock, which may have been set back since the claim.
    """
    spread = 0 if claim.fence else CLOCK_SPREAD_MILLISECONDS
    return max(int(now * 1000), claim.claimed_at) + spread


def expiration_seconds(retention_seconds: float, in_progress_expiration: int, now: float) -> int:
    """Return a record's ``expiration`` (epoch seconds): its retention from now, but later than its claim's expiry."""
    return max(ceil(now + retention_seconds), in_progress_expiration // 1000 + 2)


def committed_record(claim: Claim, outcome: Outcome, retention_seconds: float, now: float) -> Record:
    """Return the record of a claim's outcome, to be kept for ``retention_seconds`` from now (epoch seconds)."""
    request = claim.request
    return Record(
        key=claim.key,
        status=outcome.status,
        expiration=expiration_seconds(retention_seconds, claim.in_progress_expiration, now),
        in_progress_expiration=claim.in_progress_expiration,
        data=outcome.data,
        validation=request.validation,
        validated_by=request.validated_by,
        owner=claim.owner,
        fence=claim.fence,
        generation=claim.generation or None,
        task=request.task,
        task_id=request.task_id,
        worker=request.worker,
        completed_at=int(now * 1000),
        codec=outcome.codec,
        error=outcome.error,
        continuation=outcome.continuation,
    )


def reservation_owner(task_id: str) -> str:
    """Return the owner of a reservation: a record in progress for the task that a producer is about to publish.

    It is no secret, because the message's delivery must know it to take the key over.
    """
    return f"reserved for {task_id}"


def is_reservation(of: ClaimRequest | Record) -> bool:
    """Return whether a claim request, or a record, is a reservation."""
    return of.task_id is not None and of.owner == reservation_owner(of.task_id)


def reservation_seconds(wait: float, delay: float, expires_in: float | None, grace: float) -> float:
    """Return for how long a key is reserved; all in seconds.

    Args:
        wait: how long the message may wait in its queue.
        delay: the delay of its earliest run (``countdown``, ``eta``).
        expires_in: after how long its worker drops it (``expires``), or None.
        grace: added to that, because the worker has another clock.
    """
    longest = max(delay, 0.0) + wait
    return longest if expires_in is None else min(longest, max(expires_in, 0.0) + grace)


def _payloads_differ(record: Record, request: ClaimRequest) -> bool:
    if None in (record.validation, request.validation) or record.validation == request.validation:
        return False
    # Older versions and Powertools do not say what they digested.
    return None in (record.validated_by, request.validated_by) or record.validated_by == request.validated_by
