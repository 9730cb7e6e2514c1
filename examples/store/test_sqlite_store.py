"""The store passes the suite that every store passes, and carries a task through its crashes."""

import sqlite3
from pathlib import Path

import pytest
from celery import Celery
from sqlite_store import SQLiteStore

from idempotent_tasks import IdempotentTask, RecordCorruptError, StoreMisconfiguredError
from idempotent_tasks.testing import Crash, FakeClock, StoreConformance, redeliver


@pytest.fixture
def store(tmp_path: Path, idempotency_clock: FakeClock) -> SQLiteStore:
    """An empty store on a clock that only the test moves."""
    return SQLiteStore(str(tmp_path / "records.sqlite"), clock=idempotency_clock)


class TestSQLiteStore(StoreConformance):
    """Every test of the suite."""

    # Each write waits for the disk.
    racing_keys = 40
    seeds = range(20)


def test_a_task_over_it(store: SQLiteStore) -> None:
    """Two crashes are two more runs, and one result."""
    app = Celery("shop", set_as_current=False)

    @app.task(name="shop.charge", base=IdempotentTask)
    def charge(cents: int) -> int:
        return cents

    happened = redeliver(charge, (5,), crashes=[Crash.IN_BODY, Crash.BEFORE_COMMIT, Crash.BEFORE_ACK], store=store)
    assert (happened.get(), happened.runs) == (5, 3)


def test_a_row_of_somebody_else(store: SQLiteStore) -> None:
    """It is named, and no record."""
    store.forget("shop.charge#1")
    with sqlite3.connect(store.path) as connection:
        connection.execute("INSERT INTO records (key, status) VALUES ('shop.charge#1', 'no status')")
    with pytest.raises(RecordCorruptError, match=r"shop\.charge#1"):
        store.get("shop.charge#1")


def test_another_file(store: SQLiteStore) -> None:
    """No retry helps: somebody has to act."""
    Path(store.path).write_text("no database, but text" * 100, encoding="utf-8")
    with pytest.raises(StoreMisconfiguredError, match="records"):
        store.get("shop.charge#1")


def test_what_has_expired_can_be_deleted(store: SQLiteStore, idempotency_clock: FakeClock) -> None:
    """And nothing else."""
    suite = TestSQLiteStore()
    suite.test_commit_of_the_largest_data(store, "x")
    store.purge()
    with pytest.raises(AssertionError):
        suite.test_get_a_missing_record(store)
    idempotency_clock.advance(4000)
    store.purge()
    suite.test_get_a_missing_record(store)
