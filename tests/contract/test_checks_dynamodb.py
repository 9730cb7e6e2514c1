"""What the checks find at the table itself: each kind provoked at a real server, and gone after its remedy."""

import json
from collections.abc import Callable
from typing import Any

import pytest
from celery import Celery

from idempotent_tasks import DynamoDBStore
from idempotent_tasks.checks import CheckContext, Finding, run_checks
from idempotent_tasks.checks.dynamodb import TABLE_FINDINGS, WORKER_ACTIONS
from tests.contract.conftest import MakeStore
from tests.testbed.wire import Wire, answer, refuse, shift_date

Look = Callable[[DynamoDBStore], list[Finding]]

#: Every kind, by the test that provokes it and fixes it.
PROVOKED = {
    "clock-offset": "test_a_clock_that_is_off",
    "permission-missing": "test_a_missing_permission",
    "store-refuses": "test_a_store_that_refuses",
    "store-unreachable": "test_an_unreachable_store",
    "table-key-schema": "test_another_key_schema",
    "table-missing": "test_no_table",
    "table-ttl-off": "test_no_ttl",
}


@pytest.fixture
def look() -> Look:
    """Look at an app over a store."""

    def look(store: DynamoDBStore) -> list[Finding]:
        app = Celery("shop", broker="amqp://localhost", set_as_current=False)
        app.conf.idempotency_store = store
        return run_checks(CheckContext.of_app(app, "celery.concurrency.prefork"))

    return look


def test_every_problem_is_provoked() -> None:
    """A kind of problem without a test here would be a guess."""
    assert set(PROVOKED) == set(TABLE_FINDINGS)
    assert set(PROVOKED.values()) <= set(globals())


def test_nothing_is_wrong_and_nothing_is_written(look: Look, dynamodb: DynamoDBStore, wire: Wire, raw: Any) -> None:
    """A table as `create_table` leaves it has no finding; looking at it leaves no item behind."""
    assert look(dynamodb) == []
    assert sorted(set(wire.operations())) == sorted(WORKER_ACTIONS)
    assert raw.scan(TableName=dynamodb.table)["Count"] == 0


def test_a_composite_table_is_looked_at_too(look: Look, make_store: MakeStore) -> None:
    """The probe's key fits a key of two attributes."""
    store = make_store(sort_key_attr="sort")
    store.create_table()
    assert look(store) == []


def test_two_workers_that_start_look_at_keys_of_their_own(look: Look, dynamodb: DynamoDBStore, wire: Wire) -> None:
    """One key would lie in one partition, which starting workers could keep busy."""
    for _ in range(2):
        look(dynamodb)
    written = [request.body["Item"]["id"]["S"] for request in wire.requests if request.operation == "PutItem"]
    assert len(set(written)) == 2
    assert [request.body["Key"]["id"]["S"] for request in wire.requests if request.operation == "UpdateItem"] == written


def test_no_table(look: Look, make_store: MakeStore) -> None:
    """A table that is not there; the remedy is the command that makes it."""
    store = make_store()
    (finding,) = look(store)
    assert (finding.code, finding.remedy) == ("table-missing", "celery -A <app> idempotency create-table")
    assert repr(store.table) in finding.what
    store.create_table()
    assert look(store) == []


def test_another_key_schema(look: Look, dynamodb: DynamoDBStore, make_store: MakeStore) -> None:
    """A table with another key; the remedy is the store's own attribute."""
    found = look(make_store(key_attr="pk"))
    assert "table-key-schema" in [each.code for each in found]
    assert look(make_store(key_attr="id")) == []


def test_no_ttl(look: Look, make_store: MakeStore, raw: Any) -> None:
    """A table that never forgets; the remedy is AWS's own command, here by the same call of its API."""
    store = make_store()
    raw.create_table(
        TableName=store.table,
        KeySchema=[{"AttributeName": "id", "KeyType": "HASH"}],
        AttributeDefinitions=[{"AttributeName": "id", "AttributeType": "S"}],
        BillingMode="PAY_PER_REQUEST",
    )
    (finding,) = look(store)
    assert finding.code == "table-ttl-off"
    command = f"aws dynamodb update-time-to-live --table-name {store.table} --time-to-live-specification "
    assert finding.remedy == f"{command}Enabled=true,AttributeName=expiration"
    raw.update_time_to_live(
        TableName=store.table, TimeToLiveSpecification={"Enabled": True, "AttributeName": "expiration"}
    )
    assert look(store) == []


@pytest.mark.parametrize("action", WORKER_ACTIONS)
def test_a_missing_permission(look: Look, dynamodb: DynamoDBStore, wire: Wire, action: str) -> None:
    """The action that IAM denies is named, and the statement that allows it is the remedy."""
    wire.break_when(
        lambda operation, _: operation == action, answer(400, "AccessDeniedException", "User is not authorized")
    )
    (finding,) = look(dynamodb)
    assert finding.code == "permission-missing"
    assert f"dynamodb:{action}" in finding.what
    statement = json.loads(finding.remedy)
    assert statement["Action"] == f"dynamodb:{action}"
    wire.heal()
    assert look(dynamodb) == []


def test_an_unreachable_store(look: Look, dynamodb: DynamoDBStore, wire: Wire) -> None:
    """Nobody answers; afterwards somebody does."""
    with wire.outage(refuse):
        (finding,) = look(dynamodb)
    assert finding.code == "store-unreachable"
    assert look(dynamodb) == []


def test_a_store_that_refuses(look: Look, dynamodb: DynamoDBStore, wire: Wire) -> None:
    """Credentials that nobody knows: the remedy is in the message."""
    wire.break_all(answer(400, "UnrecognizedClientException", "The security token is invalid"))
    (finding,) = look(dynamodb)
    assert finding.code == "store-refuses"
    assert "the credentials are not known there; fix them" in finding.what
    wire.heal()
    assert look(dynamodb) == []


@pytest.mark.parametrize(("offset", "side"), [(600, "behind"), (-600, "ahead of")])
def test_a_clock_that_is_off(look: Look, make_store: MakeStore, wire: Wire, offset: int, side: str) -> None:
    """This machine's clock is reported in seconds against DynamoDB's, and nothing is said once they agree."""
    store = make_store()
    store.create_table()
    wire.break_all(shift_date(offset))
    (finding,) = look(store)
    assert finding.code == "clock-offset"
    assert f" s {side} DynamoDB's" in finding.what
    seconds = int(finding.what.partition(" is ")[2].partition(" s ")[0])
    assert abs(seconds - abs(offset)) <= 2
    wire.heal()
    assert look(store) == []
