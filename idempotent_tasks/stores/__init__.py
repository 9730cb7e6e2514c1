"""The protocol of a store: what is atomic, what each call returns and raises.

A store knows nothing of keys' derivation, encoding, waiting and retrying.
"""

from collections.abc import Sequence
from typing import Final, Protocol, runtime_checkable

from idempotent_tasks.clock import Clock
from idempotent_tasks.records import (
    Claim,
    ClaimAnswer,
    ClaimRequest,
    CommitAnswer,
    Lost,
    Outcome,
    Record,
    Released,
    Renewed,
)

__all__ = ["CLOCK_TOLERANCE_SECONDS", "MOST_FORGOTTEN", "MOST_NOTED", "ResultStore", "Store"]

#: The most copies that a record notes as deferred, and the most tasks as dispatched: it must stay a small item.
MOST_NOTED: Final = 100
#: A write is corrected if its answer shows a time that differs by more than this from the one it computed expiry with.
CLOCK_TOLERANCE_SECONDS: Final = 2.0
#: The most past notes that one note of a deferral removes.
MOST_FORGOTTEN: Final = 10


@runtime_checkable
class Store(Protocol):
    """A place for records; each call is one atomic step on one key.

    Every call but `get` is safe to repeat after a lost answer: the repetition finds the owner token of its first
    try and returns the same answer.  Every call raises `StoreUnavailableError` where repeating may help,
    `StoreMisconfiguredError` where it cannot, and `RecordCorruptError` where the item under the key is not
    a record; after an error the caller does not know whether the step was taken.
    """

    @property
    def clock(self) -> Clock:
        """The clock that every caller of this store shares; claims expire by it."""
        ...

    @property
    def max_data_bytes(self) -> int:
        """The largest ``Outcome.data``, in bytes, that a commit takes."""
        ...

    def claim(self, request: ClaimRequest) -> ClaimAnswer:
        """Claim the key if `idempotent_tasks.records.claimable`, else say why not.

        Atomically checks the rule, and takes the key: of any number of concurrent callers one is granted.
        A grant gives the next fence and attempt, and wipes what an expired outcome left.  A reservation, which a
        producer asks for, takes the key for the delivery with its task id, whose claim is granted whenever it comes;
        it counts no attempt.

        Returns:
            `Granted`, `Finished`, `Busy` or `Mismatch`.
        """
        ...

    def commit(self, claim: Claim, outcome: Outcome, retention_seconds: float) -> CommitAnswer:
        """Store the outcome if the claim's owner still holds the key, even past the claim's expiry.

        Does not prevent the effects of two bodies that both ran; it decides whose outcome is the key's.

        An earlier try of this call that was answered late may have counted the retention from a time that had passed
        by then: the outcome is kept for ``retention_seconds`` from the answer.

        Returns:
            `Committed`, also where an earlier try of this call did it; `Superseded` with the record of another owner,
            or of none, where the claim was released; `Vanished` where there is no record any more.
        """
        ...

    def restore(self, record: Record) -> None:
        """Write a whole record where none has its key.

        Raises:
            RecordExistsError: the key has a record that is no outcome of this record's owner, such as a claim of its
                own that arrived late.
        """
        ...

    def release(self, claim: Claim, reason: str, *, crashed: bool = False, began: bool = True) -> Released | Lost:
        """Free the key for the next claim, keeping its fence: the record has no owner any more.

        Its ``in_progress_expiration`` becomes the time of the release (`idempotent_tasks.records.release_time`): no
        request that is older takes the key.  A claimer that meets the record asks after it, whatever its own clock
        says.  No late commit or renewal of the same claim changes anything.

        Attempts are counted from 0 again, unless the claim's process ``crashed``: then the attempt counts.  Where the
        body is known not to have ``began``, only this attempt is taken back.  Only a claim in progress is released: an
        outcome stays.

        Returns:
            `Released`, also where an earlier try of this call did it and the claim's fence is known; `Lost` where the
            owner does not hold the key.
        """
        ...

    def renew(self, claim: Claim, lease_seconds: float, retention_seconds: float) -> Renewed | Lost:
        """Let the claim expire ``lease_seconds`` from now instead, if its owner still holds it.

        A renewal replaces the end that ``claim`` is known to have, and never shortens one that is later than both: an
        early request that was long on its way changes nothing, and its answer is the claim as it is.  The caller holds
        the renewed claim's end against the time at which the answer arrives.
        """
        ...

    def note_deferral(self, key: str, owner: str, token: str, due: int, past: Sequence[str] = ()) -> None:
        """Note that the copy with this token was published again, so that a second delivery of it need not be.

        Sets ``Record.deferred[token]`` while the same owner's claim lives.  Does nothing where it does not, or where
        `MOST_NOTED` others are noted.  The notes go with the claim: its release, its commit and the next claim of the
        key clear them.

        Args:
            key: the record's.
            owner: of the claim that was in the way of the copy.
            token: the copy's own.
            due: when its successor comes, in epoch milliseconds by the store's clock.
            past: tokens whose notes are past their time, of which up to ten are removed.
        """
        ...

    def note_dispatch(self, key: str, task_id: str) -> None:
        """Note that a task's continuation was sent, so that a redelivery of the task need not send it again.

        Adds to ``Record.dispatched`` where the key has an outcome.  Does nothing where it has none, or where
        `MOST_NOTED` others are noted.
        """
        ...

    def get(self, key: str) -> Record:
        """Return the record, expired or not, as the last write left it.

        Raises:
            RecordNotFoundError: no record has this key.
        """
        ...


@runtime_checkable
class ResultStore(Protocol):
    """A place for data that is too large for a record.

    Both calls raise `StoreUnavailableError` where repeating may help, and `StoreMisconfiguredError` where it cannot.
    """

    @property
    def above_bytes(self) -> int | None:
        """The size in bytes from which on data is stored here; None for only what a `Store` does not take."""
        ...

    def put(self, data: bytes, expires_at: float) -> str:
        """Keep data at least until ``expires_at`` (epoch seconds), and return its address; safe to repeat."""
        ...

    def get(self, address: str) -> bytes:
        """Return what was put, byte by byte.

        Raises:
            ResultUnavailableError: it is gone, or was changed.
        """
        ...
