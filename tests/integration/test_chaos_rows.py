"""The chaos command's effects in databases: rows and items that are there once their transaction is committed."""

import threading
from collections.abc import Iterator
from contextlib import suppress
from uuid import uuid4

import boto3
import pytest

from benchmarks.chaos import rows
from idempotent_tasks import DynamoDBStore
from tests.conftest import REGION

BOUND_SECONDS = 20.0


def effect(run: str) -> dict[str, object]:
    """Return what a body says of its effect."""
    return {"key": "k001", "run": run, "task_id": "m1", "pid": 11, "value": f"of {run}"}


@pytest.fixture
def url(postgresql: dict[str, str]) -> Iterator[str]:
    """A database with one order."""
    with rows.database(postgresql, f"chaos-{uuid4().hex[:6]}.by-hand", ["k001"]) as url:
        yield url


def runs_of(effects: list[dict[str, object]]) -> list[str]:
    """Return which runs have an effect; each says when, and nothing else has changed of it."""
    for each in effects:
        assert isinstance(each.pop("at"), float)
        assert each == effect(str(each["run"]))
    return sorted(str(each["run"]) for each in effects)


def wait_until_it_waits(thread: threading.Thread, url: str) -> None:
    """Return when a transaction of the database, which is that of a thread, waits for a lock."""
    waiting = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
    count = 0
    while not count:
        assert thread.is_alive(), "it did not wait"
        with rows.engine_of(url).connect() as connection:
            count = connection.exec_driver_sql(waiting).scalar_one()


def test_row_is_an_effect_once_it_is_committed(url: str) -> None:
    """Two runs of one key have two effects, and one whose transaction ends otherwise has none."""
    rows.write_at_once(url, effect("a"))
    with suppress(ZeroDivisionError), rows.engine_of(url).begin() as connection:
        rows.write(connection, effect("b"))
        raise ZeroDivisionError
    rows.write_at_once(url, effect("c"))
    assert runs_of(rows.committed_rows(url)) == ["a", "c"]


def test_effects_are_read_when_the_last_writer_has_ended(url: str) -> None:
    """A transaction that is open when all is over counts if it commits."""
    found: list[dict[str, object]] = []
    with rows.engine_of(url).begin() as connection:
        rows.write(connection, effect("a"))
        reader = threading.Thread(target=lambda: found.extend(rows.committed_rows(url)))
        reader.start()
        wait_until_it_waits(reader, url)
    reader.join(BOUND_SECONDS)
    assert runs_of(found) == ["a"]


def test_second_run_of_an_order_waits_for_the_first_and_has_its_result(url: str) -> None:
    """The lock is that of the order's row, and lasts until the result is there."""
    seen: list[str | None] = []

    def come_second() -> None:
        with rows.engine_of(url).begin() as connection:
            seen.append(rows.locked_order(connection, "k001"))

    with rows.engine_of(url).begin() as connection:
        assert rows.locked_order(connection, "k001") is None
        second = threading.Thread(target=come_second)
        second.start()
        wait_until_it_waits(second, url)
        rows.store_result(connection, "k001", "of a")
    second.join(BOUND_SECONDS)
    assert seen == ["of a"]


def test_item_is_an_effect_once_it_is_put(dynamodb_endpoint: str) -> None:
    """The write is one that a transaction takes, and two runs of one key put two items."""
    table = f"chaos-{uuid4().hex[:6]}.items"
    DynamoDBStore(table, region=REGION, endpoint_url=dynamodb_endpoint).create_table()
    place = {"region_name": REGION, "endpoint_url": dynamodb_endpoint}
    for run in ("a", "b"):
        boto3.client("dynamodb", **place).transact_write_items(TransactItems=[rows.item_of(table, effect(run))])
    assert runs_of(rows.committed_items(table, **place)) == ["a", "b"]
