"""Receipts: rows in the user's own SQL database that commit together with the effect of a body.

A row is written first in the body's transaction and last with its outcome.  Two runs of one key, a zombie and its
successor among them, thereby meet at one row, and the one that comes later has no effect of its own.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol, runtime_checkable

from idempotent_tasks.core.records import Claim, Outcome
from idempotent_tasks.errors import ConfigurationError, StoreError

__all__ = [
    "WHOLE_BODY",
    "Following",
    "Receipt",
    "ReceiptTransaction",
    "Receipts",
    "ReceiptsState",
    "TransactionLost",
    "check_following",
    "session_of",
]

#: The step of the receipt of a whole body.
WHOLE_BODY: Final = ""
#: Why there is nothing to write with, or to wait for.
_NO_SESSION: Final = (
    "self.idempotency.session is there while the body of a task runs in a worker that is declared with "
    "Idempotency(receipts=SQLAlchemyReceipts(...)); give a body that is called directly a session of your own"
)
_NO_TRANSACTION: Final = (
    "after_commit() waits for the transaction of Idempotency(receipts=...), and there is none here: call apply_async()"
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Receipt:
    """The row of one key and step in the user's database."""

    #: The record's key.
    key: str
    #: The name of the part of the body; `WHOLE_BODY` for all of it.
    step: str = WHOLE_BODY
    #: The record's generation: the row of a larger one stands, that of a smaller one is as good as none.
    generation: int
    #: The fence of the run that wrote the row.
    fence: int
    #: The id of its task.
    task_id: str
    #: What was stored as the outcome; None in the row of a transaction that is not committed yet.
    outcome: Outcome | None = None
    #: The digest of the arguments of its step, as `Step` has it; None in the row of a whole body.
    inputs: str | None = None
    #: What is to be sent when the row is committed: signatures with their task ids, as JSON.
    following: Sequence[str] = ()
    #: Epoch seconds after which nobody needs the row any more.
    expires_at: int

    @classmethod
    def of(cls, claim: Claim, now: float, step: str = WHOLE_BODY) -> "Receipt":
        """Return the row that a claim's run begins with, at a time in epoch seconds."""
        request = claim.request
        return cls(
            key=claim.key,
            step=step,
            generation=claim.generation,
            fence=claim.fence,
            # PostgreSQL's texts have no NUL.
            task_id=request.task_id.replace("\0", ""),
            # For as long as another run of the generation may look for it.
            expires_at=int(now + max(request.kept_seconds, request.retention_seconds)) + 1,
        )


@dataclass(frozen=True, slots=True)
class ReceiptsState:
    """What a look at the table of receipts has found."""

    #: Why no receipt can be written there; None if one can.
    error: StoreError | None = None
    #: After how many seconds the database ends a transaction whose client is silent; 0 for never, None where no client
    #: can be cut off from it.
    idle_seconds: float | None = None
    #: The statement that changes that, with a place for the ``seconds``.
    idle_statement: str = ""


class TransactionLost(Exception):  # noqa: N818 - an answer of the database, not an error of the library
    """The transaction was rolled back by the database, or nobody knows whether it was committed: run it again.

    A deadlock or a serialisation failure, or a connection that was lost before the answer to ``COMMIT``.
    """

    def __init__(self, error: BaseException, *, is_certain: bool = True) -> None:
        super().__init__(error)
        #: What the database's driver has raised, or what has cut the commit short.
        self.error = error
        #: Whether nothing was committed; else nobody knows.
        self.is_certain = is_certain


class ReceiptTransaction(Protocol):
    """An open transaction that has a receipt's row locked."""

    @property
    def found(self) -> Receipt | None:
        """The row that an earlier run has committed, of the same or a larger generation; None if there is none."""

    @property
    def session(self) -> Any:
        """What the body writes with, as ``self.idempotency.session``; None if it has the connection anyway."""

    def flush(self) -> None:
        """Send what the body has not sent yet; what that raises is raised by the body."""

    def is_lost(self, error: BaseException) -> bool:
        """Return whether what a body raised says that the database has rolled the transaction back: run it again.

        As after a deadlock, and where the connection has ended before the commit, as a server ends that of a process
        which stands still for too long.
        """

    def commit(self, receipt: Receipt | None) -> None:
        """Write the receipt with its outcome, if there is one, and commit.

        Raises:
            TransactionLost: it is not known to be committed.
            StoreMisconfiguredError: the receipt does not fit into the table; the transaction is rolled back.
            ConfigurationError: the body has ended the transaction by itself, has gone on after an error, or has left
                hooks that a crash would lose; it is rolled back.
            Exception: what the database says of the body's own writes, such as a constraint that it checks at the end;
                it is rolled back.
        """

    def rollback(self) -> None:
        """Undo what was written; raises nothing."""


@runtime_checkable
class Receipts(Protocol):
    """A table of receipts in a user's database: what ``Idempotency(receipts=)`` takes."""

    def begin(self, receipt: Receipt | None, wait_seconds: float) -> ReceiptTransaction:
        """Open the outermost transaction, and write or lock the receipt's row in it.

        Args:
            receipt: the row, without an outcome; None for a run without a record, which has no row.
            wait_seconds: how long another transaction may hold the row before this one gives up.

        Raises:
            StoreUnavailableError: the database does not answer, or the row is held for longer.
            StoreMisconfiguredError: there is no such table, or it is of another version.
            ConfigurationError: a transaction is open already, whose rollback would undo the receipt.
            TransactionLost: as of any transaction.
        """

    def look(self) -> ReceiptsState:
        """Return whether receipts can be kept, by a connection of its own, which is closed then."""

    def purge(self, before: float) -> int:
        """Delete the rows that nobody needs since ``before`` (epoch seconds); return how many.

        Raises:
            StoreError: the database does not answer, or has no such table.
        """


class Following(Protocol):
    """What sends the tasks that must follow a transaction."""

    def encode(self, signatures: Sequence[Any], claim: Claim, step: str = WHOLE_BODY) -> Sequence[str]:
        """Return Celery signatures as texts for the receipt, with task ids that are the same in every run of the key.

        Args:
            signatures: in the order of the calls.
            claim: of the run.
            step: of the receipt.

        Raises:
            ConfigurationError: one has no JSON form.
        """

    def send(self, texts: Sequence[str]) -> None:
        """Publish what `encode` returned; raises what the broker's client raises."""


def session_of(transaction: ReceiptTransaction | None, task: str | None = None, key: str | None = None) -> Any:
    """Return the session of a body's transaction; ``task`` and ``key`` are the delivery's.

    Raises:
        ConfigurationError: there is no transaction, or it has no session.
    """
    if transaction is None or transaction.session is None:
        raise ConfigurationError(_NO_SESSION, task, key)
    return transaction.session


def check_following(
    transaction: ReceiptTransaction | None, signature: object, task: str | None = None, key: str | None = None
) -> None:
    """Refuse what cannot follow a body's transaction; ``task`` and ``key`` are the delivery's.

    Raises:
        ConfigurationError: there is no transaction, or this is no Celery signature.
    """
    if transaction is None:
        raise ConfigurationError(_NO_TRANSACTION, task, key)
    if not isinstance(signature, Mapping) or "task" not in signature:
        msg = f"after_commit() takes a signature, as task.s(...) returns it, not a {type(signature).__name__}"
        raise ConfigurationError(msg, task, key)
