"""The admin commands and the steps of bodies: which are shown, by what, and which are deleted."""

import json
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from celery import Celery
from click.testing import CliRunner, Result

from idempotent_tasks import DynamoDBStore, IdempotentTask
from idempotent_tasks.cli import idempotency
from idempotent_tasks.core.records import Claim, KeptSteps, Step, step_id, step_item_key
from idempotent_tasks.stores.dynamodb.admin import TableAdmin
from tests.contract.conftest import MakeStore
from tests.support.guarding import done, grant
from tests.testbed.wire import Answer, Forward, Wire

Run = Callable[..., Result]

SECRET = "of which nobody is to know"
LATE = "2099-01-01"
#: Attributes of both kinds of table, and the names of the keys' attributes.
TABLES: dict[str, tuple[dict[str, str], str]] = {
    "simple": ({}, "id"),
    "composite": ({"sort_key_attr": "sk", "static_pk_value": "shop"}, "sk"),
}


def charge(order: int) -> int:
    """A task body."""
    return order


@pytest.fixture(params=TABLES)
def kind(request: pytest.FixtureRequest) -> str:
    """Each kind of table in turn."""
    return str(request.param)


@pytest.fixture
def store(make_store: MakeStore, raw: Any, kind: str) -> DynamoDBStore:
    """A store over a table whose server deletes nothing that has expired."""
    store = make_store(**TABLES[kind][0])
    store.create_table()
    raw.update_time_to_live(
        TableName=store.table, TimeToLiveSpecification={"Enabled": False, "AttributeName": "expiration"}
    )
    return store


@pytest.fixture
def run(store: DynamoDBStore) -> Run:
    """Run a command as ``celery -A shop idempotency`` does."""
    app = Celery("shop", broker="amqp://localhost", set_as_current=False)
    app.conf.update(idempotency_store=store, task_time_limit=60)
    app.task(charge, name="shop.charge", base=IdempotentTask, shared=False)

    def run(*words: str) -> Result:
        return CliRunner().invoke(idempotency, list(words), obj=SimpleNamespace(app=app))

    return run


def stepped(store: DynamoDBStore, key: str, **given: Any) -> Claim:
    """Claim a key, and keep two steps in its record and two beside it."""
    claim = grant(store, key=key, **given)
    kept = claim.steps
    for name, size in (("charge 17", 1), ("mail", 1), ("report", 5000), ("archive", 5000)):
        answer = store.keep_step(claim, name, Step(inputs="i", codec="json", data=SECRET * size), kept)
        assert isinstance(answer, KeptSteps)
        kept = answer
    return claim


def keys_of(raw: Any, store: DynamoDBStore) -> set[str]:
    """Return the keys of all items, records and steps."""
    name = store.schema.sort_key_attr or store.schema.key_attr
    return {item[name]["S"] for item in raw.scan(TableName=store.table, ConsistentRead=True)["Items"]}


def set_expiration(store: DynamoDBStore, raw: Any, key: str, expiration: int) -> None:
    """Let an item expire at another time (epoch seconds)."""
    raw.update_item(
        TableName=store.table,
        Key=store.schema.key(key),
        UpdateExpression="SET expiration = :at",
        ExpressionAttributeValues={":at": {"N": str(expiration)}},
    )


class TestShown:
    """``list`` and ``show``."""

    def test_a_list_has_records_only(self, run: Run, store: DynamoDBStore) -> None:
        """Items of steps are neither records nor items that are none."""
        stepped(store, "shop.charge#1")
        grant(store, key="shop.charge#2")
        lines = run("list").stdout.splitlines()
        assert sorted(line.split()[-1] for line in lines[1:-1]) == ["shop.charge#1", "shop.charge#2"]
        assert lines[-1] == "2 records"
        result = run("list", "--json")
        shown = {each["key"]: each for each in map(json.loads, result.stdout.splitlines())}
        assert shown.keys() == {"shop.charge#1", "shop.charge#2"}
        assert (shown["shop.charge#1"]["steps"], shown["shop.charge#1"]["steps_elsewhere"]) == (
            ["charge 17", "mail"],
            2,
        )
        assert (shown["shop.charge#2"]["steps"], shown["shop.charge#2"]["steps_elsewhere"]) == (None, None)
        assert SECRET not in result.output

    def test_a_record_with_the_names_of_its_steps(self, run: Run, store: DynamoDBStore) -> None:
        """Wherever they lie; never their results, with ``--data`` neither."""
        stepped(store, "shop.charge#1")
        result = run("show", "shop.charge#1", "--json", "--data")
        shown = json.loads(result.stdout)
        assert shown["steps"] == ["archive", "charge 17", "mail", "report"]
        assert SECRET not in result.output
        assert "['archive', 'charge 17', 'mail', 'report']" in run("show", "shop.charge#1").stdout

    def test_a_step_whose_item_is_gone(self, run: Run, store: DynamoDBStore, raw: Any) -> None:
        """The record still knows of it, and not its name."""
        claim = stepped(store, "shop.charge#1")
        raw.delete_item(TableName=store.table, Key=store.schema.key(step_item_key(claim, "report")))
        shown = json.loads(run("show", "shop.charge#1", "--json").stdout)
        assert shown["steps"] == sorted(["archive", "charge 17", "mail", f"{step_id('report')}, whose item is gone"])

    def test_a_record_without_steps(self, run: Run, store: DynamoDBStore) -> None:
        """It has no such line."""
        store.commit(stepped(store, "shop.charge#1"), done(), 3600)
        assert "steps" not in run("show", "shop.charge#1").stdout

    def test_the_step_of_a_task_id(self, run: Run, store: DynamoDBStore) -> None:
        """A scan for a task id finds the record, with its steps."""
        stepped(store, "shop.charge#1", task_id="t1")
        shown = json.loads(run("show", "t1", "--scan", "--json").stdout)
        assert (shown["key"], len(shown["steps"])) == ("shop.charge#1", 4)


class TestDeleted:
    """``purge`` and ``forget``."""

    def test_what_has_expired_is_purged(self, run: Run, store: DynamoDBStore, raw: Any) -> None:
        """With expired records; steps of a record that runs stay."""
        claim = stepped(store, "shop.charge#1")
        stepped(store, "shop.charge#2")
        for key in ("shop.charge#1", step_item_key(claim, "report"), step_item_key(claim, "archive")):
            set_expiration(store, raw, key, 1_000_000_000)
        before = keys_of(raw, store)
        asked = run("purge", "--state", "expired", "--before", LATE)
        assert (asked.exit_code, keys_of(raw, store)) == (1, before)
        assert "1 record and 2 items of steps\n" in asked.stdout
        purged = run("purge", "--state", "expired", "--before", LATE, "--yes")
        assert (purged.exit_code, "deleted 3" in purged.stdout) == (0, True)
        left = {key for key in before if key.startswith("shop.charge#2")}
        assert keys_of(raw, store) == left
        assert len(left) == 3
        assert run("purge", "--state", "expired", "--before", LATE, "--yes").stdout == "no such records\n"

    @pytest.mark.parametrize(
        ("words", "left"),
        [
            (["--state", "expired", "--before", "2001-09-09"], 2),
            (["--state", "expired", "--before", "2001-09-10"], 1),
            (["--state", "expired", "--before", LATE, "--task", "shop.charge"], 2),
            (["--state", "completed", "--before", LATE], 2),
        ],
        ids=["expired later", "expired before", "a task's", "another state"],
    )
    def test_which_steps(self, run: Run, store: DynamoDBStore, raw: Any, words: list[str], left: int) -> None:
        """Those that have expired before the time that was given, if expired records are deleted, of any task."""
        claim = stepped(store, "shop.charge#1")
        store.forget("shop.charge#1")
        # The 9th of September 2001, 02:46:40 in the morning.
        set_expiration(store, raw, step_item_key(claim, "report"), 1_000_003_600)
        result = run("purge", *words, "--yes")
        assert result.exit_code == 0
        assert len(keys_of(raw, store)) == left

    def test_a_step_that_is_prolonged_meanwhile(self, run: Run, store: DynamoDBStore, raw: Any, wire: Wire) -> None:
        """It stays, and is counted as changed."""
        key = step_item_key(stepped(store, "shop.charge#1"), "report")
        set_expiration(store, raw, key, 1_000_000_000)
        wire.clear()

        def prolong_first(forward: Forward) -> Answer:
            set_expiration(store, raw, key, 4_000_000_000)
            return forward()

        wire.break_nth("DeleteItem", 1, prolong_first)
        result = run("purge", "--state", "expired", "--before", LATE, "--yes")
        assert "deleted 0, left 1 that changed meanwhile" in result.stdout
        assert key in keys_of(raw, store)

    def test_what_is_forgotten(self, run: Run, store: DynamoDBStore, raw: Any) -> None:
        """The record; the items of its steps are left to TTL, and no later run of the key finds them."""
        claim = stepped(store, "shop.charge#1")
        assert run("forget", "shop.charge#1", "--yes", "--force").exit_code == 0
        assert keys_of(raw, store) == {step_item_key(claim, "report"), step_item_key(claim, "archive")}
        assert grant(store, "two", key="shop.charge#1").steps == KeptSteps()
        assert [each.key for each in TableAdmin(store).records()] == ["shop.charge#1"]

    def test_what_is_released(self, run: Run, store: DynamoDBStore) -> None:
        """The next run finds the steps."""
        stepped(store, "shop.charge#1")
        kept = store.get("shop.charge#1").steps
        assert run("release", "shop.charge#1", "--yes", "--force").exit_code == 0
        assert grant(store, "two", key="shop.charge#1").steps == kept

    @pytest.mark.parametrize(("way", "left"), [(["--done", "17"], 0), (["--run"], 4)], ids=["done", "run"])
    def test_what_is_resolved(self, run: Run, store: DynamoDBStore, way: list[str], left: int) -> None:
        """An outcome ends the steps; another run finds them."""
        store.release(stepped(store, "shop.charge#1"), "TimeoutError")
        store.park(grant(store, "two", key="shop.charge#1"), "Rerun")
        assert len(json.loads(run("show", "shop.charge#1", "--json").stdout)["steps"]) == 4
        result = run("resolve", "shop.charge#1", *way, "--yes")
        assert result.exit_code == 0, result.output
        assert len(store.get("shop.charge#1").steps) == left
