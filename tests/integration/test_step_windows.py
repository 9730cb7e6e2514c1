"""A body of five effects, four of them steps, each with its tool: its process dies or stands still at each place."""

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from celery import chain
from sqlalchemy import NullPool, create_engine, text

from idempotent_tasks import DynamoDBStore
from idempotent_tasks.receipts.sqlalchemy import SQLAlchemyReceipts
from tests.integration.conftest import MakeRig
from tests.support.receipts import new_database
from tests.support.rig import Rig
from tests.testbed.brokers import CHILD_LOSS_SECONDS
from tests.testbed.wire import Wire, hold

STEPS = ("charge", "ship", "save", "notify")
PLACES = [f"{place}-{step}" for step in STEPS for place in ("before", "in", "after")]
POLICY = {"key": "order", "lease": 3, "settle": 0.2, "max_crashes": 100}
FULFIL = {"fulfil": {"idempotency": POLICY}}
#: Of a run without renewals: the claim, then one for each step.
KEEP_SAVE = "UpdateItem", 4
BOUND_SECONDS = 20

pytestmark = pytest.mark.parametrize("dynamodb_endpoint", ["ministack"], indirect=True)


class Books:
    """What the five effects have left, each in its own place."""

    def __init__(self, rig: Rig, url: str, store: DynamoDBStore) -> None:
        self.rig, self.store = rig, store
        self.engine = create_engine(url, poolclass=NullPool)

    def count(self) -> dict[str, int]:
        """Return how often each effect was made; requests with one key are one at the provider that takes it."""
        journal, key = self.rig.journal, {"id": {"S": "till"}}
        read = self.store.connection.request("get_item", TableName=self.store.table, Key=key, ConsistentRead=True)
        return {
            "charge": len({each["provider_key"] for each in journal.entries("charge")}),
            "ship": journal.count("ship"),
            "save": self.rows("orders"),
            "notify": journal.count("notify"),
            "write": int(read.answer["Item"]["amount"]["N"]),  # type: ignore[union-attr]
        }

    def rows(self, table: str) -> int:
        """Return how many rows a table has."""
        with self.engine.connect() as connection:
            return int(connection.execute(text(f"SELECT count(*) FROM {table}")).scalar_one())


@pytest.fixture
def url(postgresql: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A database of the test's own, which its workers find in their environment."""
    with new_database("postgresql", postgresql, tmp_path) as place:
        monkeypatch.setenv("TESTS_BANK_URL", place.url)
        engine = create_engine(place.url)
        SQLAlchemyReceipts(engine).create_table()
        with engine.begin() as connection:
            connection.execute(text('CREATE TABLE orders ("order" TEXT)'))
        engine.dispose()
        yield place.url


def send(rig: Rig, store: DynamoDBStore) -> Any:
    """Publish the order, and a task that follows with its result."""
    return chain(rig.app.tasks["fulfil"].s("ord-1", store.table), rig.app.tasks["follow"].s("after")).apply_async()


ONCE = dict.fromkeys((*STEPS, "write"), 1)


@pytest.mark.parametrize("broker", ["redis", "rabbitmq"], indirect=True)
def test_killed_at_each_place(make_guarded: MakeRig, wire: Wire, url: str, store: DynamoDBStore) -> None:
    """Before, in and after each step in turn: what is done is not done again, its value is kept, the chain goes on."""
    rig = make_guarded(wire.endpoint, visibility_seconds=CHILD_LOSS_SECONDS, tasks=FULFIL)
    for place in PLACES:
        rig.journal.shut(place)
    worker = rig.start_worker(2)
    published = send(rig, store)
    for place in PLACES:
        worker.kill_child(rig.journal.wait_for("at-gate", gate=place)["pid"])
        rig.journal.open(place)
    done = rig.result(published)
    books = Books(rig, url, store)
    # The one without a tool is done again where its process dies between its effect and the record.
    assert books.count() == {**ONCE, "notify": 2}
    assert rig.journal.count("started") == len(PLACES) + 1 + 1
    # One of the two rows of the order was rolled back with the process that wrote it.
    makers = {step: [entry["pid"] for entry in rig.journal.entries(step)] for step in STEPS}
    assert {step: len(each) for step, each in makers.items()} == {"charge": 2, "ship": 1, "save": 2, "notify": 2}
    assert done == {
        "charge": makers["charge"][0],
        "ship": makers["ship"][0],
        "save": makers["save"][1],
        "notify": makers["notify"][1],
    }
    (followed,) = rig.journal.entries("effect", key="after")
    assert followed["value"] == done
    assert books.rows("idempotency_receipts") == 1


@pytest.mark.parametrize("broker", ["redis"], indirect=True)
def test_killed_between_a_steps_commit_and_its_record(
    make_guarded: MakeRig, wire: Wire, url: str, store: DynamoDBStore
) -> None:
    """The next run finds the receipt, and asks nobody about the steps that the record has."""
    long = {"fulfil": {"idempotency": {**POLICY, "lease": 60}}}
    rig = make_guarded(wire.endpoint, visibility_seconds=CHILD_LOSS_SECONDS, tasks=long)
    worker, pass_on = rig.start_worker(2), threading.Event()
    # It has tried its permissions when it started.
    wire.clear()
    wire.break_nth(*KEEP_SAVE, hold(pass_on))
    published, books = send(rig, store), Books(rig, url, store)
    rig.journal.wait_until(lambda: books.rows("idempotency_receipts") == 1, BOUND_SECONDS, "no receipt is committed")
    first = int(rig.journal.wait_for("started")["pid"])
    worker.kill_child(first)
    done = rig.result(published)
    pass_on.set()
    second = int(rig.journal.entries("started", task="fulfil")[1]["pid"])
    assert done == {"charge": first, "ship": first, "save": first, "notify": second}
    assert (books.count(), rig.journal.count("asked"), rig.journal.count("save")) == (ONCE, 0, 1)


@pytest.mark.parametrize("broker", ["redis"], indirect=True)
@pytest.mark.parametrize("place", ["in-charge", "before-ship", "in-notify"])
def test_a_process_that_stands_still_longer_than_its_claim_lives(
    make_guarded: MakeRig, wire: Wire, url: str, store: DynamoDBStore, place: str
) -> None:
    """Another delivery takes over and does the rest; the one that goes on does no step more, and has its result."""
    rig = make_guarded(wire.endpoint, visibility_seconds=60, tasks=FULFIL)
    rig.journal.shut(place)
    worker = rig.start_worker(2)
    published = send(rig, store)
    zombie = int(rig.journal.wait_for("at-gate")["pid"])
    with worker.frozen_child(zombie):
        rig.journal.open(place)
        duplicate = rig.send("fulfil", "ord-1", store.table)
        done = rig.result(duplicate)
        behind = len(rig.journal.entries(pid=zombie))
    assert rig.result(published) == done
    assert rig.journal.count("Superseded", id=published.parent.id) == 1
    assert {each["event"] for each in rig.journal.entries(pid=zombie)[behind:]} & set(STEPS) == set()
    # The one without a tool was done by both.
    assert Books(rig, url, store).count() == {**ONCE, "notify": 1 + (place == "in-notify")}


@pytest.mark.parametrize("broker", ["redis"], indirect=True)
def test_a_process_that_stands_still_in_a_steps_transaction(
    make_guarded: MakeRig, wire: Wire, url: str, store: DynamoDBStore
) -> None:
    """Its successor waits for the row and is deferred; past its claim's end it rolls back, and one row is left."""
    rig = make_guarded(wire.endpoint, visibility_seconds=60, tasks=FULFIL)
    rig.journal.shut("in-save")
    worker = rig.start_worker(2)
    published = send(rig, store)
    zombie = int(rig.journal.wait_for("at-gate")["pid"])
    with worker.frozen_child(zombie):
        rig.journal.open("in-save")
        duplicate = rig.send("fulfil", "ord-1", store.table)
        rig.journal.wait_for("Deferred", id=duplicate.id, reason="StoreUnavailableError")
        assert Books(rig, url, store).rows("orders") == 0
    done = rig.result(duplicate)
    assert rig.result(published) == done
    assert (Books(rig, url, store).count(), rig.journal.count("save")) == (ONCE, 2)
