"""SQL dialects of the receipts' table: the statements that lock and write a row, and what a driver's errors mean.

No statement leaves anything behind in its session, so that a pooler in transaction mode may stand between.
"""

import sqlite3
from collections.abc import Callable, Iterable, Mapping, Sequence
from enum import Enum, auto
from math import ceil
from typing import Any, Final, Protocol

__all__ = ["COLUMNS", "DIALECTS", "Dialect", "Execute", "Failure", "Written", "columns_of", "listed"]

#: Runs a statement with named parameters (``:name``) in the open transaction; returns its rows, or, where it has none,
#: one with the number of those that it has written.
Execute = Callable[[str, Mapping[str, Any]], Sequence[Sequence[Any]]]
#: The columns of one row.
Written = Mapping[str, Any]

#: All columns of the table; the first two are its primary key, the next four are written when a transaction begins.
COLUMNS: Final = (
    *("key", "step"),
    *("generation", "fence", "task_id", "expires_at"),
    *("status", "codec", "text", "data", "error", "continuation", "following", "inputs"),
)
_BEGUN: Final = COLUMNS[:6]


class Failure(Enum):
    """What an error of a driver means for a transaction."""

    #: Another transaction holds the row, or the database, for longer than this one waits.
    HELD = auto()
    #: The database has rolled the transaction back, and says to run it again.
    LOST = auto()
    #: The transaction is to be rolled back, because one of its statements has failed before.
    BROKEN = auto()
    #: The database has answered that it will not, whenever it is asked: no such table, or a constraint of the body's.
    REFUSED = auto()
    #: The database does not answer, or it says anything else.
    UNAVAILABLE = auto()


class Dialect(Protocol):
    """One database's way to lock a row that may not be there yet, for a limited time."""

    #: Quotes a name.
    quote: str
    #: As in `ReceiptsState`.
    idle_statement: str

    def lock(self, execute: Execute, table: str, row: Written, wait_seconds: float) -> Sequence[Any]:
        """Insert a row, or lock that of its key; return the `COLUMNS` of what is there then.

        An insert meets the row of a transaction that is still open, and waits for its end, which no ``SELECT`` does;
        and it reads what is committed, whatever snapshot the transaction has.

        Args:
            execute: runs a statement.
            table: the table's name, quoted.
            row: the first six of `COLUMNS`.
            wait_seconds: for how long another transaction may hold the row.
        """

    def idle_seconds(self, execute: Execute) -> float | None:
        """Return after how many seconds the server ends an idle transaction: 0 for never, None without a server."""

    def problem(self, execute: Execute, table: str) -> str | None:
        """Return why a table that is there cannot keep receipts; None if it can.  Its name is not quoted."""

    def failure(self, error: BaseException) -> Failure:
        """Return what an error of the driver means."""


def listed(names: Iterable[str], form: str) -> str:
    """Return names, each in a form with a place for it, as a list of SQL."""
    return ", ".join(form.format(name) for name in names)


def columns_of(dialect: Dialect, table: str) -> str:
    """Return the list of all columns of a table, whose name is quoted."""
    # SQLite takes a quoted name that is no column for a text, unless its table is named.
    return listed(COLUMNS, f"{table}.{dialect.quote}{{0}}{dialect.quote}")


def _insert(dialect: Dialect, table: str) -> str:
    columns, values = listed(_BEGUN, f"{dialect.quote}{{0}}{dialect.quote}"), listed(_BEGUN, ":{0}")
    return f"INSERT INTO {table} ({columns}) VALUES ({values})"


def _upsert(dialect: Dialect, table: str) -> str:
    # A column of the row itself, so that the row is locked and returned where it is there.
    return (
        f'{_insert(dialect, table)} ON CONFLICT ("key", "step") DO UPDATE SET "fence" = {table}."fence" '
        f"RETURNING {columns_of(dialect, table)}"
    )


class PostgreSQL:
    """PostgreSQL, by the error codes of its appendix (https://www.postgresql.org/docs/current/errcodes-appendix.html)."""

    quote = '"'
    idle_statement = "ALTER ROLE ... SET idle_in_transaction_session_timeout = '{seconds}s'"
    _HELD: Final = ("55P03",)
    #: Of these 25P03 is the end of a transaction that was idle for too long, as that of a process that was frozen.
    _LOST: Final = ("40001", "40P01", "25P03")
    _BROKEN: Final = ("25P02",)
    _UNAVAILABLE: Final = ("08", "53", "55", "57", "58", "XX")

    def lock(self, execute: Execute, table: str, row: Written, wait_seconds: float) -> Sequence[Any]:
        """Insert or lock; ``lock_timeout`` is as before for the statements of the body."""
        limit = f"{max(ceil(wait_seconds * 1000), 1)}ms"
        # OFFSET keeps the reading from being moved behind the setting.
        read = "SELECT current_setting('lock_timeout') AS value OFFSET 0"
        changed = f"SELECT value, set_config('lock_timeout', :limit, true) FROM ({read}) AS before"
        ((before, _),) = execute(changed, {"limit": limit})
        # The outer list is computed from the row that the insert returns, and so after it.
        insert = (
            f"WITH written AS ({_upsert(self, table)}) "
            "SELECT written.*, set_config('lock_timeout', :before, true) FROM written"
        )
        (found,) = execute(insert, {**row, "before": before})
        return found[:-1]

    def idle_seconds(self, execute: Execute) -> float | None:
        """Return the session's ``idle_in_transaction_session_timeout``."""
        name = {"name": "idle_in_transaction_session_timeout"}
        ((milliseconds,),) = execute("SELECT setting FROM pg_settings WHERE name = :name", name)
        return int(milliseconds) / 1000

    def problem(self, execute: Execute, table: str) -> str | None:  # noqa: ARG002 - every table has transactions
        """Return None."""
        return None

    def failure(self, error: BaseException) -> Failure:
        """Return what an error of psycopg or psycopg2 means, by its SQLSTATE."""
        state: str | None = getattr(error, "sqlstate", None) or getattr(error, "pgcode", None)
        if state in self._HELD:
            return Failure.HELD
        if state in self._LOST:
            return Failure.LOST
        if state in self._BROKEN:
            return Failure.BROKEN
        # Without a code it is the connection's.
        is_unavailable = state is None or state.startswith(self._UNAVAILABLE)
        return Failure.UNAVAILABLE if is_unavailable else Failure.REFUSED


class SQLite:
    """SQLite, 3.35 or later, whose writers exclude each other (https://www.sqlite.org/rescode.html)."""

    quote = '"'
    idle_statement = ""
    _HELD: Final = (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)
    #: Of a statement that names what is not there, a file that may not be written, and a constraint.
    _REFUSED: Final = (sqlite3.SQLITE_ERROR, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_PERM, sqlite3.SQLITE_CONSTRAINT)

    def lock(self, execute: Execute, table: str, row: Written, wait_seconds: float) -> Sequence[Any]:
        """Insert or read, which locks the whole database against other writers."""
        ((before,),) = execute("PRAGMA busy_timeout", {})
        execute(f"PRAGMA busy_timeout = {ceil(wait_seconds * 1000)}", {})
        try:
            (found,) = execute(_upsert(self, table), row)
        finally:
            # It belongs to the connection, and no server is between.
            execute(f"PRAGMA busy_timeout = {int(before)}", {})
        return found

    def idle_seconds(self, execute: Execute) -> float | None:  # noqa: ARG002 - there is no server to ask
        """Return None: the locks of a dead process are gone with it."""
        return None

    def problem(self, execute: Execute, table: str) -> str | None:  # noqa: ARG002 - every table has transactions
        """Return None."""
        return None

    def failure(self, error: BaseException) -> Failure:
        """Return what an error of ``sqlite3`` means, by its primary result code."""
        code = getattr(error, "sqlite_errorcode", None)
        if code is None:
            return Failure.UNAVAILABLE
        if code & 0xFF in self._HELD:
            return Failure.HELD
        return Failure.REFUSED if code & 0xFF in self._REFUSED else Failure.UNAVAILABLE


class MariaDB:
    """MariaDB, 10.5 or later, by its error codes (https://mariadb.com/kb/en/mariadb-error-code-reference/)."""

    quote = "`"
    idle_statement = "SET GLOBAL idle_write_transaction_timeout = {seconds}"
    _HELD: Final = (1205,)
    #: A deadlock, and a row that was changed behind a snapshot.
    _LOST: Final = (1213, 1020)
    #: Of the client (2000 to 2999), of a server that takes no more connections, that is going down, or that has ended
    #: this one.
    _UNAVAILABLE: Final = (1040, 1053, 1080, 1152, 1153, 1158, 1159, 1160, 1161, 1203, 1226, 1927)
    _CLIENT: Final = range(2000, 3000)

    def lock(self, execute: Execute, table: str, row: Written, wait_seconds: float) -> Sequence[Any]:
        """Insert or lock; InnoDB waits for whole seconds, or not at all."""
        upsert = (
            f"SET STATEMENT innodb_lock_wait_timeout = {int(wait_seconds)} FOR {_insert(self, table)} "
            f"ON DUPLICATE KEY UPDATE `fence` = `fence` RETURNING {columns_of(self, table)}"
        )
        (found,) = execute(upsert, row)
        return found

    def idle_seconds(self, execute: Execute) -> float | None:
        """Return the shorter one of the session's time-outs of idle transactions that write."""
        ((any_kind, writing),) = execute("SELECT @@idle_transaction_timeout, @@idle_write_transaction_timeout", {})
        return float(min(filter(None, (any_kind, writing)), default=0))

    def problem(self, execute: Execute, table: str) -> str | None:
        """Return that the table's engine has no transactions, as MyISAM has none."""
        engine = "SELECT ENGINE FROM information_schema.TABLES WHERE TABLE_SCHEMA = DATABASE() AND TABLE_NAME = :name"
        found = execute(engine, {"name": table})
        name = found[0][0] if found else None
        return None if name == "InnoDB" else f"is of the engine {name}, which has no transactions: ALTER it to InnoDB"

    def failure(self, error: BaseException) -> Failure:
        """Return what an error of PyMySQL, mysqlclient or MariaDB's connector means, by its number."""
        number = next((each for each in error.args[:1] if isinstance(each, int)), getattr(error, "errno", None))
        if number in self._HELD:
            return Failure.HELD
        if number in self._LOST:
            return Failure.LOST
        is_unavailable = not number or number in self._UNAVAILABLE or number in self._CLIENT
        return Failure.UNAVAILABLE if is_unavailable else Failure.REFUSED


#: By name.
DIALECTS: Final[Mapping[str, Dialect]] = {"mariadb": MariaDB(), "postgresql": PostgreSQL(), "sqlite": SQLite()}
