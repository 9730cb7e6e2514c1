"""The protocol of a store: what is atomic, what each call returns and raises.

A store knows nothing of keys' derivation, encoding, waiting and retrying.
"""

from collections.abc import Sequence
from typing import Final, Protocol, runtime_checkable

from idempotent_tasks.core.clock import Clock
from idempotent_tasks.core.records import (
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
        """Claim the key if `idempotent_tasks.core.records.claimable`, else return why not.

        The check and the claim are one atomic step: of any number of concurrent callers one is granted.
        A grant has the next fence and attempt, and clears the fields of an expired outcome.  A reservation, which a
        producer requests, keeps the key for the delivery with its task id: that claim is granted at any time.  A
        reservation counts no attempt.

        Returns:
            `Granted`, `Finished`, `Busy` or `Mismatch`.
        """
        ...

    def commit(self, claim: Claim, outcome: Outcome, retention_seconds: float) -> CommitAnswer:
        """Store the outcome if the claim's owner still holds the key, even past the claim's expiry.

        Decides which outcome the key has; cannot undo the effects of two bodies that both ran.

        The outcome is kept for ``retention_seconds`` from the answer, also where an earlier try of this call has
        stored it.

        Returns:
            `Committed`, also where an earlier try of this call did it; `Superseded` with the record of another owner,
            or of none, where the claim was released; `Vanished` where there is no record any more.
        """
        ...

    def restore(self, record: Record) -> None:
        """Write a whole record if its key has none.

        Raises:
            RecordExistsError: the key has a record, other than an outcome of the same owner.
        """
        ...

    def release(self, claim: Claim, reason: str, *, crashed: bool = False, began: bool = True) -> Released | Lost:
        """Remove the owner from a record in progress, so that the next claim is granted; the fence stays.

        Its ``in_progress_expiration`` becomes the time of the release (`idempotent_tasks.core.records.release_time`):
        no older claim request is granted.  A claimer that finds the record released requests it with a later time,
        whatever its own clock says.  No late commit or renewal of the same claim changes anything.

        Attempts are counted from 0 again, unless the claim's process ``crashed``: then this one counts.  Where the
        body is known not to have ``began``, only this one is subtracted.  An outcome is never released.

        Returns:
            `Released`, also where an earlier try of this call did it and the claim's fence is known; `Lost` where the
            owner does not hold the key.
        """
        ...

    def renew(self, claim: Claim, lease_seconds: float, retention_seconds: float) -> Renewed | Lost:
        """Let the claim expire ``lease_seconds`` from now instead, if its owner still holds it.

        A renewal replaces the end that ``claim`` is known to have, and never shortens one that is later than both: a
        delayed earlier renewal changes nothing, and returns the claim as it is stored.  The caller compares the renewed
        claim's end with the time at which the answer arrives.
        """
        ...

    def note_deferral(self, key: str, owner: str, token: str, due: int, past: Sequence[str] = ()) -> None:
        """Note that the message copy with this token was deferred, so that a second delivery of it is not.

        Sets ``Record.deferred[token]`` while the same owner's claim lives.  Does nothing where it does not, or where
        `MOST_NOTED` others are noted.  Release, commit and the next claim of the key clear the notes.

        Args:
            key: the record's key.
            owner: the owner of the claim for which the copy was deferred.
            token: identifies the copy.
            due: when its successor is delivered, in epoch milliseconds by the store's clock.
            past: tokens whose notes are past their time, of which up to ten are removed.
        """
        ...

    def note_dispatch(self, key: str, task_id: str) -> None:
        """Note that a task's continuation was sent, so that a redelivery of the task does not send it again.

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
