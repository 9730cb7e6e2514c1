"""A body's rows in the transaction of its receipt: its process dies or stands still at each side of the commit."""

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import create_engine, text

from idempotent_tasks import DynamoDBStore
from idempotent_tasks.receipts.sqlalchemy import SQLAlchemyReceipts
from tests.integration.conftest import MakeRig
from tests.support.receipts import new_database
from tests.support.rig import Rig
from tests.testbed.brokers import CHILD_LOSS_SECONDS
from tests.testbed.wire import Wire, hold, hold_answer

POLICY = {"key": "order", "lease": 3, "receipts": "tests.support.bank:receipts"}
SAVE = {"save": {"idempotency": POLICY}}
#: The second write of a delivery, after its claim, is that of the outcome.
COMMIT = "UpdateItem", 2
BOUND_SECONDS = 20

pytestmark = pytest.mark.parametrize("dynamodb_endpoint", ["ministack"], indirect=True)


class Orders:
    """The database of the tasks: rows of orders, and receipts."""

    def __init__(self, url: str) -> None:
        self.engine = create_engine(url)
        SQLAlchemyReceipts(self.engine).create_table()
        with self.engine.begin() as connection:
            connection.execute(text('CREATE TABLE orders ("order" TEXT)'))

    def rows(self) -> list[str]:
        """Return the orders that are committed, in order."""
        with self.engine.connect() as connection:
            return [row[0] for row in connection.execute(text('SELECT "order" FROM orders ORDER BY 1'))]

    def receipts(self) -> int:
        """Return how many receipts there are."""
        with self.engine.connect() as connection:
            return int(connection.execute(text("SELECT count(*) FROM idempotency_receipts")).scalar_one())


@pytest.fixture
def orders(postgresql: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Orders]:
    """A database of the test's own, which its workers find in their environment."""
    with new_database("postgresql", postgresql, tmp_path) as place:
        monkeypatch.setenv("TESTS_BANK_URL", place.url)
        orders = Orders(place.url)
        yield orders
        orders.engine.dispose()


def started(rig: Rig, times: int = 1) -> int:
    """Return the process of a run."""
    return int(rig.journal.wait_for("started", times=times)["pid"])


@pytest.mark.parametrize("broker", ["redis", "rabbitmq"], indirect=True)
def test_killed_between_the_two_commits(make_guarded: MakeRig, wire: Wire, orders: Orders) -> None:
    """The window of every other way: the next delivery finds the receipt, and the body does not run again."""
    rig = make_guarded(wire.endpoint, visibility_seconds=CHILD_LOSS_SECONDS, tasks=SAVE)
    worker, pass_on = rig.start_worker(2), threading.Event()
    # It has tried its permissions when it started.
    wire.clear()
    wire.break_nth(*COMMIT, hold(pass_on))
    published = rig.send("save", "ord-1", "after")
    first = started(rig)
    rig.journal.wait_until(lambda: orders.receipts() == 1, BOUND_SECONDS, "no receipt is committed")
    assert rig.journal.count("Committed") == 0
    worker.kill_child(first)
    assert rig.result(published) == first
    pass_on.set()
    assert (rig.journal.count("started", task="save"), orders.rows()) == (1, ["ord-1"])
    rig.journal.wait_for("effect", key="after")
    assert rig.journal.count("effect", key="after") == 1
    assert rig.result(rig.send("save", "ord-1", "after")) == first


@pytest.mark.parametrize("broker", ["redis"], indirect=True)
def test_killed_after_the_record_has_the_outcome(
    make_guarded: MakeRig, wire: Wire, orders: Orders, store: DynamoDBStore
) -> None:
    """The next delivery replays without asking the database."""
    rig = make_guarded(wire.endpoint, visibility_seconds=CHILD_LOSS_SECONDS, tasks=SAVE)
    worker, pass_on = rig.start_worker(2), threading.Event()
    wire.clear()
    wire.break_nth(*COMMIT, hold_answer(pass_on))
    published = rig.send("save", "ord-1")
    first, key = started(rig), rig.journal.wait_for("Claimed")["key"]
    rig.journal.wait_until(lambda: store.get(key).completed_at is not None, BOUND_SECONDS, "there is no outcome")
    assert rig.journal.count("Committed") == 0
    worker.kill_child(first)
    pass_on.set()
    assert rig.result(published) == first
    assert (rig.journal.count("started"), orders.rows()) == (1, ["ord-1"])


@pytest.mark.parametrize("broker", ["redis"], indirect=True)
def test_killed_in_the_transaction(make_guarded: MakeRig, wire: Wire, orders: Orders) -> None:
    """Its row is gone with its process, and the next run writes it."""
    rig = make_guarded(wire.endpoint, visibility_seconds=CHILD_LOSS_SECONDS, tasks=SAVE)
    rig.journal.shut("in-transaction")
    worker = rig.start_worker(2)
    published = rig.send("save", "ord-1")
    worker.kill_child(rig.journal.wait_for("at-gate")["pid"])
    rig.journal.open("in-transaction")
    result = rig.result(published)
    assert result == started(rig, times=2)
    assert (orders.rows(), orders.receipts()) == (["ord-1"], 1)
    assert [entry["run"] for entry in rig.journal.entries("started")] == [1, 2]


@pytest.mark.parametrize("broker", ["redis"], indirect=True)
def test_a_process_that_stands_still_in_its_transaction(make_guarded: MakeRig, wire: Wire, orders: Orders) -> None:
    """Its successor waits for its row, is deferred, and takes its result: the zombie's effect is the only one."""
    rig = make_guarded(wire.endpoint, visibility_seconds=60, tasks=SAVE)
    rig.journal.shut("in-transaction")
    worker = rig.start_worker(2)
    published = rig.send("save", "ord-1")
    zombie = rig.journal.wait_for("at-gate")["pid"]
    with worker.frozen_child(zombie):
        rig.journal.open("in-transaction")
        duplicate = rig.send("save", "ord-1")
        rig.journal.wait_for("Deferred", id=duplicate.id, reason="StoreUnavailableError")
        assert orders.rows() == []
    assert [rig.result(each) for each in (published, duplicate)] == [zombie, zombie]
    assert (rig.journal.count("started"), orders.rows()) == (1, ["ord-1"])


@pytest.mark.parametrize("broker", ["redis"], indirect=True)
@pytest.mark.parametrize("pool", ["threads", "gevent"])
def test_other_pools(make_guarded: MakeRig, wire: Wire, orders: Orders, pool: str) -> None:
    """Each body has a connection of its own."""
    rig = make_guarded(wire.endpoint, tasks=SAVE)
    rig.start_worker(4, pool=pool)
    published = [rig.send("save", f"ord-{number % 4}") for number in range(8)]
    results = [rig.result(each) for each in published]
    assert results[:4] == results[4:]
    assert (rig.journal.count("started"), orders.rows()) == (4, [f"ord-{number}" for number in range(4)])
