"""The record of one key, and the answers that a store gives about it.

Pure values: nothing here knows Celery, DynamoDB or a clock.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from math import ceil
from typing import Final, Protocol

from idempotent_tasks.errors import StoreError

__all__ = [
    "Busy",
    "Claim",
    "ClaimAnswer",
    "ClaimRequest",
    "CommitAnswer",
    "Committed",
    "Finished",
    "Granted",
    "Lost",
    "Mismatch",
    "Outcome",
    "Record",
    "Released",
    "Renewed",
    "Status",
    "Superseded",
    "Unanswered",
    "Vanished",
    "answer_refusal",
    "claimable",
    "committed_record",
    "expiration_seconds",
    "held_claim",
    "is_first_try",
    "is_reservation",
    "release_time",
    "reservation_owner",
    "reservation_seconds",
    "was_released",
]

#: How far two processes that reckon with a server's time may be apart: its ``Date`` names whole seconds.
CLOCK_SPREAD_MILLISECONDS: Final = 1000


class Status(StrEnum):
    """What a record says about its key."""

    #: A delivery claimed the key and has not finished; or it released the key and nobody claimed it since.
    INPROGRESS = "INPROGRESS"
    #: The body returned; the outcome is the result.
    COMPLETED = "COMPLETED"
    #: The body raised an error that is the key's final outcome.
    FAILED = "FAILED"
    #: The record's retention has passed.  Computed when read, never stored.
    EXPIRED = "EXPIRED"


@dataclass(frozen=True, kw_only=True, slots=True)
class ClaimRequest:
    """One delivery's wish to run the body of a key."""

    #: The record's key, ``{prefix}#{digest or id}``.
    key: str
    #: Random token of this delivery; whoever holds it may renew, commit and release.
    owner: str
    #: How long the claim shall live without renewal, in seconds.
    lease_seconds: float
    #: How long the record shall be kept, in seconds; the store keeps it longer than the claim.
    retention_seconds: float
    #: Digest of the validated part of the payload.
    validation: str | None = None
    #: The Celery task's name, its id, and the worker's node name: for people.
    task: str = ""
    task_id: str = ""
    worker: str = ""
    #: Of a reservation: until when its message may stand in for another publish of the key, in epoch milliseconds by
    #: the store's clock; None for always.
    stands_in_until: int | None = None
    #: Which process asks, where it can be told whether it still lives; see `idempotent_tasks.core.processes`.
    process: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Claim:
    """A granted wish: the right to run the body until it expires."""

    request: ClaimRequest
    #: Grows with every claim of the key; later claims have larger fences.
    fence: int
    #: Claims in a row that ended without commit or release, this one included.
    attempt: int
    #: When the claim expires, in epoch milliseconds by the store's clock.
    in_progress_expiration: int
    #: When it was asked for, in epoch milliseconds by the store's clock; 0 where that is not known.
    claimed_at: int = 0

    @classmethod
    def unseen(cls, request: ClaimRequest) -> "Claim":
        """Return the claim that a request may have been granted without our seeing the answer: enough to release it."""
        return cls(request=request, fence=0, attempt=0, in_progress_expiration=0)

    @classmethod
    def shown_by(cls, holder: "Record") -> "Claim":
        """Return the claim of the owner that a record names: enough to release it."""
        request = ClaimRequest(
            key=holder.key,
            owner=holder.owner or "",
            lease_seconds=0,
            retention_seconds=0,
            task=holder.task or "",
            task_id=holder.task_id or "",
            worker=holder.worker or "",
        )
        return cls(request=request, fence=0, attempt=0, in_progress_expiration=0, claimed_at=holder.claimed_at or 0)

    @property
    def key(self) -> str:
        """The record's key."""
        return self.request.key

    @property
    def owner(self) -> str:
        """The token that proves the claim."""
        return self.request.owner

    @property
    def expires_at(self) -> float:
        """When the claim expires, in epoch seconds by the store's clock."""
        return self.in_progress_expiration / 1000


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """What a body left behind, ready to be stored."""

    #: `Status.COMPLETED` or `Status.FAILED`.
    status: Status
    #: The name of the codec that wrote `data`.
    codec: str
    #: The encoded result; None where the result could not be stored.
    data: str | bytes | None
    #: Why there is no data, or the type of the stored failure.
    error: str | None = None
    #: What follows the task, where its body has changed that; None otherwise.
    continuation: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Record:
    """One item of the store, in the units of Powertools for AWS Lambda (Python)."""

    key: str
    status: Status
    #: Epoch seconds; after it the record counts as absent.
    expiration: int
    #: Epoch milliseconds: when the claim expires; the time of its release once the key is `free`, for which 0 stands
    #: too; None where a foreign writer set none.
    in_progress_expiration: int | None = None
    data: str | bytes | None = None
    validation: str | None = None
    owner: str | None = None
    fence: int = 0
    attempt: int = 0
    task: str | None = None
    task_id: str | None = None
    worker: str | None = None
    #: Epoch milliseconds.
    claimed_at: int | None = None
    #: Epoch milliseconds.
    completed_at: int | None = None
    #: None where a foreign writer named none: its data is JSON.
    codec: str | None = None
    error: str | None = None
    #: Of a reservation, as `ClaimRequest.stands_in_until`.
    stands_in_until: int | None = None
    #: The process that claimed, as `ClaimRequest.process`.
    process: str | None = None
    #: For the token of each copy that met this claim and was published again: when its successor is due, in epoch
    #: milliseconds by the store's clock.  Older versions noted a small number for each delivery instead.
    deferred: Mapping[str, int] = field(default_factory=dict)
    #: What follows the task that ran, as `Outcome.continuation`.
    continuation: str | None = None
    #: The task ids whose continuation (links, chain, chord) is known to have been sent.
    dispatched: frozenset[str] = frozenset()

    def status_at(self, now: float) -> Status:
        """Return the status at a time in epoch seconds, `Status.EXPIRED` included."""
        return Status.EXPIRED if self.expiration < int(now) else self.status

    def awaits_successor(self, token: str, now: float) -> bool:
        """Return whether a copy's successor is certain to be on its way at a time in epoch seconds.

        It was published, and comes later: no worker has taken it up and settled it yet.
        """
        return self.deferred.get(token, 0) > now * 1000

    def past_deferrals(self, now: float) -> list[str]:
        """Return the tokens whose notes say nothing any more at a time in epoch seconds."""
        return [token for token in self.deferred if not self.awaits_successor(token, now)]

    @property
    def free(self) -> bool:
        """Whether the key was released and nobody claimed it since: in progress, with a fence, and without an owner.

        A record of Powertools in progress has no owner either, and no fence.
        """
        if self.status is not Status.INPROGRESS:
            return False
        return self.in_progress_expiration == 0 or (self.owner is None and self.fence > 0)

    @property
    def held_until(self) -> float:
        """When the key can be claimed at the latest while in progress, in epoch seconds."""
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
    """Another delivery holds the key."""

    #: When its claim expires, in epoch seconds by the store's clock.
    until: float
    #: The holder's record.
    holder: Record


@dataclass(frozen=True, slots=True)
class Mismatch:
    """The key was used with a different payload."""

    #: Digest of the payload in the record, and of the one that was offered.
    stored: str
    offered: str


@dataclass(frozen=True, slots=True)
class Committed:
    """The outcome is the key's outcome."""


@dataclass(frozen=True, slots=True)
class Superseded:
    """Another owner claimed the key since; this outcome was not stored."""

    record: Record


@dataclass(frozen=True, slots=True)
class Vanished:
    """The record was deleted while the claim was held; nothing was stored."""


@dataclass(frozen=True, slots=True)
class Released:
    """The key is free again: by this release, or by an earlier try of it."""


@dataclass(frozen=True, slots=True)
class Renewed:
    """The claim lives on."""

    claim: Claim


@dataclass(frozen=True, slots=True)
class Lost:
    """The claim is not held any more: another owner has it, or it has an outcome, or its record is gone."""


@dataclass(frozen=True, slots=True)
class Unanswered:
    """The store gave no answer in time; whether it took the step is not known."""

    error: StoreError


ClaimAnswer = Granted | Finished | Busy | Mismatch
CommitAnswer = Committed | Superseded | Vanished


def claimable(record: Record | None, request: ClaimRequest, now: float) -> bool:
    """Return whether a claim must be granted: the rule that every store's conditional write expresses.

    Args:
        record: what the store holds under the key, or None.
        request: the claim that is asked for.
        now: epoch seconds by the store's clock.
    """
    if record is None or record.expiration < int(now):
        return True
    if record.status is not Status.INPROGRESS or record.in_progress_expiration is None:
        return False
    if _payloads_differ(record, request):
        return False
    # Whoever sees the release asks after it, whatever its clock says.
    if record.free or record.owner == reservation_owner(request.task_id):
        return True
    return record.in_progress_expiration < int(now * 1000)


def answer_refusal(record: Record, request: ClaimRequest) -> ClaimAnswer:
    """Say why a claim was refused, from the record that the refusal returned.

    A record with the request's own owner token is an earlier try of this very request whose answer was lost
    on the way (https://github.com/aws/aws-sdk-java/issues/2667): that is a grant.
    """
    if record.validation and request.validation and _payloads_differ(record, request):
        return Mismatch(record.validation, request.validation)
    if record.owner == request.owner and record.status is Status.INPROGRESS:
        return Granted(
            Claim(
                request=request,
                fence=record.fence,
                attempt=record.attempt,
                in_progress_expiration=record.in_progress_expiration or 0,
                claimed_at=record.claimed_at or 0,
            )
        )
    if record.status is Status.INPROGRESS:
        return Busy(record.held_until, record)
    return Finished(record)


def held_claim(record: Record | None, claim: Claim) -> Claim | None:
    """Return a claim with the end that its record says; None where its owner does not hold the key any more."""
    if record is None or record.owner != claim.owner or record.status is not Status.INPROGRESS or record.free:
        return None
    return replace(claim, in_progress_expiration=record.in_progress_expiration or 0)


def is_first_try(old: Record, record: Record) -> bool:
    """Return whether a record is what an earlier try of restoring another left: an outcome of the same owner.

    A late claim of the owner's own is none; nor is an outcome of Powertools, whose last write leaves our owner beside
    it and names no time.
    """
    timed = (old.completed_at is None) is (record.completed_at is None)
    return old.owner == record.owner and old.status is not Status.INPROGRESS and timed


def was_released(record: Record | None, claim: Claim) -> bool:
    """Return whether a record is what this claim's release left behind, by its fence: an unseen claim has none."""
    return record is not None and record.free and record.owner is None and record.fence == claim.fence


def release_time(claim: Claim, now: float) -> int:
    """Return the time of a claim's release (epoch milliseconds): no request for the claim itself is later.

    A request that is older than the release, and arrives after it, is refused by this time.

    Args:
        claim: the claim, seen or unseen; one that is unseen may have been asked for by another process.
        now: epoch seconds by the store's clock, which may have been set back since the claim.
    """
    spread = 0 if claim.fence else CLOCK_SPREAD_MILLISECONDS
    return max(int(now * 1000), claim.claimed_at) + spread


def expiration_seconds(retention_seconds: float, in_progress_expiration: int, now: float) -> int:
    """Return a record's ``expiration`` (epoch seconds): after its retention, and always after its claim.

    Args:
        retention_seconds: how long the record shall be kept from now.
        in_progress_expiration: when its claim expires, in epoch milliseconds.
        now: epoch seconds.
    """
    return max(ceil(now + retention_seconds), in_progress_expiration // 1000 + 2)


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


class Reserver(Protocol):
    """What tells a reservation from a claim."""

    @property
    def owner(self) -> str | None:
        """Whose the key is, or shall be."""
        ...

    @property
    def task_id(self) -> str | None:
        """The task that it is for."""
        ...


def reservation_owner(task_id: str) -> str:
    """Return the owner of a key that is reserved for a task.

    A producer reserves the key of the message that it is about to publish: a record in progress, whose owner is no
    secret, because the message's delivery must know it to take the key over.
    """
    return f"reserved for {task_id}"


def is_reservation(of: Reserver) -> bool:
    """Return whether a claim request, or a record, is a reservation."""
    return of.task_id is not None and of.owner == reservation_owner(of.task_id)


def reservation_seconds(wait: float, delay: float, expires_in: float | None, grace: float) -> float:
    """Return for how long a key is reserved, in seconds.

    Args:
        wait: how long the message may wait in its queue.
        delay: after how many seconds it may run at the earliest (``countdown``, ``eta``).
        expires_in: after how many seconds its worker drops it (``expires``), or None.
        grace: what is added to that, because the worker goes by another clock.
    """
    longest = max(delay, 0.0) + wait
    return longest if expires_in is None else min(longest, max(expires_in, 0.0) + grace)


def _payloads_differ(record: Record, request: ClaimRequest) -> bool:
    return None not in (record.validation, request.validation) and record.validation != request.validation
