"""Transactions over the tables in memory: all writes of one take effect, or none does.

As DynamoDB documents `TransactWriteItems`
(https://docs.aws.amazon.com/amazondynamodb/latest/APIReference/API_TransactWriteItems.html).
"""

from collections.abc import Callable, Sequence
from typing import Any, Final

from simulation.wire import ConditionFailedError, Item, Table

__all__ = ["CONFLICT", "CancelledError", "InvalidTransactionError", "MismatchError", "Transactions", "codes_of"]

#: The code of a write that is no reason of a cancellation, and of one that meets another transaction.
NO_REASON: Final = "None"
CONFLICT: Final = "TransactionConflict"
#: Seconds for which a token stands for the transaction that was carried out under it.
TOKEN_SECONDS: Final = 600.0
#: By kind of write: the table's method; a check writes nothing.
_METHODS: Final = {"Put": "put_item", "Update": "update_item", "Delete": "delete_item"}

#: One reason for each write, as ``CancellationReasons`` has them.
Reasons = list[dict[str, Any]]
Place = tuple[str, str]


class CancelledError(Exception):
    """The transaction was cancelled, and nothing was written.

    Args:
        reasons: one for each write.
    """

    def __init__(self, reasons: Reasons) -> None:
        self.reasons = reasons
        super().__init__("the transaction is cancelled")


class MismatchError(Exception):
    """A token stands for a transaction with other writes."""


class InvalidTransactionError(Exception):
    """The request is no transaction: it has two writes of one item."""


class Transactions:
    """The transactions of one service.

    Args:
        table_of: returns the table of a name.
        now: returns the service's time in seconds.
    """

    def __init__(self, table_of: Callable[[str], Table], now: Callable[[], float]) -> None:
        self._table_of = table_of
        self._now = now
        #: By token: when it was carried out, and its writes.
        self._done: dict[str, tuple[float, Any]] = {}
        #: The items that transactions under way have to themselves.
        self._occupied: set[Place] = set()

    def keeping(
        self,
        writes: Sequence[dict[str, Any]],
        seconds: float,
        after: Callable[[float, Callable[[], None]], None],
        then: Callable[[], None],
    ) -> None:
        """Keep a transaction's items from others for so many seconds; at once where another one has them.

        Args:
            writes: the transaction's.
            seconds: for how long.
            after: calls what it is given after so many seconds.
            then: called at the end.
        """
        places = {self._place(write) for write in writes}
        if not seconds or places & self._occupied:
            then()
            return

        def end() -> None:
            self._occupied -= places
            then()

        self._occupied |= places
        after(seconds, end)

    def is_occupied(self, table: str, parameters: dict[str, Any]) -> bool:
        """Return whether a transaction under way keeps a single write from its item."""
        return bool(self._occupied) and self._place({"": {**parameters, "TableName": table}}) in self._occupied

    def carry_out(self, writes: Sequence[dict[str, Any]], token: str | None = None) -> bool:
        """Carry out all writes, and return True; False where a request with this token has done so already.

        Raises:
            CancelledError: a condition is false, or another transaction is at one of the items; nothing was written.
            MismatchError: the token stands for other writes.
            InvalidTransactionError: two writes are of one item.
        """
        if len({self._place(write) for write in writes}) < len(writes):
            raise InvalidTransactionError("two writes of one item")
        done_at, done = self._done.get(token or "", (-TOKEN_SECONDS, None))
        if self._now() - done_at < TOKEN_SECONDS:
            if done != writes:
                raise MismatchError("the token stands for other writes")
            return False
        reasons = [self._reason(write) for write in writes]
        if any(reason["Code"] != NO_REASON for reason in reasons):
            raise CancelledError(reasons)
        for write in writes:
            ((kind, parameters),) = write.items()
            if kind in _METHODS:
                getattr(self._table_of(parameters["TableName"]), _METHODS[kind])(**parameters)
        if token is not None:
            self._done[token] = self._now(), list(writes)
        return True

    def _reason(self, write: dict[str, Any]) -> dict[str, Any]:
        if self._place(write) in self._occupied:
            return {"Code": CONFLICT, "Message": "Transaction is ongoing for the item"}
        ((_, parameters),) = write.items()
        try:
            self._table_of(parameters["TableName"]).check(parameters)
        except ConditionFailedError as failed:
            shown = parameters.get("ReturnValuesOnConditionCheckFailure") == "ALL_OLD" and failed.item
            reason = {"Code": "ConditionalCheckFailed", "Message": "The conditional request failed"}
            return {**reason, "Item": failed.item} if shown else reason
        return {"Code": NO_REASON}

    def _place(self, write: dict[str, Any]) -> Place:
        ((_, parameters),) = write.items()
        key: Item = parameters.get("Key") or parameters["Item"]
        name: str = parameters["TableName"]
        return name, self._table_of(name).name_of(key)


def codes_of(reasons: Reasons) -> tuple[str, ...]:
    """Return the codes of some reasons."""
    return tuple(str(each["Code"]) for each in reasons)
