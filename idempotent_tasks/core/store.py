"""Store and ResultStore protocols: what is atomic, what each call returns and raises.

A store knows nothing of how keys are derived, of encoding, waiting and retrying.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Final, Protocol, runtime_checkable

from idempotent_tasks.core.clock import Clock
from idempotent_tasks.core.records import (
    Claim,
    ClaimAnswer,
    ClaimRequest,
    CommitAnswer,
    KeptSteps,
    Lost,
    MessageKept,
    NoRoom,
    NotParked,
    Outcome,
    Parked,
    Record,
    Released,
    Renewed,
    Step,
    WritesRefused,
)

__all__ = [
    "CLOCK_TOLERANCE_SECONDS",
    "MOST_FORGOTTEN",
    "MOST_NOTED",
    "AtomicStore",
    "ParkingStore",
    "ResultStore",
    "SteppingStore",
    "Store",
]

#: The most deferred copies, and the most dispatched tasks, that a record notes: it must stay a small item.
MOST_NOTED: Final = 100
#: A write is corrected if its answer's time differs by more seconds from the one that its expiry was computed with.
CLOCK_TOLERANCE_SECONDS: Final = 2.0
#: The most past notes that one note of a deferral removes.
MOST_FORGOTTEN: Final = 10


@runtime_checkable
class Store(Protocol):
    """Storage of records; each call is one atomic step on one key.

    Every call is safe to repeat after a lost answer: a repeated write finds the owner token of its first try and
    returns the same answer.  Every call raises `StoreUnavailableError` if repeating may help,
    `StoreMisconfiguredError` if it cannot, and `RecordCorruptError` if the key's item is no record; after an error the
    step may have been taken.
    """

    @property
    def clock(self) -> Clock:
        """The clock that all callers of this store share; claims expire by it."""

    @property
    def max_data_bytes(self) -> int:
        """The largest ``Outcome.data`` that a commit takes, in bytes."""

    def claim(self, request: ClaimRequest) -> ClaimAnswer:
        """Claim the key if `idempotent_tasks.core.records.claimable`, else return why not.

        The check and the claim are one atomic step: of any number of concurrent callers one is granted.
        A grant leaves `idempotent_tasks.core.records.granted_record`: the next fence, attempt and run, in a new
        generation where the key has no record or an expired one, of which nothing else stays but `Record.parked`.

        A reservation, which a producer requests, keeps the key for the delivery with its task id.  That claim is
        granted at any time, unless it was requested before the reservation.  A reservation counts neither as an attempt
        nor as a run.

        A request that is repeated before anybody else's is granted again, also when its claim has expired, with the
        lease of its first try or with one that counts from the repetition; it counts once.

        Returns:
            `Granted`, `Finished`, `Busy`, `Parked` or `Mismatch`.
        """

    def commit(self, claim: Claim, outcome: Outcome, retention_seconds: float) -> CommitAnswer:
        """Store the outcome if the claim's owner still holds the key, even past the claim's expiry.

        Decides which outcome the key has; cannot undo the effects of two bodies that both ran.  The outcome ends the
        count of runs, and is kept for ``retention_seconds`` from the answer, also if an earlier try of this call stored
        it.

        Returns:
            `Committed`, also if an earlier try of this call did it; `Superseded` with the record if another owner has
            it, or nobody since the claim's release; `Vanished` if there is no record any more.
        """

    def restore(self, record: Record) -> None:
        """Write a whole record if its key has none.

        Raises:
            RecordExistsError: the key has a record, other than an outcome of the same owner.
        """

    def release(
        self, claim: Claim, reason: str, *, crashed: bool = False, began: bool = True, nothing_done: bool = False
    ) -> Released | Lost:
        """Remove the owner from a record in progress, so that the next claim is granted; the fence stays.

        Its ``in_progress_expiration`` becomes the time of the release (`idempotent_tasks.core.records.release_time`):
        no older claim request is granted.  A claimer that finds the record released requests it with a later time,
        whatever its own clock says.  A late commit or renewal of the same claim changes nothing.

        Resets the record's attempts to 0; keeps them if the claim's process ``crashed``; subtracts only this claim's
        if the body is known not to have ``began``.  Keeps the record's runs; subtracts this claim's if the body is
        known not to have ``began``, or to have ``nothing_done``.  An outcome is never released.

        A run that began, and has done something, leaves the key to nobody for the ``settle_seconds`` of its request:
        both ``Record.settled_at`` and ``in_progress_expiration`` are that much later.

        Returns:
            `Released`, also if an earlier try of this call did it and the claim's fence is known; `Lost` if the owner
            does not hold the key.
        """

    def renew(self, claim: Claim, lease_seconds: float, retention_seconds: float) -> Renewed | Lost:
        """Set the claim's expiry to ``lease_seconds`` from now, if its owner still holds it.

        Keeps a stored expiry that the new one is not later than, unless it is that of ``claim``: a renewal that arrives
        after a newer one changes nothing, and returns the claim as it is stored.  The caller compares the renewed
        claim's expiry with the time at which the answer arrives.
        """

    def note_deferral(self, key: str, owner: str, token: str, due: int, past: Sequence[str] = ()) -> None:
        """Note that the message copy with this token was deferred, so that a second delivery of it is not.

        Sets ``Record.deferred[token]`` while the same owner's claim lives, unless `MOST_NOTED` others are noted.
        Release, commit and the next claim of the key clear the notes.

        Args:
            key: the record's key.
            owner: the owner of the claim that the copy was deferred for.
            token: the copy's token.
            due: when its successor is delivered, in epoch milliseconds by the store's clock.
            past: tokens whose notes are obsolete, of which up to ten are removed.
        """

    def note_dispatch(self, key: str, task_id: str) -> None:
        """Note that a task's continuation was sent, so that a redelivery of the task does not send it again.

        Adds to ``Record.dispatched`` if the key has an outcome, unless `MOST_NOTED` others are noted.
        """

    def get(self, key: str) -> Record:
        """Return the record, expired or not, as the last write left it.

        Raises:
            RecordNotFoundError: no record has this key.
        """


@runtime_checkable
class ParkingStore(Store, Protocol):
    """A store that can also leave a key to a person's decision: ``on_rerun="park"`` and ``recover`` need one."""

    def park(self, claim: Claim, reason: str) -> Parked | Lost:
        """Park the key of a claim whose run has not begun, if its owner still holds the key.

        Leaves `idempotent_tasks.core.records.parked_record`: a key in progress that no claim is granted.

        Args:
            claim: the claim.
            reason: for people, into the record's ``error``.

        Returns:
            `Parked`, also if an earlier try of this call did it; `Lost` if the owner does not hold the key.
        """

    def keep_message(self, key: str, task_id: str, message: bytes) -> MessageKept | NoRoom | NotParked:
        """Add a task's message to the record of a parked key, by `idempotent_tasks.core.records.kept_message`.

        Args:
            key: the record's key.
            task_id: of the message's task, of which the first message is kept.
            message: the message, encoded.
        """


@runtime_checkable
class SteppingStore(Store, Protocol):
    """A store that also keeps the outcomes of a body's steps: ``self.idempotency.step()`` needs one.

    A claim's answer brings what earlier runs of the key's generation have left (`Claim.steps`).  Renewal, release and
    takeover leave it; an outcome, and a new generation, end it.
    """

    def keep_step(self, claim: Claim, name: str, step: Step, kept: KeptSteps) -> KeptSteps | Lost:
        """Keep a step's outcome, if the claim's owner still holds the key, even past the claim's expiry.

        Args:
            claim: the claim.
            name: of the step, which is not among those that are kept.
            step: its outcome.
            kept: the steps that are kept already; the new one lies where `KeptSteps.including` says.

        Returns:
            The steps that are kept now, also if an earlier try of this call did it; `Lost` if the owner does not hold
            the key, and then no later run of the generation finds the outcome.
        """

    def kept_step(self, claim: Claim, name: str) -> Step:
        """Return the outcome of a step that does not lie in the record; it is kept for another ``kept_seconds``.

        Raises:
            RecordNotFoundError: it is gone: somebody has deleted it, or it has expired.
        """


@runtime_checkable
class AtomicStore(Store, Protocol):
    """A store whose outcome and a body's writes take effect together, or not at all: `idempotent_tasks.Atomic`."""

    def check_writes(self, key: str, writes: Sequence[Mapping[str, Any]]) -> None:
        """Validate that these writes can be in one transaction with the record of a key.

        Raises:
            ConfigurationError: they cannot, such as one to another Region's table.
        """

    def commit_with(
        self, claim: Claim, outcome: Outcome, retention_seconds: float, writes: Sequence[Mapping[str, Any]]
    ) -> CommitAnswer | WritesRefused:
        """Store the outcome as `commit` does, and carry out the writes, in one transaction.

        Args:
            claim, outcome, retention_seconds: as for `commit`.
            writes: as in `idempotent_tasks.Atomic`.

        Returns:
            `Committed`, also if an earlier try of this call did it; `Superseded`, `Vanished` or `WritesRefused` if
            nothing was written, by this try or an earlier one, except one whose request has not arrived yet: that is
            refused once the claim is released.
        """

    def write(self, writes: Sequence[Mapping[str, Any]], token: str) -> WritesRefused | None:
        """Carry out writes in a transaction without a record; return why not, or None.

        Args:
            writes: as in `idempotent_tasks.Atomic`.
            token: names the transaction: repeated within ten minutes it is carried out once.
        """


@runtime_checkable
class ResultStore(Protocol):
    """Storage of data that is too large for a record.

    Both calls raise `StoreUnavailableError` if repeating may help, and `StoreMisconfiguredError` if it cannot.
    """

    @property
    def above_bytes(self) -> int | None:
        """Data of more bytes is stored here; None to store only what exceeds `Store.max_data_bytes`."""

    def put(self, data: bytes, expires_at: float) -> str:
        """Keep data at least until ``expires_at`` (epoch seconds), and return its address; safe to repeat."""

    def get(self, address: str) -> bytes:
        """Return the data of an address.

        Raises:
            ResultUnavailableError: it is gone, or was changed.
        """
