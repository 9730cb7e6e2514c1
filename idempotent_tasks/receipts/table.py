"""The receipts' table: rows to and from `Receipt`, and the library's errors for those of a database's driver."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

from idempotent_tasks.core.receipts import Receipt, ReceiptsState, TransactionLost
from idempotent_tasks.core.records import Outcome, Status, step_id
from idempotent_tasks.errors import ConfigurationError, StoreError, StoreMisconfiguredError, StoreUnavailableError
from idempotent_tasks.receipts.dialects import COLUMNS, DIALECTS, Dialect, Execute, Failure, Written, columns_of

__all__ = ["KEY_CHARACTERS", "TABLE", "ReceiptTable", "dialect_of"]

#: The table's name, unless the user gives another.
TABLE: Final = "idempotency_receipts"
#: The columns of the primary key, with the most characters that MariaDB's largest index takes of them together.
KEY_CHARACTERS: Final = {"key": 640, "step": 128}
#: What creates the table, for the error of a database that has none.
_REMEDY: Final = "run `manage.py migrate`, or SQLAlchemyReceipts(...).create_table()"
#: Why a transaction cannot be committed whose body has swallowed an error.
_SWALLOWED: Final = (
    "the body has caught an error of the database and gone on, so that its transaction cannot be committed; catch such "
    "errors around a savepoint: a block of atomic() in Django, session.begin_nested() in SQLAlchemy"
)
#: Why a receipt has no row to be written into.
_ENDED: Final = (
    "the body has gone on after the end of its transaction, and its receipt is gone: after a ROLLBACK, or, in MariaDB, "
    "after a deadlock whose error it has caught; undo a part of the work with a savepoint, all of it by raising"
)


def dialect_of(name: str) -> Dialect:
    """Return the dialect of a kind of database.

    Raises:
        ConfigurationError: receipts cannot be kept there.
    """
    if name not in DIALECTS:
        raise ConfigurationError(f"receipts cannot be kept in a database of kind {name!r}: one of {sorted(DIALECTS)}")
    return DIALECTS[name]


@dataclass(frozen=True, slots=True)
class ReceiptTable:
    """The statements of one table."""

    dialect: Dialect
    #: For messages: where the table is.
    place: str
    name: str = TABLE

    def lock(self, execute: Execute, receipt: Receipt, wait_seconds: float) -> Receipt | None:
        """Write a receipt's row without its outcome, or lock the row that is there.

        Returns:
            That row if it is committed, of the same or a larger generation; None if this transaction may write its own.
        """
        begun = dict(zip(COLUMNS, self.dialect.lock(execute, self._quoted, _begun(receipt), wait_seconds), strict=True))
        if begun["generation"] < receipt.generation or begun["status"] is None:
            return None
        return _receipt(begun)

    def write(self, execute: Execute, receipt: Receipt) -> None:
        """Write all of a receipt into the row that this transaction has locked.

        Raises:
            TransactionLost: nothing is committed.
            ConfigurationError: the body has gone on after an error, or after the end of its transaction.
            StoreMisconfiguredError: the row does not fit into the table.
        """
        row = {**_begun(receipt), **_outcome(receipt)}
        key, step, *others = (f"{self._form.format(name)} = :{name}" for name in COLUMNS)
        # Not one that another run has committed, since this one's transaction has ended.
        mine = "(status IS NULL OR generation < :generation)"
        statement = f"UPDATE {self._quoted} SET {', '.join(others)} WHERE {key} AND {step} AND {mine}"
        try:
            ((written,),) = execute(statement, row)
        except Exception as error:
            raise self._unwritten(error) from error
        if not written:
            raise ConfigurationError(_ENDED)

    def purge(self, execute: Execute, before: float) -> int:
        """Delete the rows that have expired before a time in epoch seconds; return how many."""
        deleted = f"DELETE FROM {self._quoted} WHERE expires_at < :before RETURNING expires_at"
        return len(execute(deleted, {"before": int(before)}))

    def look(self, execute: Execute) -> ReceiptsState:
        """Return whether the table is there; see `Receipts.look`."""
        try:
            with self.beginning():
                execute(f"SELECT {columns_of(self.dialect, self._quoted)} FROM {self._quoted} WHERE 1 = 0", {})
                problem = self.dialect.problem(execute, self.name)
                if problem is not None:
                    raise StoreMisconfiguredError(f"the table {self.name!r} in {self.place} {problem}")
                seconds = self.dialect.idle_seconds(execute)
                return ReceiptsState(idle_seconds=seconds, idle_statement=self.dialect.idle_statement)
        except StoreError as error:
            return ReceiptsState(error)

    @contextmanager
    def beginning(self) -> Iterator[None]:
        """Turn what a driver raises before the body into the library's errors.

        Raises:
            TransactionLost, StoreUnavailableError, StoreMisconfiguredError: as `Receipts.begin`.
        """
        try:
            yield
        except (TransactionLost, StoreError, ConfigurationError):
            raise
        except Exception as error:
            raise self._error(error) from error

    def _error(self, error: Exception) -> Exception:
        what = _named(error)
        match self.dialect.failure(driver_error(error)):
            case Failure.LOST:
                return TransactionLost(error)
            case Failure.HELD:
                return StoreUnavailableError(
                    f"another transaction has held the key's receipt in {self.place} for too long ({what}); that of a "
                    "dead host ends with the database's idle-transaction time-out"
                )
            case Failure.REFUSED:
                return StoreMisconfiguredError(
                    f"{self.place} has no table {self.name!r} of this version, or it may not be written ({what}): "
                    f"{_REMEDY}"
                )
        return StoreUnavailableError(f"{self.place}, which keeps the receipts, does not answer ({what})")

    def _unwritten(self, error: Exception) -> Exception:
        match self.dialect.failure(driver_error(error)):
            case Failure.BROKEN:
                return ConfigurationError(_SWALLOWED)
            case Failure.REFUSED:
                # Not the driver's text, which may quote the result.
                return StoreMisconfiguredError(f"{self.place} does not take the receipt ({_named(error)}): {_REMEDY}")
        return TransactionLost(error)

    def failed(self, error: Exception) -> Exception:
        """Return what an error of ``COMMIT`` means for its run.

        Returns:
            `TransactionLost`; or the error itself, where the database says that it is one of the body's rows, such as
            a constraint that is checked at the end.
        """
        match self.dialect.failure(driver_error(error)):
            case Failure.REFUSED:
                return error
            case Failure.LOST | Failure.HELD | Failure.BROKEN:
                return TransactionLost(error)
        return TransactionLost(error, is_certain=False)

    @property
    def _form(self) -> str:
        return f"{self.dialect.quote}{{0}}{self.dialect.quote}"

    @property
    def _quoted(self) -> str:
        return self._form.format(self.name.replace(self.dialect.quote, self.dialect.quote * 2))


def driver_error(error: BaseException) -> BaseException:
    """Return what the driver itself has raised: Django has it as the cause, SQLAlchemy as ``orig``."""
    return getattr(error, "orig", None) or error.__cause__ or error


def _named(error: Exception) -> str:
    """Return the type and code of a driver's error, without its text."""
    origin = driver_error(error)
    codes = (getattr(origin, name, None) for name in ("sqlstate", "sqlite_errorname"))
    number = next((each for each in origin.args[:1] if isinstance(each, int)), None)
    code = next(filter(None, codes), number)
    return type(origin).__name__ + (f" {code}" if code else "")


def _begun(receipt: Receipt) -> Written:
    return {**{name: getattr(receipt, name) for name in COLUMNS[:6]}, "step": _step_column(receipt.step)}


def _step_column(name: str) -> str:
    """Return a step's name as its column has it: one that is too long for that ends in its digest."""
    most, digest = KEY_CHARACTERS["step"], step_id(name)
    return name if len(name) <= most else f"{name[: most - len(digest) - 1]}#{digest}"


def _outcome(receipt: Receipt) -> Written:
    outcome = receipt.outcome
    assert outcome is not None  # noqa: S101 - only a committed row is written
    is_text = isinstance(outcome.data, str)
    return {
        "status": outcome.status.value,
        "codec": outcome.codec,
        "text": outcome.data if is_text else None,
        "data": None if is_text else outcome.data,
        "error": outcome.error,
        "continuation": outcome.continuation,
        "following": json.dumps(list(receipt.following)) if receipt.following else None,
        "inputs": receipt.inputs,
    }


def _receipt(row: Written) -> Receipt:
    data: Any = row["text"] if row["data"] is None else bytes(row["data"])
    outcome = Outcome(
        status=Status(row["status"]),
        codec=row["codec"],
        data=data,
        error=row["error"],
        continuation=row["continuation"],
    )
    return Receipt(
        key=row["key"],
        step=row["step"],
        generation=row["generation"],
        fence=row["fence"],
        task_id=row["task_id"],
        outcome=outcome,
        inputs=row["inputs"],
        following=tuple(json.loads(row["following"])) if row["following"] else (),
        expires_at=row["expires_at"],
    )
