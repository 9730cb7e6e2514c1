"""Receipts for tests: a database in memory that loses what a test wants lost, and banks in real databases."""

import json
import threading
import time
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final, Protocol
from uuid import uuid4

from idempotent_tasks import MemoryStore
from idempotent_tasks.core.guard import Guard
from idempotent_tasks.core.lease import RunContext
from idempotent_tasks.core.receipts import WHOLE_BODY, Following, Receipt, Receipts, ReceiptsState, TransactionLost
from idempotent_tasks.core.records import Claim
from idempotent_tasks.receipts.dialects import DIALECTS
from idempotent_tasks.testing import FakeClock
from tests.support.guarding import KEY, Bench, done
from tests.testbed.servers import postgresql_database

__all__ = [
    "BOUND_SECONDS",
    "KINDS",
    "MARIADB",
    "POSTGRESQL",
    "SERVERS",
    "Bank",
    "DjangoBank",
    "MemoryReceipts",
    "Place",
    "SQLAlchemyBank",
    "Sent",
    "Teller",
    "address_of",
    "committed",
    "connection_of",
    "elsewhere",
    "finished",
    "idle",
    "is_connected",
    "lost",
    "new_database",
    "read_by",
    "repeatable_read",
    "row",
    "running",
    "until",
]

BOUND_SECONDS: Final = 20.0
#: Longer than a claim lives.
LATER_SECONDS: Final = 60.0
#: Kinds of banks: the library and the database.
POSTGRESQL: Final = ["django-postgresql", "sqlalchemy-postgresql"]
MARIADB: Final = ["django-mariadb", "sqlalchemy-mariadb"]
SERVERS: Final = [*POSTGRESQL, *MARIADB]
KINDS: Final = [*SERVERS, "django-sqlite", "sqlalchemy-sqlite"]


@dataclass
class Sent(Following):
    """What was sent after transactions, in order; the broker fails as often as a test says."""

    texts: list[str] = field(default_factory=list)
    failures: int = 0

    def encode(self, signatures: Sequence[Any], claim: Claim, step: str = WHOLE_BODY) -> Sequence[str]:
        """Return JSON with the key's generation."""
        place = [claim.key, claim.generation, *([step] if step else [])]
        return [json.dumps({**signature, "of": place}) for signature in signatures]

    def send(self, texts: Sequence[str]) -> None:
        """Note the texts, or fail."""
        if self.failures:
            self.failures -= 1
            raise ConnectionError("the broker is away")
        self.texts += texts


class MemoryReceipts(Receipts):
    """One table in memory, and the effects that were committed with its rows."""

    def __init__(self) -> None:
        self.rows: dict[tuple[str, str], Receipt] = {}
        self.effects: list[Any] = []
        #: What happens at the next beginnings, and before and after the next commits; None for nothing.
        self.at_begin: list[BaseException | Callable[[], None] | None] = []
        self.before_commit: list[BaseException] = []
        self.after_commit: list[BaseException] = []
        #: For how long each transaction would have waited.
        self.waits: list[float] = []
        self.open = 0

    def begin(self, receipt: Receipt | None, wait_seconds: float) -> "MemoryTransaction":
        """Open a transaction."""
        self.waits.append(wait_seconds)
        planned = self.at_begin.pop(0) if self.at_begin else None
        if isinstance(planned, BaseException):
            raise planned
        if planned is not None:
            planned()
        self.open += 1
        return MemoryTransaction(self, receipt)

    def look(self) -> ReceiptsState:
        """Find nothing wrong."""
        return ReceiptsState()

    def purge(self, before: float) -> int:
        """Delete what has expired."""
        old = [place for place, row in self.rows.items() if row.expires_at < before]
        for place in old:
            del self.rows[place]
        return len(old)


class MemoryTransaction:
    """A transaction of `MemoryReceipts`; its session is the list of its effects."""

    def __init__(self, receipts: MemoryReceipts, receipt: Receipt | None) -> None:
        self._receipts = receipts
        self._is_open = True
        self.session: list[Any] = []
        self.flushed = False
        row = None if receipt is None else receipts.rows.get((receipt.key, receipt.step))
        self.found = row if receipt is not None and row is not None and row.generation >= receipt.generation else None

    def flush(self) -> None:
        """Note that the body is over."""
        self.flushed = True

    def is_lost(self, error: BaseException) -> bool:
        """Take a `TimeoutError` for a deadlock."""
        return isinstance(error, TimeoutError)

    def commit(self, receipt: Receipt | None) -> None:
        """Commit the effects with the row, unless a test wants it otherwise."""
        receipts = self._receipts
        if receipts.before_commit:
            raise receipts.before_commit.pop(0)
        assert self._is_open
        receipts.effects += self.session
        if receipt is not None:
            receipts.rows[receipt.key, receipt.step] = receipt
        self._end()
        if receipts.after_commit:
            raise receipts.after_commit.pop(0)

    def rollback(self) -> None:
        """Forget the effects."""
        if self._is_open:
            self._end()

    def _end(self) -> None:
        self._is_open = False
        self._receipts.open -= 1


class Bank(Protocol):
    """A real database with receipts and a table of deposits."""

    receipts: Any
    #: Django's and SQLAlchemy's name for the kind of its database.
    dialect: str

    @abstractmethod
    def create_table(self) -> None:
        """Create the table of receipts."""

    @abstractmethod
    def deposit(self, run: RunContext, amount: int) -> int:
        """Write a deposit in the transaction of a run; return it."""

    @abstractmethod
    def deposits(self) -> list[int]:
        """Return the deposits that are committed, in order."""

    @property
    def rows_statement(self) -> str:
        """Reads the receipts."""
        quote = DIALECTS[self.dialect].quote
        names = (f"{quote}{name}{quote}" for name in ("key", "status", "text"))
        return f"SELECT {', '.join(names)} FROM idempotency_receipts"

    @abstractmethod
    def rows(self) -> list[tuple[Any, ...]]:
        """Return key, status and text of each receipt."""

    @abstractmethod
    def execute(self, run: RunContext, statement: str) -> Sequence[Any]:
        """Run a statement in the transaction of a run; return its rows."""

    @abstractmethod
    def close(self) -> None:
        """Close this thread's connections."""


class SQLAlchemyBank(Bank):
    """A bank behind SQLAlchemy."""

    def __init__(self, place: "Place", **options: Any) -> None:
        import sqlalchemy

        from idempotent_tasks.receipts.sqlalchemy import SQLAlchemyReceipts

        self._text = sqlalchemy.text
        self.engine = sqlalchemy.create_engine(place.url, **options)
        self.receipts = SQLAlchemyReceipts(self.engine)
        self.dialect = self.engine.dialect.name
        with self.engine.begin() as connection:
            connection.execute(self._text("CREATE TABLE IF NOT EXISTS deposits (amount INTEGER)"))

    def create_table(self) -> None:
        """Create the table of receipts."""
        self.receipts.create_table()

    def enforce_foreign_keys(self) -> None:
        """Have SQLite check them on every connection from now on."""
        import sqlalchemy

        self.engine.dispose()
        sqlalchemy.event.listen(self.engine, "connect", lambda each, _: each.execute("PRAGMA foreign_keys = ON"))

    def deposit(self, run: RunContext, amount: int) -> int:
        """Write a deposit."""
        run.session.execute(self._text("INSERT INTO deposits VALUES (:amount)"), {"amount": amount})
        return amount

    def deposits(self) -> list[int]:
        """Return the deposits."""
        return [row[0] for row in self._read("SELECT amount FROM deposits ORDER BY amount")]

    def rows(self) -> list[tuple[Any, ...]]:
        """Return the receipts."""
        return [tuple(row) for row in self._read(self.rows_statement)]

    def execute(self, run: RunContext, statement: str) -> Sequence[Any]:
        """Run a statement."""
        result = run.session.execute(self._text(statement))
        return list(result.fetchall()) if result.returns_rows else []

    def _read(self, statement: str) -> Sequence[Any]:
        with self.engine.connect() as connection:
            return connection.execute(self._text(statement)).fetchall()

    def close(self) -> None:
        """Close the pool."""
        self.engine.dispose()


class DjangoBank(Bank):
    """A bank behind a database alias of Django, which is configured once a process."""

    def __init__(self, place: "Place", **options: Any) -> None:
        import django
        import pymysql
        from django.conf import settings
        from django.db import connections

        # Django takes no other driver.
        pymysql.install_as_MySQLdb()
        if not settings.configured:
            databases = {"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"}}
            settings.configure(DATABASES=databases, LOGGING_CONFIG=None)
            django.setup()
        from idempotent_tasks.receipts.django import DjangoReceipts

        default = connections.databases["default"]
        alias = f"db-{uuid4().hex[:12]}"
        configured = connections.configure_settings({"default": default, alias: {**place.settings, **options}})
        connections.databases[alias] = configured[alias]
        self.alias = alias
        self._connections = connections
        self.receipts = DjangoReceipts(using=alias)
        self.dialect = {"mysql": "mariadb"}.get(connections[alias].vendor, connections[alias].vendor)
        self.sql("CREATE TABLE IF NOT EXISTS deposits (amount INTEGER)")

    def create_table(self) -> None:
        """Create the table of receipts, as its migration does."""
        from importlib import import_module

        from django.db.migrations.state import ProjectState

        module = import_module("idempotent_tasks.receipts.django.migrations.0001_receipt")
        migration = module.Migration("0001_receipt", "idempotency_receipts")
        with self._connections[self.alias].schema_editor() as editor:
            migration.apply(ProjectState(), editor)

    def deposit(self, run: RunContext, amount: int) -> int:
        """Write a deposit."""
        self.sql("INSERT INTO deposits VALUES (%s)", [amount])
        return amount

    def deposits(self) -> list[int]:
        """Return the deposits."""
        return [row[0] for row in self.sql("SELECT amount FROM deposits ORDER BY amount")]

    def rows(self) -> list[tuple[Any, ...]]:
        """Return the receipts."""
        return [tuple(row) for row in self.sql(self.rows_statement)]

    def execute(self, run: RunContext, statement: str) -> Sequence[Any]:
        """Run a statement."""
        return self.sql(statement)

    def sql(self, statement: str, parameters: Sequence[Any] | None = None) -> Sequence[Any]:
        """Run a statement on this thread's connection; return its rows."""
        with self._connections[self.alias].cursor() as cursor:
            cursor.execute(statement, parameters)
            return list(cursor.fetchall()) if cursor.description else []

    def close(self) -> None:
        """Close this thread's connection."""
        self._connections[self.alias].close()


@dataclass(frozen=True)
class Place:
    """A database of a test: how SQLAlchemy and Django find it."""

    #: Of SQLAlchemy, without the address and the name.
    scheme: str
    #: Of Django.
    engine: str
    #: The database's name, or its file.
    name: str
    host: str = ""
    port: int = 0
    user: str = ""

    def at(self, port: int | None) -> "Place":
        """Return the same database at another port, if one is given."""
        return self if port is None else replace(self, port=port)

    @property
    def url(self) -> str:
        """SQLAlchemy's URL."""
        address = f"{self.user}@{self.host}:{self.port}" if self.host else ""
        return f"{self.scheme}://{address}/{self.name}"

    @property
    def settings(self) -> dict[str, Any]:
        """Django's settings."""
        address = {"HOST": self.host, "PORT": self.port, "USER": self.user}
        return {"ENGINE": f"django.db.backends.{self.engine}", "NAME": self.name, **(address if self.host else {})}


@contextmanager
def new_database(kind: str, server: Mapping[str, Any] | None, directory: Path) -> Iterator[Place]:
    """Create a database for the length of a block.

    Args:
        kind: ``postgresql``, ``mariadb`` or ``sqlite``.
        server: what the fixture of that name has; None for SQLite.
        directory: of SQLite's file.
    """
    name = f"receipts-{uuid4().hex[:12]}"
    if server is None:
        yield Place("sqlite", "sqlite3", str(directory / "receipts.sqlite3"))
        return
    if kind == "postgresql":
        place = Place(
            "postgresql+psycopg", "postgresql", name, server["PGHOST"], int(server["PGPORT"]), server["PGUSER"]
        )
        with postgresql_database(server, name):
            yield place
        return
    execute = _in_mariadb(server)
    execute(f"CREATE DATABASE `{name}`")
    try:
        yield Place("mariadb+pymysql", "mysql", name, server["host"], server["port"], server["user"])
    finally:
        execute(f"DROP DATABASE `{name}`")


def _in_mariadb(server: Mapping[str, Any]) -> Callable[[str], None]:
    import pymysql

    def execute(statement: str) -> None:
        with closing(pymysql.connect(**server)) as connection, connection.cursor() as cursor:
            cursor.execute(statement)

    return execute


def lost(error: BaseException | None = None, *, is_certain: bool = True) -> TransactionLost:
    """Return what a database says of a transaction that it has lost."""
    return TransactionLost(error or TimeoutError("a deadlock"), is_certain=is_certain)


def row(generation: int = 5, fence: int = 7, key: str = KEY) -> Receipt:
    """Return a receipt without an outcome."""
    return Receipt(key=key, generation=generation, fence=fence, task_id="id-one", expires_at=2_000_000_000)


def finished(data: str = '"done"', **given: Any) -> Receipt:
    """Return a receipt with an outcome."""
    return replace(row(**given), outcome=done(data))


def running(transaction: Any) -> Any:
    """Return what has a transaction's session, as a run in it has."""

    class Run:
        session = transaction.session

    return Run


def committed(bank: Any, *statements: str) -> None:
    """Run statements in a transaction of their own."""
    transaction = bank.receipts.begin(None, 0)
    for statement in statements:
        bank.execute(running(transaction), statement)
    transaction.commit(None)


def connection_of(bank: Any, run: Any) -> int:
    """Return the server's number of the connection of a run."""
    mine = "pg_backend_pid()" if bank.dialect == "postgresql" else "connection_id()"
    ((number,),) = bank.execute(run, f"SELECT {mine}")
    return int(number)


def is_connected(bank: Any, number: int) -> bool:
    """Return whether a server has a connection, as seen by another one."""
    seen = "pg_stat_activity WHERE pid" if bank.dialect == "postgresql" else "information_schema.processlist WHERE id"
    return read_by(bank, f"SELECT 1 FROM {seen} = {number}") != []


def read_by(bank: Any, statement: str) -> list[Any]:
    """Return the rows of a statement that has a transaction of its own."""
    transaction = bank.receipts.begin(None, 0)
    rows = list(bank.execute(running(transaction), statement))
    transaction.commit(None)
    return rows


def elsewhere(bank: Any, *statements: str) -> None:
    """Run statements on a connection of another thread."""

    def run() -> None:
        committed(bank, *statements)
        bank.close()

    with ThreadPoolExecutor(1) as executor:
        executor.submit(run).result(BOUND_SECONDS)


def until(condition: Callable[[], bool]) -> None:
    """Wait for a condition."""
    end = time.monotonic() + BOUND_SECONDS
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.01)


def address_of(server: Mapping[str, Any]) -> str:
    """Return the URL of a server of banks, by what its fixture has."""
    return f"tcp://{server.get('PGHOST', server.get('host'))}:{server.get('PGPORT', server.get('port'))}"


def idle(kind: str, seconds: int) -> dict[str, Any]:
    """Return the options of a bank whose sessions have an idle-transaction time-out."""
    if kind in MARIADB:
        given = {"init_command": f"SET SESSION idle_write_transaction_timeout = {seconds}"}
    else:
        given = {"options": f"-c idle_in_transaction_session_timeout={seconds}s"}
    return {"OPTIONS": given} if kind.startswith("django") else {"connect_args": given}


def repeatable_read(kind: str) -> dict[str, Any]:
    """Return what has a bank's connections read one snapshot for each transaction."""
    if kind == "django-mariadb":
        return {"OPTIONS": {"isolation_level": "repeatable read"}}
    if kind.startswith("django"):
        from psycopg import IsolationLevel

        return {"OPTIONS": {"isolation_level": IsolationLevel.REPEATABLE_READ}}
    return {"isolation_level": "REPEATABLE READ"}


class Teller:
    """A guard of one key over a bank."""

    def __init__(self, bank: Bank, **policy: Any) -> None:
        self.bank = bank
        self.sent = Sent()
        self.clock = FakeClock()
        self.bench = Bench(MemoryStore(clock=self.clock))
        self.runs = 0
        self.policy = policy

    @property
    def guard(self) -> Guard:
        """A guard with the bank's receipts."""
        return self.bench.guard(following=self.sent, receipts=self.bank.receipts, **self.policy)

    def deliver(self, body: Callable[[RunContext], Any] | None = None, owner: str = "one", **given: Any) -> Any:
        """Deliver once; the body deposits the number of the run, and goes on as given."""

        def deposit(run: RunContext) -> Any:
            self.runs += 1
            number = self.bank.deposit(run, self.runs)
            return number if body is None else body(run)

        return self.bench.deliver(owner, deposit, guard=self.guard, **given)

    def expire(self) -> None:
        """Let every claim end, as those of processes that stand still."""
        self.clock.advance(LATER_SECONDS)

    def zombie_first(self, pool: Callable[..., "Future[Any]"]) -> tuple[Any, Any]:
        """Let a run stand still in its transaction past its claim, and go on when its successor waits for its row.

        Returns:
            What each was answered, the zombie first.
        """
        begun, go_on = threading.Event(), threading.Event()

        def stand_still(_: RunContext) -> str:
            begun.set()
            assert go_on.wait(BOUND_SECONDS)
            return "first"

        zombie = pool(lambda: self.deliver(stand_still, "zombie"))
        assert begun.wait(BOUND_SECONDS)
        self.expire()
        successor = pool(lambda: self.deliver(lambda _: "second", "successor"))
        until(lambda: self.bench.events().count("Claimed") == 2)
        go_on.set()
        return zombie.result(BOUND_SECONDS), successor.result(BOUND_SECONDS)

    def zombie_last(self) -> tuple[Any, Any]:
        """Let a run stand still before its transaction, until its successor has committed; return what each got."""
        begin, successors = self.bank.receipts.begin, []

        def begin_late(receipt: Receipt, wait_seconds: float) -> Any:
            self.bank.receipts.begin = begin
            self.expire()
            successors.append(self.deliver(lambda _: "second", "successor"))
            return begin(receipt, wait_seconds)

        self.bank.receipts.begin = begin_late
        zombie = self.deliver(lambda _: "first", "zombie")
        (successor,) = successors
        return zombie, successor
