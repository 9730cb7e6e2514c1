"""Tests of the task without a broker and without DynamoDB, on SQLite: the process dies wherever it can."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

os.environ["DATABASE_URL"] = "sqlite:///test.sqlite3"

import tasks
from database import create, engine, receipts
from models import Account, Base, Deposit
from sqlalchemy.orm import Session

from idempotent_tasks.testing import crash_plans, redeliver

tasks.app.conf.task_always_eager = True


@pytest.fixture(autouse=True)
def notices(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """What customers are told; the tables are empty, that of the receipts too."""
    create()
    monkeypatch.setattr(tasks, "NOTICES", tmp_path / "notices.txt")
    yield tasks.NOTICES
    for metadata in (Base.metadata, receipts.metadata):
        metadata.drop_all(engine)


@pytest.mark.parametrize("crashes", crash_plans(tasks.deposit))
def test_a_deposit_counts_once_wherever_the_worker_dies(notices: Path, crashes: tuple[str, ...]) -> None:
    """One row, one balance, one notice, one number."""
    happened = redeliver(tasks.deposit, ("ann", 4200), crashes=crashes)
    with Session(engine) as session:
        assert [each.number for each in session.query(Deposit)] == [happened.get()]
        assert session.get_one(Account, "ann").balance_cents == 4200
    assert notices.read_text() == "ann: 4200 cents have arrived\n"


def test_the_body_does_not_run_again_when_its_rows_are_committed() -> None:
    """The receipt has its result."""
    assert redeliver(tasks.deposit, ("ann", 4200), crashes=["before-commit"]).runs == 1
