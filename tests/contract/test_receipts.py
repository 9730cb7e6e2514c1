"""Receipts in real databases, through Django and SQLAlchemy: who waits for whom, and what is committed in the end."""

import threading
import unittest
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from itertools import count
from types import SimpleNamespace
from typing import Any, ClassVar
from uuid import uuid4

import pytest
from celery import Celery
from click.testing import CliRunner, Result

from idempotent_tasks import (
    Atomic,
    ConfigurationError,
    DynamoDBStore,
    Idempotency,
    IdempotentTask,
    MemoryStore,
    StoreMisconfiguredError,
    StoreUnavailableError,
)
from idempotent_tasks.checks import CheckContext, Finding
from idempotent_tasks.checks.receipts import RECEIPT_FINDINGS, check_receipts
from idempotent_tasks.cli import idempotency
from idempotent_tasks.core.clock import SystemClock
from idempotent_tasks.core.guard import Failed, Replayed, Returned, Unwritten
from idempotent_tasks.core.lease import RunContext
from idempotent_tasks.core.receipts import Receipt
from idempotent_tasks.core.records import Record
from idempotent_tasks.core.retry import while_lost
from idempotent_tasks.receipts.dialects import DIALECTS
from idempotent_tasks.stores.dynamodb.admin import TableAdmin
from tests.contract.conftest import MakeBank
from tests.support.guarding import KEY, Bench, done, grant
from tests.support.receipts import (
    BOUND_SECONDS,
    KINDS,
    MARIADB,
    POSTGRESQL,
    SERVERS,
    Bank,
    DjangoBank,
    SQLAlchemyBank,
    Teller,
    address_of,
    committed,
    connection_of,
    elsewhere,
    finished,
    idle,
    is_connected,
    read_by,
    repeatable_read,
    row,
    running,
    until,
)
from tests.testbed.tcp import tcp_to
from tests.testbed.wire import Wire


class TestTheRow:
    """What `Receipts.begin` finds."""

    def test_nothing(self, bank: Bank) -> None:
        """Until a transaction has committed its outcome."""
        for _ in range(2):
            transaction = bank.receipts.begin(row(), 1)
            assert transaction.found is None
            transaction.rollback()
        assert bank.rows() == []

    def test_what_was_committed(self, bank: Bank) -> None:
        """All of it: texts and bytes, and what must follow."""
        in_bytes = replace(done(), data=b"\0\xff", error="no", continuation="{}")
        followed = replace(finished(), following=("a", "ü"))
        for number, receipt in enumerate((finished('"ü"'), replace(finished(), outcome=in_bytes), followed)):
            mine = replace(receipt, key=f"key-{number}")
            bank.receipts.begin(row(key=mine.key), 1).commit(mine)
            transaction = bank.receipts.begin(row(key=mine.key, fence=8), 1)
            assert transaction.found == mine
            transaction.rollback()

    @pytest.mark.parametrize(("generation", "found"), [(4, True), (5, True), (6, False)])
    def test_the_generation_decides(self, bank: Bank, generation: int, found: bool) -> None:
        """A smaller one is written over, an equal one is replayed, a larger one supersedes."""
        bank.receipts.begin(row(), 1).commit(finished())
        transaction = bank.receipts.begin(row(generation, fence=1), 1)
        assert (transaction.found == finished()) is found
        if not found:
            transaction.commit(finished('"later"', generation=generation))
            assert bank.rows() == [(KEY, "COMPLETED", '"later"')]
        transaction.rollback()

    def test_other_keys_and_steps_are_other_rows(self, bank: Bank) -> None:
        """Also where they differ in case only, or by a blank at the end."""
        bank.receipts.begin(row(key="Order"), 1).commit(finished(key="Order"))
        for other in (row(key="order"), row(key="Order "), replace(row(key="Order"), step="mail")):
            transaction = bank.receipts.begin(other, 1)
            assert transaction.found is None
            transaction.rollback()

    def test_what_has_expired_is_purged(self, bank: Bank) -> None:
        """The rest stays."""
        for key, expires_at in (("old", 100), ("new", 300)):
            bank.receipts.begin(row(key=key), 1).commit(replace(finished(key=key), expires_at=expires_at))
        assert bank.receipts.purge(200.5) == 1
        assert bank.rows() == [("new", "COMPLETED", '"done"')]

    def test_a_run_without_a_record_has_no_row(self, bank: Bank) -> None:
        """Its body has a transaction all the same."""
        for end, deposits in (("rollback", []), ("commit", [1])):
            transaction = bank.receipts.begin(None, 0)
            bank.deposit(running(transaction), 1)
            transaction.flush()
            transaction.commit(None) if end == "commit" else transaction.rollback()
            assert (bank.deposits(), bank.rows()) == (deposits, [])


class TestTwoRuns:
    """A zombie and its successor meet at the row, in both orders."""

    @pytest.mark.parametrize("first_commits", [True, False])
    def test_the_second_waits_for_the_first(
        self, bank: Bank, pool: Callable[..., "Future[Any]"], first_commits: bool
    ) -> None:
        """It finds what that has committed; and writes its own if that was rolled back."""
        first, locked = bank.receipts.begin(row(fence=7), 1), threading.Event()

        def second() -> Receipt | None:
            locked.set()
            transaction = bank.receipts.begin(row(fence=8), BOUND_SECONDS)
            found: Receipt | None = transaction.found
            transaction.rollback()
            return found

        waiting = pool(second)
        assert locked.wait(BOUND_SECONDS)
        bank.deposit(running(first), 1)
        assert not waiting.done()
        first.commit(finished()) if first_commits else first.rollback()
        assert waiting.result(BOUND_SECONDS) == (finished() if first_commits else None)
        assert bank.deposits() == ([1] if first_commits else [])

    def test_a_zombie_that_comes_first(self, bank: Bank, pool: Callable[..., "Future[Any]"]) -> None:
        """Its claim was taken over while its body ran: its successor waits, and has its result."""
        teller = Teller(bank)
        zombie, successor = teller.zombie_first(pool)
        assert successor == Replayed("first")
        assert (teller.runs, bank.deposits()) == (1, [1])
        assert type(zombie).__name__ in ("Busy", "Replayed")

    def test_a_zombie_that_comes_last(self, bank: Bank) -> None:
        """It has stood still before its transaction: it finds its successor's row, and that is its result too."""
        teller = Teller(bank)
        assert teller.zombie_last() == (Replayed("second"), Returned("second"))
        assert (teller.runs, bank.deposits()) == (1, [1])

    def test_a_wait_that_is_too_long(self, bank: Bank, pool: Callable[..., "Future[Any]"]) -> None:
        """The key is free, no run has begun, and the delivery comes again."""
        first, teller = bank.receipts.begin(row(generation=2**62), 1), Teller(bank)
        waiting = pool(lambda: teller.deliver(lease_seconds=1))
        verdict = waiting.result(BOUND_SECONDS)
        first.rollback()
        assert isinstance(verdict, Unwritten)
        assert isinstance(verdict.error, StoreUnavailableError)
        assert "has held the key's receipt" in verdict.error.message
        record = teller.bench.store.get(KEY)
        assert (record.free, record.runs, teller.runs, bank.deposits()) == (True, 0, 0, [])
        assert teller.deliver(owner="two") == Returned(1)

    def test_the_body_waits_as_long_as_before(self, bank: Bank) -> None:
        """The limit is that of the first statement alone."""
        statement = {
            "sqlite": "PRAGMA busy_timeout",
            "postgresql": "SHOW lock_timeout",
            "mariadb": "SELECT @@innodb_lock_wait_timeout",
        }[bank.dialect]
        transaction = bank.receipts.begin(None, 0)
        before = bank.execute(running(transaction), statement)
        transaction.rollback()
        transaction = bank.receipts.begin(row(), 0.25)
        assert bank.execute(running(transaction), statement) == before
        transaction.rollback()


def _narrowed(bank: Bank) -> str:
    """Return the statement after which the table takes no result."""
    if bank.dialect == "sqlite":
        return (
            "CREATE TRIGGER narrow BEFORE UPDATE ON idempotency_receipts WHEN NEW.text IS NOT NULL "
            "BEGIN SELECT RAISE(ABORT, 'too long'); END"
        )
    quote = DIALECTS[bank.dialect].quote
    return f"ALTER TABLE idempotency_receipts ADD CONSTRAINT narrow CHECK (length({quote}text{quote}) < 5)"


class TestWhatTheDatabaseSays:
    """Errors of the driver, and what becomes of the delivery."""

    @pytest.mark.parametrize("kind", KINDS)
    def test_no_table(self, make_bank: MakeBank, kind: str) -> None:
        """The delivery waits until it is created."""
        bank = make_bank(kind)
        teller = Teller(bank)
        verdict = teller.deliver()
        assert isinstance(verdict, Unwritten)
        assert isinstance(verdict.error, StoreMisconfiguredError)
        assert "has no table 'idempotency_receipts' of this version" in verdict.error.message
        assert (teller.runs, bank.deposits()) == (0, [])
        bank.create_table()
        assert teller.deliver(owner="two") == Returned(1)

    @pytest.mark.parametrize("column", ["following", "inputs"])
    def test_a_table_of_another_version(self, bank: Bank, column: str) -> None:
        """As one that has lost a column."""
        transaction = bank.receipts.begin(None, 0)
        bank.execute(running(transaction), f"ALTER TABLE idempotency_receipts DROP COLUMN {column}")
        transaction.commit(None)
        with pytest.raises(StoreMisconfiguredError, match="of this version"):
            bank.receipts.begin(row(), 1)

    @pytest.mark.parametrize("kind", SERVERS)
    def test_a_server_that_is_not_there(self, make_bank: MakeBank, kind: str, request: pytest.FixtureRequest) -> None:
        """No body, and the key is free."""
        with tcp_to(address_of(request.getfixturevalue(kind.partition("-")[2]))) as tcp:
            bank = make_bank(kind, tcp.port)
            bank.create_table()
            bank.close()
            tcp.refuse()
            tcp.cut()
            teller = Teller(bank)
            verdict = teller.deliver()
            assert isinstance(verdict, Unwritten)
            assert "which keeps the receipts, does not answer" in verdict.error.message
            assert teller.runs == 0
            tcp.heal()
            assert teller.deliver(owner="two") == Returned(1)

    @pytest.mark.parametrize("carried_out", [True, False])
    @pytest.mark.parametrize("kind", SERVERS)
    def test_a_commit_without_an_answer(
        self, make_bank: MakeBank, kind: str, carried_out: bool, request: pytest.FixtureRequest
    ) -> None:
        """The row says what became of it, on a new connection: the effect is there once."""
        with tcp_to(address_of(request.getfixturevalue(kind.partition("-")[2]))) as tcp:
            bank = make_bank(kind, tcp.port)
            bank.create_table()
            teller = Teller(bank)

            def cut(_: RunContext) -> str:
                if teller.runs == 1:
                    tcp.cut_at(b"COMMIT", carried_out=carried_out)
                return f"run {teller.runs}"

            runs = 1 if carried_out else 2
            assert teller.deliver(cut) == Returned(f"run {runs}")
            assert (teller.runs, bank.deposits()) == (runs, [runs])
            bank.close()

    def test_a_receipt_that_does_not_fit(self, bank: Bank) -> None:
        """Nothing is written, and the error quotes nothing of the result."""
        committed(bank, _narrowed(bank))
        verdict = Teller(bank).deliver(lambda _: "4111111111111111")
        assert isinstance(verdict, Unwritten)
        assert isinstance(verdict.error, StoreMisconfiguredError)
        assert "does not take the receipt" in verdict.error.message
        assert "4111" not in str(verdict.error)
        assert (bank.deposits(), bank.rows()) == ([], [])

    @pytest.mark.parametrize("kind", POSTGRESQL)
    def test_a_dead_hosts_transaction(self, make_bank: MakeBank, kind: str, request: pytest.FixtureRequest) -> None:
        """The server ends it when its idle-transaction time-out has passed; until then deliveries wait."""
        with tcp_to(address_of(request.getfixturevalue(kind.partition("-")[2]))) as tcp:
            dead, bank = make_bank(kind, tcp.port), make_bank(kind)
            bank.create_table()
            transaction = dead.receipts.begin(row(generation=2**62), 1)
            limit = "SET LOCAL idle_in_transaction_session_timeout = '1s'"
            dead.execute(running(transaction), limit)
            dead.deposit(running(transaction), 17)
            # What it sends does not arrive any more, and nobody says so.
            tcp.swallow()
            teller = Teller(bank)
            assert isinstance(teller.deliver(lease_seconds=1), Unwritten)
            until(lambda: teller.deliver(owner=uuid4().hex, lease_seconds=1) == Returned(1))
            assert bank.deposits() == [1]
            # Django connects anew after a rollback that has failed.
            tcp.heal()
            tcp.cut()
            transaction.rollback()
            dead.close()

    @pytest.mark.parametrize("kind", SERVERS)
    def test_a_deadlock(self, make_bank: MakeBank, kind: str) -> None:
        """The database ends one of the two transactions, and its body runs again: both deposits are there."""
        bank = make_bank(kind)
        bank.create_table()
        committed(bank, "CREATE TABLE accounts (id INTEGER PRIMARY KEY)", "INSERT INTO accounts VALUES (1), (2)")
        tellers, meeting = [Teller(bank), Teller(bank)], threading.Barrier(2)

        def cross(teller: Teller, first: int) -> Callable[[RunContext], int]:
            def body(run: RunContext) -> int:
                bank.execute(run, f"SELECT id FROM accounts WHERE id = {first} FOR UPDATE")
                if teller.runs == 1:
                    meeting.wait(BOUND_SECONDS)
                bank.execute(run, f"SELECT id FROM accounts WHERE id = {3 - first} FOR UPDATE")
                return first

            return body

        def deliver(number: int) -> Any:
            key = f"{KEY}-{number}"
            verdict = tellers[number].deliver(cross(tellers[number], number + 1), key=key)
            if isinstance(bank, DjangoBank):
                bank.close()
            return verdict

        with ThreadPoolExecutor(2) as executor:
            assert list(executor.map(deliver, (0, 1))) == [Returned(1), Returned(2)]
        # The one that begins again may be early enough for another deadlock.
        assert sum(teller.runs for teller in tellers) > 2
        assert len(bank.deposits()) == 2

    @pytest.mark.parametrize("kind", POSTGRESQL)
    @pytest.mark.parametrize("looks", [True, False])
    def test_a_kept_connection_that_the_server_has_closed(self, make_bank: MakeBank, kind: str, looks: bool) -> None:
        """It costs a deferral where nobody was told to look at it first."""
        is_django = kind.startswith("django")
        kept = {"CONN_MAX_AGE": None, "CONN_HEALTH_CHECKS": looks} if is_django else {"pool_pre_ping": looks}
        bank, other = make_bank(kind, None, **kept), make_bank(kind)
        bank.create_table()
        transaction = bank.receipts.begin(None, 0)
        number = connection_of(bank, running(transaction))
        transaction.rollback()
        read_by(other, f"SELECT pg_terminate_backend({number})")
        until(lambda: not is_connected(other, number))
        teller = Teller(bank)
        if not looks:
            assert isinstance(teller.deliver(owner="zero"), Unwritten)
        assert (teller.deliver(), teller.runs) == (Returned(1), 1)

    @pytest.mark.parametrize("kind", SERVERS)
    @pytest.mark.parametrize("succeeded", [True, False])
    def test_a_transaction_that_is_ended_under_the_body(self, make_bank: MakeBank, kind: str, succeeded: bool) -> None:
        """By a statement, or in MariaDB by a deadlock that the body has caught: the row is gone, or another's."""
        bank, other = make_bank(kind), make_bank(kind)
        bank.create_table()
        teller = Teller(bank)

        def roll_back(run: RunContext) -> str:
            bank.execute(run, "ROLLBACK")
            if succeeded:
                receipt = replace(finished('"other"'), generation=run.claim.generation, fence=run.fence + 1)
                other.receipts.begin(replace(receipt, outcome=None), 1).commit(receipt)
            bank.deposit(run, 100)
            return "done"

        with pytest.raises(ConfigurationError, match="has gone on after the end of its transaction"):
            teller.deliver(roll_back)
        rows = [(KEY, "COMPLETED", '"other"')] if succeeded else []
        assert (bank.deposits(), bank.rows(), teller.bench.store.get(KEY).free) == ([], rows, True)

    @pytest.mark.parametrize("kind", SERVERS)
    def test_a_connection_that_ends_in_the_body(self, make_bank: MakeBank, kind: str) -> None:
        """Nothing was committed: it begins again on another one, where a successor's receipt would be found."""
        bank, other = make_bank(kind), make_bank(kind)
        bank.create_table()
        teller = Teller(bank)
        end = {"postgresql": "SELECT pg_terminate_backend({})", "mariadb": "KILL {}"}[kind.partition("-")[2]]

        def lose(run: RunContext) -> str:
            if teller.runs == 1:
                number = connection_of(bank, run)
                elsewhere(other, end.format(number))
                until(lambda: not is_connected(other, number))
                bank.deposit(run, 100)
            return "done"

        assert teller.deliver(lose) == Returned("done")
        assert (teller.runs, bank.deposits()) == (2, [2])

    @pytest.mark.parametrize("kind", SERVERS)
    @pytest.mark.parametrize("goes_on", [True, False])
    def test_a_transaction_that_was_idle_for_too_long(self, make_bank: MakeBank, kind: str, goes_on: bool) -> None:
        """As that of a process that was frozen: nothing was committed, and it begins again with a look at the row."""
        bank, other = make_bank(kind), make_bank(kind)
        bank.create_table()
        teller = Teller(bank)

        limit = {
            "postgresql": "SET LOCAL idle_in_transaction_session_timeout = 1",
            "mariadb": "SET SESSION idle_write_transaction_timeout = 1",
        }[kind.partition("-")[2]]

        def stand_still(run: RunContext) -> str:
            if teller.runs == 1:
                number = connection_of(bank, run)
                bank.execute(run, limit)
                until(lambda: not is_connected(other, number))
                if goes_on:
                    bank.deposit(run, 100)
            return "done"

        assert teller.deliver(stand_still) == Returned("done")
        assert (teller.runs, bank.deposits()) == (2, [2])

    @pytest.mark.parametrize("kind", POSTGRESQL)
    def test_an_old_snapshot(self, make_bank: MakeBank, kind: str) -> None:
        """Under ``REPEATABLE READ`` a row that was committed since is found, or its transaction runs again."""
        bank, other = make_bank(kind, None, **repeatable_read(kind)), make_bank(kind)
        bank.create_table()
        teller = Teller(bank)

        def overtake(run: RunContext) -> str:
            if teller.runs == 1:
                # It reads what another transaction changes then: the update below cannot be serialised.
                bank.execute(run, "SELECT count(*) FROM accounts")
                elsewhere(other, "UPDATE accounts SET id = id + 10")
            bank.execute(run, "UPDATE accounts SET id = id + 1")
            return "done"

        committed(other, "CREATE TABLE accounts (id INTEGER PRIMARY KEY)", "INSERT INTO accounts VALUES (1)")
        assert teller.deliver(overtake) == Returned("done")
        assert (teller.runs, bank.deposits()) == (2, [2])

    @pytest.mark.parametrize("kind", SERVERS)
    def test_a_receipt_that_is_committed_behind_a_snapshot(self, make_bank: MakeBank, kind: str) -> None:
        """The row is met by writing, so that no snapshot hides it."""
        bank, other = make_bank(kind, None, **repeatable_read(kind)), make_bank(kind)
        bank.create_table()
        first = other.receipts.begin(row(), 1)
        waiting = ThreadPoolExecutor(1).submit(lambda: _found(bank))
        first.commit(finished())
        assert waiting.result(BOUND_SECONDS) == finished()

    @pytest.mark.parametrize("kind", [each for each in KINDS if each not in MARIADB])
    def test_a_constraint_that_is_checked_at_the_end(self, make_bank: MakeBank, kind: str) -> None:
        """It is the body's failure, whose rows are gone."""
        bank = make_bank(kind)
        bank.create_table()
        committed(
            bank,
            "CREATE TABLE customers (id INTEGER PRIMARY KEY)",
            "CREATE TABLE orders (customer INTEGER REFERENCES customers (id) DEFERRABLE INITIALLY DEFERRED)",
        )
        teller = Teller(bank)

        def order(run: RunContext) -> None:
            bank.execute(run, "INSERT INTO orders VALUES (17)")

        if bank.dialect == "sqlite" and isinstance(bank, SQLAlchemyBank):
            # It checks none unless each connection says so.
            bank.enforce_foreign_keys()
        with pytest.raises(Exception, match=r"(?i)foreign key") as raised:
            teller.deliver(order)
        assert "IntegrityError" in {kind.__name__ for kind in type(raised.value).__mro__}
        assert (teller.runs, bank.deposits(), teller.bench.store.get(KEY).free) == (1, [], True)
        assert isinstance(Teller(bank, store_failures=Exception).deliver(order), Failed)
        assert bank.deposits() == []

    @pytest.mark.parametrize("kind", POSTGRESQL)
    def test_a_body_that_goes_on_after_an_error(self, make_bank: MakeBank, kind: str) -> None:
        """PostgreSQL commits nothing then: the body fails, and is told how to catch such an error."""
        bank = make_bank(kind)
        bank.create_table()
        teller = Teller(bank)

        def swallow(run: RunContext) -> str:
            with suppress(Exception):
                bank.execute(run, "SELECT 1 / 0")
            return "done"

        with pytest.raises(ConfigurationError, match="has caught an error of the database and gone on"):
            teller.deliver(swallow)
        assert (bank.deposits(), bank.rows()) == ([], [])


def _found(bank: Any) -> Receipt | None:
    try:
        transaction = while_lost(lambda: bank.receipts.begin(row(fence=8), BOUND_SECONDS), SystemClock())
        found: Receipt | None = transaction.found
        transaction.rollback()
        return found
    finally:
        bank.close()


class TestDjango:
    """What only Django has."""

    @pytest.fixture(params=["django-postgresql", "django-sqlite"])
    def django(self, request: pytest.FixtureRequest, make_bank: MakeBank) -> DjangoBank:
        """A bank."""
        bank: DjangoBank = make_bank(request.param)
        bank.create_table()
        return bank

    def test_a_call_inside_a_transaction(self, django: DjangoBank) -> None:
        """Its rollback would undo the effect under a record that says done."""
        from django.db.transaction import atomic

        teller = Teller(django)
        with atomic(using=django.alias), pytest.raises(ConfigurationError, match="was called inside a transaction"):
            teller.deliver()
        assert (teller.runs, teller.bench.store.get(KEY).runs) == (0, 0)
        assert teller.deliver(owner="two") == Returned(1)

    def test_a_database_without_autocommit(self, make_bank: MakeBank) -> None:
        """Nothing would be committed."""
        bank = make_bank("django-sqlite", None, AUTOCOMMIT=False)
        with pytest.raises(ConfigurationError, match="has AUTOCOMMIT off"):
            bank.receipts.begin(row(), 1)

    def test_a_hook_that_a_death_would_lose(self, django: DjangoBank) -> None:
        """It is refused before the commit; or runs once at most where that was declared."""
        from django.db.transaction import on_commit

        called: list[str] = []

        def body(_: RunContext) -> str:
            on_commit(lambda: called.append("hook"), using=django.alias)
            return "done"

        teller = Teller(django)
        with pytest.raises(ConfigurationError, match="which a death after the commit would lose"):
            teller.deliver(body)
        assert (called, django.deposits()) == ([], [])
        django.receipts = type(django.receipts)(using=django.alias, on_commit="lossy")
        assert teller.deliver(body, "two") == Returned("done")
        assert (called, django.deposits()) == (["hook"], [2])

    def test_a_hook_that_fails(self, django: DjangoBank) -> None:
        """The transaction is committed before it."""
        from django.db.transaction import on_commit

        def body(_: RunContext) -> str:
            on_commit(lambda: 1 / 0, using=django.alias)
            return "done"

        django.receipts = type(django.receipts)(using=django.alias, on_commit="lossy")
        teller = Teller(django)
        assert teller.deliver(body) == Returned("done")
        assert (teller.runs, django.deposits()) == (1, [1])

    def test_an_inner_block_that_was_rolled_back(self, django: DjangoBank) -> None:
        """With a savepoint the rest is committed; without one nothing is, and the body is told."""
        from django.db.transaction import atomic

        def body(savepoint: bool) -> Callable[[RunContext], str]:
            def rolled_back(run: RunContext) -> str:
                with suppress(ValueError), atomic(using=django.alias, savepoint=savepoint):
                    django.deposit(run, 100)
                    raise ValueError("no")
                return "done"

            return rolled_back

        teller = Teller(django)
        with pytest.raises(ConfigurationError, match="has caught an error of the database and gone on"):
            teller.deliver(body(savepoint=False))
        assert teller.deliver(body(savepoint=True), "two") == Returned("done")
        assert django.deposits() == [2]

    def test_a_durable_block_in_the_body(self, django: DjangoBank) -> None:
        """Django refuses it, because it could not commit."""
        from django.db.transaction import atomic

        def body(_: RunContext) -> None:
            with atomic(using=django.alias, durable=True):
                pass

        with pytest.raises(RuntimeError, match="durable"):
            Teller(django).deliver(body)
        assert django.deposits() == []

    def test_in_a_test_case(self, django: DjangoBank) -> None:
        """Django's ``TestCase`` has a transaction around each test, which durable blocks do not mind."""
        from django.test import TestCase

        teller, verdicts = Teller(django), []

        class Deposits(TestCase):
            databases = frozenset({django.alias})

            def runTest(self) -> None:  # noqa: N802 - unittest's
                verdicts.extend([teller.deliver(), teller.deliver(owner="two"), django.deposits()])

        # With its class's fixtures, which open the transaction.
        result = unittest.TestSuite([Deposits()]).run(unittest.TestResult())
        assert (result.errors, result.failures) == ([], [])
        assert verdicts == [Returned(1), Replayed(1), [1]]
        assert django.deposits() == []

    def test_wrong_options(self) -> None:
        """They are refused where they are given."""
        from idempotent_tasks.receipts.django import DjangoReceipts

        with pytest.raises(ConfigurationError, match="on_commit='sometimes' is not one of"):
            DjangoReceipts(on_commit="sometimes")  # type: ignore[arg-type]


class TestSQLAlchemy:
    """What only SQLAlchemy has."""

    @pytest.fixture(params=["sqlalchemy-postgresql", "sqlalchemy-sqlite"])
    def alchemy(self, request: pytest.FixtureRequest, make_bank: MakeBank) -> SQLAlchemyBank:
        """A bank."""
        bank: SQLAlchemyBank = make_bank(request.param)
        bank.create_table()
        return bank

    def test_a_commit_in_the_body(self, alchemy: SQLAlchemyBank) -> None:
        """Commits nothing before the receipt has its outcome."""
        teller = Teller(alchemy)

        def body(run: RunContext) -> str:
            run.session.commit()
            assert _deposits_elsewhere(alchemy) == []
            alchemy.deposit(run, 100)
            return "done"

        assert teller.deliver(body) == Returned("done")
        assert alchemy.deposits() == [1, 100]

    def test_a_rollback_in_the_body(self, alchemy: SQLAlchemyBank) -> None:
        """Has undone the receipt too: the body fails, and is told what to use."""
        teller = Teller(alchemy)
        with pytest.raises(ConfigurationError, match="has rolled the transaction of its session back"):
            teller.deliver(lambda run: run.session.rollback())
        assert (alchemy.deposits(), alchemy.rows(), teller.bench.store.get(KEY).free) == ([], [], True)

    def test_a_savepoint(self, alchemy: SQLAlchemyBank) -> None:
        """Undoes a part."""

        def body(run: RunContext) -> str:
            with suppress(ValueError), run.session.begin_nested():
                alchemy.deposit(run, 100)
                raise ValueError("no")
            return "done"

        assert Teller(alchemy).deliver(body) == Returned("done")
        assert alchemy.deposits() == [1]

    def test_what_the_body_has_only_added(self, alchemy: SQLAlchemyBank) -> None:
        """Is written before the receipt; where it cannot be, that is the body's failure."""
        from sqlalchemy import Column, Integer
        from sqlalchemy.orm import declarative_base

        base = declarative_base()
        account = type("Account", (base,), {"__tablename__": "accounts", "id": Column(Integer, primary_key=True)})
        base.metadata.create_all(alchemy.engine)
        teller = Teller(alchemy)
        add = lambda run: run.session.add(account(id=1))  # noqa: E731
        assert teller.deliver(add) == Returned(None)
        with pytest.raises(Exception, match="accounts") as raised:
            Teller(alchemy).deliver(add, key="another")
        assert type(raised.value).__name__ == "IntegrityError"
        assert alchemy.deposits() == [1]

    def test_sessions_of_ones_own(self, alchemy: SQLAlchemyBank) -> None:
        """A ``sessionmaker`` makes them."""
        from sqlalchemy.orm import Session, sessionmaker

        from idempotent_tasks.receipts.sqlalchemy import SQLAlchemyReceipts

        class OwnSession(Session):
            pass

        alchemy.receipts = SQLAlchemyReceipts(sessionmaker(alchemy.engine, class_=OwnSession))
        assert Teller(alchemy).deliver(lambda run: type(run.session).__name__) == Returned("OwnSession")

    def test_another_connection_that_is_lost(self, alchemy: SQLAlchemyBank) -> None:
        """It is none of the transaction's: the body fails once, and does not run again at once."""
        from sqlalchemy.exc import OperationalError

        def ask_elsewhere(_: RunContext) -> None:
            raise OperationalError("SELECT 1", {}, Exception("gone"), connection_invalidated=True)

        teller = Teller(alchemy)
        with pytest.raises(OperationalError):
            teller.deliver(ask_elsewhere)
        assert (teller.runs, alchemy.deposits()) == (1, [])

    def test_a_pool_of_one_connection(self, make_bank: MakeBank) -> None:
        """Is enough: nothing of a delivery keeps it."""
        bank = make_bank("sqlalchemy-postgresql", None, pool_size=1, max_overflow=0, pool_timeout=1)
        bank.create_table()
        teller = Teller(bank)
        for number in range(3):
            assert teller.deliver(key=f"key-{number}") == Returned(number + 1)
            assert len(bank.deposits()) == number + 1

    def test_the_session_ends_with_the_body(self, alchemy: SQLAlchemyBank) -> None:
        """Later it says so."""
        runs: list[RunContext] = []
        Teller(alchemy).deliver(runs.append)
        with pytest.raises(ConfigurationError, match=r"self\.idempotency\.session is there while the body"):
            runs[0].session  # noqa: B018

    @pytest.mark.parametrize("wrong", [None, "sqlite://", "unbound"], ids=repr)
    def test_what_is_no_engine(self, wrong: Any) -> None:
        """It is refused where it is given."""
        from sqlalchemy.orm import sessionmaker

        from idempotent_tasks.receipts.sqlalchemy import SQLAlchemyReceipts

        with pytest.raises(ConfigurationError, match="takes an Engine, or a sessionmaker with bind=engine"):
            SQLAlchemyReceipts(sessionmaker() if wrong == "unbound" else wrong)

    @pytest.mark.parametrize("kind", MARIADB)
    def test_a_table_without_transactions(self, make_bank: MakeBank, kind: str) -> None:
        """MyISAM's: a check says so before the first message."""
        bank = make_bank(kind)
        bank.create_table()
        shorter = ", ".join(f"MODIFY `{name}` VARCHAR(100)" for name in ("key", "step"))
        committed(bank, f"ALTER TABLE idempotency_receipts {shorter}, ENGINE = MyISAM")
        (finding,) = _findings(bank)
        assert (finding.code, "is of the engine MyISAM, which has no transactions" in finding.what) == (
            "receipts-table",
            True,
        )

    def test_another_database(self) -> None:
        """Says which are possible."""
        from idempotent_tasks.receipts.table import dialect_of

        with pytest.raises(ConfigurationError, match=r"of kind 'oracle': one of \['mariadb', 'postgresql', 'sqlite'\]"):
            dialect_of("oracle")


def _deposits_elsewhere(bank: SQLAlchemyBank) -> list[int]:
    with ThreadPoolExecutor(1) as executor:
        return executor.submit(bank.deposits).result(BOUND_SECONDS)


@pytest.mark.parametrize("dynamodb_endpoint", ["ministack"], indirect=True)
class TestOperators:
    """What the command line and the checks do with receipts."""

    @pytest.fixture
    def app(self, bank: Bank, dynamodb: DynamoDBStore) -> Iterator[Celery]:
        """An app with a task whose key was parked: its run has failed after it had begun."""
        app = Celery("shop", broker="memory://", backend="cache+memory://", set_as_current=False)
        app.conf.update(idempotency_store=dynamodb, task_default_queue=uuid4().hex)
        policy = Idempotency(key="order", receipts=bank.receipts, on_rerun="park", expires=60)

        def charge(order: int) -> None:
            raise ValueError("no")

        app.set_current()
        app.task(charge, name="shop.charge", base=IdempotentTask, shared=False, idempotency=policy)
        yield app
        app.close()

    @pytest.fixture
    def run(self, app: Celery) -> Callable[..., Result]:
        """Run a command."""
        return lambda *words: CliRunner().invoke(idempotency, list(words), obj=SimpleNamespace(app=app))

    def park(self, app: Celery) -> str:
        """Let a run fail, and park the key; return it."""
        for _ in range(2):
            app.tasks["shop.charge"].apply((17,))
        (record,) = TableAdmin(app.conf.idempotency_store).records()
        assert isinstance(record, Record)
        assert record.parked_at is not None
        return record.key

    def test_a_decision_has_a_receipt(self, app: Celery, bank: Bank, run: Callable[..., Result]) -> None:
        """Written first, so that a run that stands still cannot commit its rows beside it."""
        key = self.park(app)
        result = run("resolve", key, "--done", '"by hand"', "--yes")
        assert result.exit_code == 0, result.output
        assert bank.rows() == [(key, "COMPLETED", '"by hand"')]
        assert app.tasks["shop.charge"].apply((17,)).get() == "by hand"

    def test_a_decision_against_a_receipt(self, app: Celery, bank: Bank, run: Callable[..., Result]) -> None:
        """Is refused: the run has committed meanwhile, and the next one takes its result."""
        key = self.park(app)
        record = app.conf.idempotency_store.get(key)
        mine = finished('"of the zombie"', key=key, generation=record.generation)
        bank.receipts.begin(replace(mine, outcome=None), 1).commit(mine)
        result = run("resolve", key, "--done", '"by hand"', "--yes")
        assert result.exit_code != 0
        assert "has a receipt: its run has committed, with another result" in result.output
        assert run("resolve", key, "--run", "--yes").exit_code == 0
        assert app.tasks["shop.charge"].apply((17,)).get() == "of the zombie"

    def test_purge(self, app: Celery, bank: Bank, run: Callable[..., Result]) -> None:
        """Deletes what nobody looks for."""
        old = replace(finished(key="old"), expires_at=100)
        bank.receipts.begin(row(key="old"), 1).commit(old)
        bank.receipts.begin(row(key="new"), 1).commit(finished(key="new"))
        result = run("purge", "--receipts", "--yes")
        assert result.output == f"deleted 1 receipt of {bank.receipts!r}\n"
        assert [key for key, *_ in bank.rows()] == ["new"]

    @pytest.mark.parametrize(
        ("words", "said"),
        [
            (["--receipts", "--state", "completed"], "--receipts takes no other option but --yes"),
            (["--state", "completed"], "--state and --before; or --receipts"),
        ],
        ids=" ".join,
    )
    def test_purge_of_what(self, run: Callable[..., Result], words: list[str], said: str) -> None:
        """Says so."""
        result = run("purge", *words)
        assert (result.exit_code, said in result.output) == (2, True)

    def test_no_receipts(self, app: Celery, run: Callable[..., Result]) -> None:
        """There is nothing to purge."""
        app.tasks["shop.charge"].idempotency_policy = Idempotency()
        app.tasks["shop.charge"]._resolved = None
        output = run("purge", "--receipts", "--yes").output
        assert "no task of the app has receipts" in output
        assert "app.conf.idempotency_step_receipts" in output


#: Every finding about receipts, by the test that provokes it and fixes it.
PROVOKED = {"receipts-table": "test_no_table_is_found", "receipts-idle": "test_no_time_out_is_found"}


def test_every_problem_is_provoked() -> None:
    """A kind of problem without a test here would be a guess."""
    assert set(PROVOKED) == set(RECEIPT_FINDINGS)
    assert set(PROVOKED.values()) <= set(globals())


def _findings(bank: Any, **options: Any) -> list[Finding]:
    """Look at an app with a task that has a bank's receipts."""
    app = Celery("shop", broker="amqp://localhost", set_as_current=False)
    app.conf.update(idempotency_store="memory://")

    def charge() -> None:
        """Be a body."""

    policy = Idempotency(receipts=bank.receipts)
    app.task(charge, name="shop.charge", base=IdempotentTask, shared=False, idempotency=policy, **options)
    found = list(check_receipts(CheckContext.of_app(app, "celery.concurrency.prefork")))
    app.close()
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_no_table_is_found(make_bank: MakeBank, kind: str) -> None:
    """Before the first message; and the connection is closed."""
    bank = make_bank(kind)
    (finding,) = _findings(bank)
    assert finding.code == "receipts-table"
    assert "has no table 'idempotency_receipts' of this version" in finding.what
    assert finding.tasks == ("shop.charge",)
    bank.create_table()
    assert [each.code for each in _findings(bank)] == ([] if "sqlite" in kind else ["receipts-idle"])


@pytest.mark.parametrize("kind", SERVERS)
def test_no_time_out_is_found(make_bank: MakeBank, kind: str) -> None:
    """None, or one that is shorter than a body may be silent."""
    bank = make_bank(kind)
    bank.create_table()
    (finding,) = _findings(bank)
    assert "ends no idle transaction" in finding.what
    assert "_transaction" in finding.remedy
    assert "90" in finding.remedy
    for seconds, found in ((20, True), (60, False)):
        findings = _findings(make_bank(kind, None, **idle(kind, seconds)), time_limit=30)
        assert [each.code for each in findings] == ["receipts-idle"] * found


def test_a_database_is_looked_at_once(make_bank: MakeBank, monkeypatch: pytest.MonkeyPatch) -> None:
    """For both findings, and all tasks: a worker waits for that before it is ready."""
    bank = make_bank("sqlalchemy-sqlite")
    looks, look = count(1), bank.receipts.look
    monkeypatch.setattr(bank.receipts, "look", lambda: (next(looks), look())[1])
    assert len(_findings(bank)) == 1
    assert next(looks) == 2


@pytest.mark.parametrize("kind", POSTGRESQL)
def test_a_look_leaves_no_connection_behind(make_bank: MakeBank, kind: str) -> None:
    """A worker looks before it forks, and a connection that two processes have is broken."""
    bank, other = make_bank(kind), make_bank("sqlalchemy-postgresql")
    bank.close()
    assert bank.receipts.look().error is not None
    count = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
    # In a transaction of its own each time: one sees the same activity until it ends.
    until(lambda: read_by(other, count)[0][0] == 0)


class TestUnguarded:
    """Bodies that run without a claim have their transaction all the same."""

    @pytest.fixture
    def task(self, bank: Bank) -> Iterator[Any]:
        """A task under the kill switch."""
        app = Celery("shop", broker="memory://", backend="cache+memory://", set_as_current=False)
        app.conf.update(idempotency_store=MemoryStore(), idempotency_disabled=True, task_default_queue=uuid4().hex)
        policy = Idempotency(receipts=bank.receipts)

        def charge(self: Any, *, fails: bool = False) -> int:
            bank.deposit(self.idempotency, 17)
            self.idempotency.after_commit(self.app.signature("shop.mail", immutable=True))
            if fails:
                raise ValueError("no")
            return 17

        app.set_current()
        yield app.task(charge, name="shop.charge", base=IdempotentTask, bind=True, shared=False, idempotency=policy)
        app.close()

    def waiting(self, task: Any) -> int:
        """Return how many messages were sent."""
        with task.app.connection_for_read() as connection:
            return int(connection.default_channel._size(task.app.conf.task_default_queue))

    def test_it_is_committed(self, task: Any, bank: Bank) -> None:
        """Without a receipt; and what follows is sent."""
        assert task.apply().get() == 17
        assert (bank.deposits(), bank.rows(), self.waiting(task)) == ([17], [], 1)

    def test_it_is_rolled_back(self, task: Any, bank: Bank) -> None:
        """And nothing follows."""
        with pytest.raises(ValueError, match="no"):
            task.apply(kwargs={"fails": True}).get()
        assert (bank.deposits(), self.waiting(task)) == ([], 0)

    def test_writes_elsewhere_are_refused(self, task: Any, bank: Bank) -> None:
        """As under a claim: no transaction spans two databases, so nothing is committed and nothing follows."""

        def move(self: Any) -> Atomic:
            bank.deposit(self.idempotency, 17)
            return Atomic(17, [])

        policy = Idempotency(receipts=bank.receipts)
        refused = task.app.task(
            move, name="shop.move", base=IdempotentTask, bind=True, shared=False, idempotency=policy
        )
        with pytest.raises(ConfigurationError, match="no transaction spans two databases"):
            refused.apply().get()
        assert (bank.deposits(), self.waiting(task)) == ([], 0)

    def test_a_direct_call_has_no_transaction(self, task: Any) -> None:
        """It is a plain call of a function, whose caller has one or not."""
        with pytest.raises(ConfigurationError, match=r"self\.idempotency\.session is there|there is none here"):
            task()


class TestCost:
    """What a receipt adds, beside BEGIN and COMMIT, which every transaction has."""

    #: By the kind of the database: the statements before the body, and after it.
    STATEMENTS: ClassVar = {"postgresql": (2, 1), "mariadb": (1, 1), "sqlite": (4, 1)}

    def statements(self, bank: Bank, deliver: Callable[[], Any]) -> list[str]:
        """Return the statements of a delivery, in order."""
        seen: list[str] = []
        if isinstance(bank, DjangoBank):
            from django.db import connections

            def note(execute: Any, sql: str, *rest: Any) -> Any:
                # Only SQLite's is seen here.
                if sql != "BEGIN":
                    seen.append(sql)
                return execute(sql, *rest)

            with connections[bank.alias].execute_wrapper(note):
                deliver()
            return seen
        from sqlalchemy import event

        assert isinstance(bank, SQLAlchemyBank)
        note_statement = lambda _, __, sql, *rest: seen.append(sql)  # noqa: E731
        event.listen(bank.engine, "before_cursor_execute", note_statement)
        deliver()
        event.remove(bank.engine, "before_cursor_execute", note_statement)
        return seen

    @pytest.mark.parametrize("kind", KINDS)
    def test_statements(self, make_bank: MakeBank, kind: str) -> None:
        """A first run, a replay, which asks the record only, and a rerun that finds the receipt."""
        # Its first statements are about the connection.
        bank = make_bank(kind, None, **({"CONN_MAX_AGE": None} if kind.startswith("django") else {}))
        bank.create_table()
        teller, (before, after) = Teller(bank), self.STATEMENTS[bank.dialect]
        teller.deliver(key="another")
        first = self.statements(bank, teller.deliver)
        assert [each.startswith("INSERT INTO deposits") for each in first].index(True) == before
        assert len(first) == before + 1 + after
        assert self.statements(bank, lambda: teller.deliver(owner="two")) == []
        claim = grant(teller.bench.store, "dead", key="third")
        receipt = replace(Receipt.of(claim, 0), outcome=done())
        bank.receipts.begin(replace(receipt, outcome=None), 1).commit(receipt)
        teller.expire()
        verdicts: list[Any] = []
        rerun = self.statements(bank, lambda: verdicts.append(teller.deliver(owner="three", key="third")))
        assert (verdicts, len(rerun)) == ([Replayed("done")], before)

    @pytest.mark.parametrize("dynamodb_endpoint", ["ministack"], indirect=True)
    def test_requests(self, bank: Bank, dynamodb: DynamoDBStore, wire: Wire) -> None:
        """As many to DynamoDB as without receipts: two for a first run and for a rerun, one for a replay."""
        teller = Teller(bank)
        teller.bench = Bench(dynamodb)
        dynamodb.clock.now()
        requests = []
        for owner in ("one", "two"):
            wire.clear()
            teller.deliver(owner=owner)
            requests.append(len(wire.operations()))
        claim = grant(dynamodb, "dead", key="third", lease_seconds=-1)
        receipt = replace(Receipt.of(claim, 0), outcome=done())
        bank.receipts.begin(replace(receipt, outcome=None), 1).commit(receipt)
        wire.clear()
        assert teller.deliver(owner="three", key="third") == Replayed("done")
        requests.append(len(wire.operations()))
        assert requests == [2, 1, 2]
