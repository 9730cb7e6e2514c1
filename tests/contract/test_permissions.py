"""The least privilege that the templates grant: what the library really asks of DynamoDB, seen on the wire."""

from types import SimpleNamespace
from typing import Any

from celery import Celery
from click.testing import CliRunner

from idempotent_tasks import DynamoDBStore
from idempotent_tasks.checks import CheckContext, run_checks
from idempotent_tasks.checks.dynamodb import WORKER_ACTIONS
from idempotent_tasks.cli import idempotency
from idempotent_tasks.core.records import KeptSteps, Step
from idempotent_tasks.stores.dynamodb.admin import OPERATOR_ACTIONS
from tests.contract.conftest import MakeStore
from tests.support.guarding import done, grant, request_by
from tests.testbed.wire import Wire


def test_a_worker_does_what_it_is_granted(dynamodb: DynamoDBStore, wire: Wire) -> None:
    """Start-up checks and every step of the protocol together need each worker's action, and no other."""
    app = Celery("shop", broker="amqp://localhost", set_as_current=False)
    app.conf.idempotency_store = dynamodb
    run_checks(CheckContext.of_app(app, "celery.concurrency.prefork"))
    claim = grant(dynamodb)
    dynamodb.claim(request_by("second"))
    dynamodb.renew(claim, 60, 3600)
    dynamodb.note_deferral(claim.key, claim.owner, "token", 2**42)
    dynamodb.release(claim, "Retry")
    dynamodb.commit(grant(dynamodb, "third"), done(), 3600)
    dynamodb.note_dispatch(claim.key, "id-third")
    dynamodb.park(grant(dynamodb, "fourth", key="parked"), "Rerun")
    dynamodb.keep_message("parked", "id-fourth", b"message")
    stepped = grant(dynamodb, "fifth", key="stepped")
    for name, size in (("here", 1), ("also here", 1), ("elsewhere", 5000)):
        step = Step(inputs="i", codec="json", data="x" * size)
        assert isinstance(dynamodb.keep_step(stepped, name, step, dynamodb.get("stepped").steps), KeptSteps)
    dynamodb.kept_step(stepped, "elsewhere")
    record = dynamodb.get(claim.key)
    dynamodb.forget(claim.key)
    wire.requests[:] = [each for each in wire.requests if each.operation != "DeleteItem"]
    dynamodb.restore(record)
    assert set(wire.operations()) == set(WORKER_ACTIONS)


def test_an_operator_does_what_he_is_granted(make_store: MakeStore, wire: Wire) -> None:
    """Every command, on both kinds of table, needs each operator's action, and no other but the worker's."""
    for given in ({}, {"sort_key_attr": "sort", "static_pk_value": "shop"}):
        store = make_store(**given)
        run(store, "create-table")
        run(store, "create-table", "--deletion-protection")
        for number in range(3):
            grant(store, key=f"shop#{number}")
        store.park(grant(store, key="shop#parked"), "Rerun")
        run(store, "check")
        run(store, "list")
        claim = grant(store, key="shop#stepped")
        store.keep_step(claim, "report", Step(inputs="i", codec="json", data="x" * 5000), claim.steps)
        run(store, "show", "shop#1")
        run(store, "show", "shop#stepped")
        run(store, "release", "shop#1", "--yes", "--force")
        run(store, "forget", "shop#2", "--yes", "--force")
        run(store, "resolve", "shop#parked", "--done", "17", "--yes")
        run(store, "purge", "--status", "free", "--before", "2099-01-01", "--yes")
        run(store, "purge", "--status", "expired", "--before", "2099-01-01", "--yes")
        run(store, "watch", "--once", "--interval", "0.5")
        run(store, "template", "--format", "iam")
        store.connection.request("update_table", TableName=store.table, DeletionProtectionEnabled=False)
        store.connection.request("delete_table", TableName=store.table)
    asked = set(wire.operations()) - {"DeleteTable"}
    assert set(OPERATOR_ACTIONS) <= asked <= {*OPERATOR_ACTIONS, *WORKER_ACTIONS}


def run(store: DynamoDBStore, *words: str) -> Any:
    """Run one command, which must succeed."""
    app = Celery("shop", broker="amqp://localhost", set_as_current=False)
    app.conf.idempotency_store = store
    result = CliRunner().invoke(idempotency, list(words), obj=SimpleNamespace(app=app))
    assert result.exit_code == 0, result.output
    return result
