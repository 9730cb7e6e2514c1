"""A body's effect in DynamoDB, carried out in one transaction with its record: all of it takes effect, or nothing."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from idempotent_tasks.core.store import AtomicStore, Store
from idempotent_tasks.errors import AtomicWriteError, ConfigurationError

__all__ = ["MOST_WRITES", "Atomic", "refuse_in_transaction", "transacting"]

#: The most writes beside the record's own; a transaction has 100 at most
#: (https://docs.aws.amazon.com/amazondynamodb/latest/APIReference/API_TransactWriteItems.html).
MOST_WRITES: Final = 99
#: DynamoDB's code for a write that was not the reason of a refusal.
NO_REASON: Final = "None"
_KINDS: Final = ("Put", "Update", "Delete", "ConditionCheck")


@dataclass(frozen=True, slots=True)
class Atomic:
    """What a body returns whose effect is a write to DynamoDB: its result, and the writes that are its effect.

    The writes take effect together with the record of the result, or not at all: also if the worker dies, and also if
    another delivery has taken over the key.

    Raises:
        ConfigurationError: there are too many writes, or one is none of a transaction's.
    """

    #: The task's result.
    result: Any
    #: ``TransactItems`` as of boto3's ``client.transact_write_items``, 99 at most, to tables of the store's
    #: own account and Region: ``[{"Put": {"TableName": "orders", "Item": {"id": {"S": "17"}}}}]``.
    writes: Sequence[Mapping[str, Any]]

    def __post_init__(self) -> None:
        """Validate the form of the writes, as far as it is known without DynamoDB."""
        if len(self.writes) > MOST_WRITES:
            msg = f"Atomic has {len(self.writes)} writes, and a transaction takes {MOST_WRITES} beside the record"
            raise ConfigurationError(msg)
        for number, write in enumerate(self.writes, 1):
            if not _is_write(write):
                msg = f"write {number} of Atomic is not a mapping of one of {_KINDS} to its parameters with a TableName"
                raise ConfigurationError(msg)

    def refused(self, codes: Sequence[str], task: str | None = None, key: str | None = None) -> AtomicWriteError:
        """Return the error for writes that DynamoDB has refused; it names their kinds and tables, no items.

        Args:
            codes: for each write DynamoDB's code; ``None`` (a text) for one that was not the reason.
            task, key: of the delivery.
        """
        reasons = []
        for number, (write, code) in enumerate(zip(self.writes, codes, strict=False), 1):
            ((kind, parameters),) = write.items()
            if code != NO_REASON:
                reasons.append(f"{kind} {number} on {parameters['TableName']!r}: {code}")
        msg = "DynamoDB refused the body's transaction, and nothing was written"
        return AtomicWriteError("; ".join([msg, *reasons]), task, key, codes)


def refuse_in_transaction(
    returned: object, transaction: object | None, task: str | None = None, key: str | None = None
) -> None:
    """Refuse `Atomic` from what has a transaction of its receipts; ``task`` and ``key`` are the delivery's.

    Raises:
        ConfigurationError: that was returned, and there is one.
    """
    if transaction is not None and isinstance(returned, Atomic):
        msg = (
            "the body returned Atomic in a transaction of its receipts, and no transaction spans two databases: "
            "have one of the two effects made by another task, which after_commit() sends"
        )
        raise ConfigurationError(msg, task, key)


def transacting(store: Store, task: str, key: str | None = None) -> AtomicStore:
    """Return a store that can carry out the writes of `Atomic`; ``task`` and ``key`` are the delivery's.

    Raises:
        ConfigurationError: it cannot.
    """
    if isinstance(store, AtomicStore):
        return store
    msg = "the body returned Atomic, and the app's store has no transactions: it is no DynamoDBStore"
    raise ConfigurationError(msg, task, key)


def _is_write(write: object) -> bool:
    if not isinstance(write, Mapping) or len(write) != 1:
        return False
    ((kind, parameters),) = write.items()
    return kind in _KINDS and isinstance(parameters, Mapping) and isinstance(parameters.get("TableName"), str)
