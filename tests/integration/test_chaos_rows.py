"""The chaos command's effects in databases: rows and items that are there once their transaction is committed."""

import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any
from uuid import uuid4

import boto3
import pytest

from benchmarks import provider
from benchmarks.chaos import contenders, rows
from benchmarks.chaos.arena import Arena, Journal, Reader
from benchmarks.chaos.contenders import build_app
from benchmarks.chaos.history import What
from benchmarks.chaos.stepping import STEPS
from idempotent_tasks import DynamoDBStore
from tests.conftest import REGION

BOUND_SECONDS = 20.0


def effect(run: str) -> dict[str, object]:
    """Return what a body says of its effect."""
    return {"key": "k001", "run": run, "task_id": "m1", "pid": 11, "value": f"of {run}", "step": ""}


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


@pytest.fixture
def arena(url: str, ministack: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Arena]:
    """An arena whose five effects are at real servers; no request of a dead run is waited for."""
    prefix, journal = f"chaos-{uuid4().hex[:6]}", Journal.of(tmp_path)
    with provider.running(lambda: 0.0, charged=lambda charge: journal.append(What.CHARGED, **charge)) as running:
        arena = Arena(
            contender="ours-steps",
            prefix=prefix,
            broker_url="memory://",
            transport_options={},
            result_backend="cache+memory://",
            lock_url="",
            endpoint=ministack,
            region=REGION,
            table=f"{prefix}.records",
            credentials_uri="",
            provider_url=running.url,
            database_url=url,
            traced=False,
            directory=str(tmp_path),
        )
        for table in (arena.table, arena.items):
            DynamoDBStore(table, region=REGION, endpoint_url=ministack).create_table()
        monkeypatch.setattr(contenders, "SETTLE_SECONDS", 0.0)
        for name, value in arena.environment().items():
            monkeypatch.setenv(name, value)
        yield arena
    contenders._journal_of_this_process.cache_clear()


def test_five_effects_of_one_body(arena: Arena, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each is there once, wherever it is, although the first run ends before the last; the value is made of theirs."""
    app, item_of = build_app(arena), rows.item_of
    failed: list[Any] = []

    def fail_once(*given: Any) -> dict[str, Any]:
        if not failed:
            failed.append(given)
            raise ConnectionError
        return item_of(*given)

    monkeypatch.setattr(rows, "item_of", fail_once)
    app.set_current()
    task, arguments = app.tasks[arena.task_name], {"key": "k001", "seconds": 0.01, "effect_seconds": 0.0}
    with pytest.raises(ConnectionError):
        task.apply(kwargs=arguments).get()
    value = task.apply(kwargs=arguments).get()
    told = Reader(arena.journal.path).news()
    app.close()
    effects = {each.step: each.value for each in told if each.what in (What.EFFECT, What.CHARGED)}
    place = {"region_name": REGION, "endpoint_url": arena.endpoint}
    committed = [*rows.committed_rows(arena.database_url), *rows.committed_items(arena.items, **place)]
    effects |= {str(each["step"]): str(each["value"]) for each in committed}
    assert (len(committed), len([each for each in told if each.step])) == (2, 3)
    assert value == "-".join(effects[step] for step in STEPS)
    assert [each.value for each in told if each.what is What.ENDED] == ["", value]
