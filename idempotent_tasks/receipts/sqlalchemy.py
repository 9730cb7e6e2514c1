"""`SQLAlchemyReceipts`: the transaction of a task's body in a SQLAlchemy session, with the receipt's row in it."""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any, Final

import sqlalchemy
from sqlalchemy import BigInteger, Column, Engine, LargeBinary, MetaData, Table, Text, text
from sqlalchemy.dialects import mysql
from sqlalchemy.orm import Session, sessionmaker

from idempotent_tasks.core.receipts import Receipt, ReceiptsState, TransactionLost
from idempotent_tasks.errors import ConfigurationError, IdempotencyError, StoreError
from idempotent_tasks.receipts.dialects import Failure
from idempotent_tasks.receipts.table import KEY_CHARACTERS, TABLE, ReceiptTable, dialect_of, driver_error

__all__ = ["SQLAlchemyReceipts"]

_NUMBERS: Final = ("generation", "fence", "expires_at")
#: SQLAlchemy's names for it.
_MARIADB: Final = ("mysql", "mariadb")
_LONG_TEXT: Final = Text().with_variant(mysql.LONGTEXT(), *_MARIADB)
_NULLABLE: Final = ("status", "codec", "text", "error", "continuation", "following", "inputs")


def _key_type(most: int) -> Any:
    return Text().with_variant(mysql.VARCHAR(most, charset="utf8mb4", collation="utf8mb4_nopad_bin"), *_MARIADB)


class SQLAlchemyReceipts:
    """Receipts in a database behind SQLAlchemy 2: ``Idempotency(receipts=SQLAlchemyReceipts(engine))``.

    The body writes with ``self.idempotency.session``, whose transaction is the library's: what it writes commits
    together with the receipt of its result, or not at all.  ``session.commit()`` in the body commits nothing.

    Args:
        bind: the engine; or a ``sessionmaker`` that is bound to one, for sessions of your own class.  It must be that
            of the database of the rows that the body writes, never of a replica.
        table: the table's name.

    Raises:
        ConfigurationError: ``bind`` is neither, or is bound to no engine.
    """

    def __init__(self, bind: Engine | sessionmaker[Any], table: str = TABLE) -> None:
        self._sessions: sessionmaker[Any] = bind if isinstance(bind, sessionmaker) else sessionmaker()
        engine = bind.kw.get("bind") if isinstance(bind, sessionmaker) else bind
        if not isinstance(engine, Engine):
            msg = (
                f"SQLAlchemyReceipts takes an Engine, or a sessionmaker with bind=engine, not a {type(bind).__name__} "
                f"of {type(engine).__name__}: an async engine, or a scoped session, has none that a task can use"
            )
            raise ConfigurationError(msg)
        self.engine = engine
        #: Has the one table: for Alembic's ``target_metadata``, beside your own.
        self.metadata = MetaData()
        self._table = Table(
            table,
            self.metadata,
            *(Column(name, _key_type(most), primary_key=True) for name, most in KEY_CHARACTERS.items()),
            *(Column(name, BigInteger, nullable=False, index=name == "expires_at") for name in _NUMBERS),
            Column("task_id", Text, nullable=False),
            *(Column(name, _LONG_TEXT) for name in _NULLABLE),
            Column("data", LargeBinary().with_variant(mysql.LONGBLOB(), *_MARIADB)),
            mysql_engine="InnoDB",
        )

    def __repr__(self) -> str:
        return f"SQLAlchemyReceipts({self.engine!r})"

    def create_table(self) -> None:
        """Create the table if it is missing, for tests and small apps; else add `metadata` to your migrations.

        Raises:
            sqlalchemy.exc.SQLAlchemyError: the database does not answer, or refuses.
        """
        self.metadata.create_all(self.engine)

    def begin(self, receipt: Receipt | None, wait_seconds: float) -> "SessionTransaction":
        """Open a transaction and lock the receipt's row; see `Receipts.begin`."""
        rows = self._rows
        with rows.beginning():
            transaction = SessionTransaction(self.engine, self._sessions, rows)
            transaction.open(receipt, wait_seconds)
        return transaction

    def look(self) -> ReceiptsState:
        """Return whether receipts can be kept; see `Receipts.look`."""
        rows = self._rows
        try:
            with rows.beginning(), self.engine.connect() as connection:
                # Not back to the pool, which is the forked children's too.
                connection.detach()
                return rows.look(_executing(connection))
        except (StoreError, TransactionLost) as error:
            return ReceiptsState(error if isinstance(error, StoreError) else None)

    def purge(self, before: float) -> int:
        """Delete the rows that have expired before a time in epoch seconds; see `Receipts.purge`."""
        rows = self._rows
        with rows.beginning(), self.engine.begin() as connection:
            return rows.purge(_executing(connection), before)

    @property
    def _rows(self) -> ReceiptTable:
        url = self.engine.url
        # Not all of it, which may have secrets.
        place = f"the {url.get_backend_name()} database {url.database!r}" + (f" at {url.host}" if url.host else "")
        dialect = self.engine.dialect
        kind = dialect.name
        if kind == "mysql" and (dialect.server_version_info is None or getattr(dialect, "is_mariadb", False)):
            # Which of the two it is, only a connection knows.
            kind = "mariadb"
        return ReceiptTable(dialect_of(kind), place, self._table.name)


class SessionTransaction:
    """One transaction of a connection of the engine, and the session in it; see `ReceiptTransaction`."""

    def __init__(self, engine: Engine, sessions: "sessionmaker[Any]", table: ReceiptTable) -> None:
        self._engine = engine
        self._sessions = sessions
        self._table = table
        self._connection: sqlalchemy.Connection | None = None
        self.session: Session | None = None
        self.found: Receipt | None = None

    def open(self, receipt: Receipt | None, wait_seconds: float) -> None:
        """Begin, and write or lock the row."""
        self._connection = self._engine.connect()
        try:
            self._connection.begin()
            if receipt is not None:
                self.found = self._table.lock(_executing(self._connection), receipt, wait_seconds)
            # Its commit() must leave the transaction open: the receipt has no outcome yet.
            self.session = self._sessions(bind=self._connection, join_transaction_mode="rollback_only")
        except BaseException:
            self.rollback()
            raise

    def flush(self) -> None:
        """Write what the body has added to the session; see `ReceiptTransaction.flush`."""
        assert self.session is not None  # noqa: S101 - it is open
        self.session.flush()

    def is_lost(self, error: BaseException) -> bool:
        """Return whether an error is a deadlock, or the connection is gone; see `ReceiptTransaction.is_lost`."""
        is_gone = self._connection is not None and self._connection.invalidated
        return is_gone or self._table.dialect.failure(driver_error(error)) is Failure.LOST

    def commit(self, receipt: Receipt | None) -> None:
        """Write the receipt and commit; see `ReceiptTransaction.commit`."""
        connection = self._connection
        assert connection is not None  # noqa: S101 - it is open
        if not connection.in_transaction():
            msg = (
                "the body has rolled the transaction of its session back, and the receipt with it: undo a part of the "
                "work with session.begin_nested(), all of it by raising"
            )
            raise ConfigurationError(msg)
        try:
            if receipt is not None:
                self._table.write(_executing(connection), receipt)
            connection.commit()
        except BaseException as error:
            # Nobody knows the state of this connection.
            with suppress(Exception):
                connection.invalidate()
            self.rollback()
            if not isinstance(error, Exception) or isinstance(error, TransactionLost | IdempotencyError):
                raise
            raise self._table.failed(error) from error
        self._close()

    def rollback(self) -> None:
        """Undo what was written; nothing after a commit."""
        if self._connection is not None:
            with suppress(Exception):
                self._connection.rollback()
            self._close()

    def _close(self) -> None:
        session, connection, self.session, self._connection = self.session, self._connection, None, None
        for each in (session, connection):
            if each is not None:
                with suppress(Exception):
                    each.close()


def _executing(connection: sqlalchemy.Connection) -> Any:
    def execute(statement: str, parameters: Mapping[str, Any]) -> Sequence[Sequence[Any]]:
        result = connection.execute(text(statement), dict(parameters))
        return result.fetchall() if result.returns_rows else ((result.rowcount,),)

    return execute
