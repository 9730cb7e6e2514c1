"""`DjangoReceipts`: the transaction of a task's body on a Django connection, with the receipt's row in it."""

import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import lru_cache
from typing import Any, Final, Literal, get_args

from django.db import DEFAULT_DB_ALIAS, connections
from django.db.transaction import atomic

from idempotent_tasks.core.receipts import WHOLE_BODY, Receipt, ReceiptsState, TransactionLost
from idempotent_tasks.errors import ConfigurationError, IdempotencyError
from idempotent_tasks.receipts.dialects import Failure
from idempotent_tasks.receipts.table import ReceiptTable, dialect_of, driver_error

__all__ = ["DjangoReceipts", "OnCommit"]

#: What becomes of the hooks that a body registers with ``transaction.on_commit``.
OnCommit = Literal["refuse", "lossy"]

_PARAMETER: Final = re.compile(r":(\w+)")


@lru_cache
def _as_django(statement: str) -> str:
    return _PARAMETER.sub(r"%(\1)s", statement)


class DjangoReceipts:
    """Receipts in a database of a Django project: ``Idempotency(receipts=DjangoReceipts(using="default"))``.

    The body runs in ``atomic(durable=True)`` of that database; what it writes there commits together with the receipt
    of its result, or not at all.  Add ``"idempotent_tasks.receipts.django"`` to ``INSTALLED_APPS`` and migrate.

    Args:
        using: the alias of the database in ``DATABASES``: that of the rows which the body writes, never a replica.
        on_commit: ``refuse`` fails a body that has registered a hook with ``transaction.on_commit``, because a death
            between commit and hook would lose it, and no later run calls it: use ``self.idempotency.after_commit()``.
            ``lossy`` lets such hooks run, once at most.

    Raises:
        ConfigurationError: ``on_commit`` is neither.
    """

    def __init__(self, using: str = DEFAULT_DB_ALIAS, *, on_commit: OnCommit = "refuse") -> None:
        if on_commit not in get_args(OnCommit):
            raise ConfigurationError(f"on_commit={on_commit!r} is not one of {get_args(OnCommit)}")
        self.using = using
        self.on_commit = on_commit

    def __repr__(self) -> str:
        return f"DjangoReceipts(using={self.using!r}, on_commit={self.on_commit!r})"

    def begin(self, receipt: Receipt | None, wait_seconds: float) -> "DjangoTransaction":
        """Open the outermost transaction and lock the receipt's row; see `Receipts.begin`."""
        table = self._table
        with table.beginning():
            transaction = DjangoTransaction(self, table)
            transaction.open(receipt, wait_seconds)
        return transaction

    def look(self) -> ReceiptsState:
        """Return whether receipts can be kept; see `Receipts.look`."""
        own = connections.create_connection(self.using)
        try:
            return self._table.look(lambda statement, parameters: _executed(own, statement, parameters))
        finally:
            own.close()

    def purge(self, before: float) -> int:
        """Delete the rows that have expired before a time in epoch seconds; see `Receipts.purge`."""
        table = self._table
        with table.beginning(), atomic(using=self.using):
            return table.purge(self.execute, before)

    def execute(self, statement: str, parameters: Mapping[str, Any]) -> Sequence[Sequence[Any]]:
        """Run a statement of the table on the thread's connection; return its rows."""
        return _executed(connections[self.using], statement, parameters)

    @property
    def _table(self) -> ReceiptTable:
        connection = connections[self.using]
        kind = "mariadb" if connection.vendor == "mysql" and connection.mysql_is_mariadb else connection.vendor
        return ReceiptTable(dialect_of(kind), f"the database {self.using!r} of Django")


def _executed(connection: Any, statement: str, parameters: Mapping[str, Any]) -> Sequence[Sequence[Any]]:
    with connection.cursor() as cursor:
        cursor.execute(_as_django(statement), parameters or None)
        rows: Sequence[Sequence[Any]] = cursor.fetchall() if cursor.description else ((cursor.rowcount,),)
        return rows


def _is_gone(connection: Any) -> bool:
    """Return whether the driver has noticed that a connection has ended: psycopg says closed, PyMySQL not open."""
    raw = connection.connection
    return connection.closed_in_transaction or bool(getattr(raw, "closed", False)) or not getattr(raw, "open", True)


class DjangoTransaction:
    """One transaction of the current thread's connection; see `ReceiptTransaction`."""

    #: The body has Django's own connection.
    session = None

    def __init__(self, receipts: DjangoReceipts, table: ReceiptTable) -> None:
        self._receipts = receipts
        self._table = table
        self._connection = connections[receipts.using]
        self._atomic = atomic(using=receipts.using, durable=True)
        self._is_open = False
        self._hooks = 0
        self.found: Receipt | None = None

    def open(self, receipt: Receipt | None, wait_seconds: float) -> None:
        """Begin, and write or lock the row."""
        # A connection that was idle since the last task may have been closed by its server.
        if not self._connection.in_atomic_block:
            self._connection.close_if_unusable_or_obsolete()
            if not self._connection.get_autocommit():
                msg = f"the database {self._receipts.using!r} has AUTOCOMMIT off, so that Django commits no transaction"
                raise ConfigurationError(msg)
        try:
            self._atomic.__enter__()
        except RuntimeError as error:
            raise ConfigurationError(self._inside(receipt)) from error
        self._is_open = True
        try:
            if receipt is not None:
                self.found = self._table.lock(self._receipts.execute, receipt, wait_seconds)
            self._hooks = len(self._connection.run_on_commit)
        except BaseException:
            self.rollback()
            raise

    def _inside(self, receipt: Receipt | None) -> str:
        """Return why a transaction cannot begin inside another."""
        what, remedy = "the task", "call it after that transaction, or from transaction.on_commit()"
        if receipt is not None and receipt.step != WHOLE_BODY:
            what, remedy = f"step {receipt.step!r}", "call it before or after that transaction"
        return (
            f"{what} was called inside a transaction of the database {self._receipts.using!r}, whose rollback would "
            f"undo its effect and its receipt although its record says that it is done: {remedy}"
        )

    def flush(self) -> None:
        """Do nothing: Django writes at once."""

    def is_lost(self, error: BaseException) -> bool:
        """Return whether an error is a deadlock, or the connection is gone; see `ReceiptTransaction.is_lost`."""
        return _is_gone(self._connection) or self._table.dialect.failure(driver_error(error)) is Failure.LOST

    def commit(self, receipt: Receipt | None) -> None:
        """Write the receipt and commit; see `ReceiptTransaction.commit`."""
        self._refuse_what_would_be_lost()
        try:
            if receipt is not None:
                self._table.write(self._receipts.execute, receipt)
            self._is_open = False
            self._atomic.__exit__(None, None, None)
        except BaseException as error:
            self.rollback()
            self._close()
            if not isinstance(error, Exception) or isinstance(error, TransactionLost | IdempotencyError):
                raise
            raise self._table.failed(error) from error

    def rollback(self) -> None:
        """Undo what was written; nothing after a commit."""
        if self._is_open:
            self._is_open = False
            error = _RolledBack()
            with suppress(Exception):
                self._atomic.__exit__(_RolledBack, error, None)

    def _refuse_what_would_be_lost(self) -> None:
        if self._connection.needs_rollback:
            msg = (
                "the body has caught an error of the database and gone on, so that its transaction cannot be "
                "committed; catch such errors around a block of atomic() of their own"
            )
            raise ConfigurationError(msg)
        if self._receipts.on_commit == "refuse" and len(self._connection.run_on_commit) > self._hooks:
            msg = (
                "the body has registered a hook with transaction.on_commit(), which a death after the commit would "
                "lose: no later run would call it; use self.idempotency.after_commit(signature), which is sent by "
                "whichever run finds the receipt, or declare DjangoReceipts(on_commit='lossy')"
            )
            raise ConfigurationError(msg)

    def _close(self) -> None:
        """Have the next statement connect anew: nobody knows the state of this connection."""
        # Not inside the transaction that Django's TestCase has around each test.
        if not self._connection.in_atomic_block:
            with suppress(Exception):
                self._connection.close()


class _RolledBack(Exception):  # noqa: N818 - what rolls a block of atomic() back
    """Ends a block of ``atomic()`` without a commit."""
