"""A body's writes in the transaction of its outcome: its process dies or stands still at each side of the request."""

import threading

import pytest

from idempotent_tasks import DynamoDBStore
from tests.integration.conftest import MakeRig
from tests.support.rig import Rig
from tests.testbed.brokers import CHILD_LOSS_SECONDS
from tests.testbed.wire import Wire, hold, hold_answer

TRANSACTION = "TransactWriteItems"
BRIEF = {"idempotency": {"key": "order", "lease": 3}}

pytestmark = [
    pytest.mark.parametrize("broker", ["redis"], indirect=True),
    pytest.mark.parametrize("dynamodb_endpoint", ["ministack"], indirect=True),
]


def amount(store: DynamoDBStore) -> int:
    """Return what was added to the counter."""
    read = store.connection.request("get_item", TableName=store.table, Key={"id": {"S": "till"}}, ConsistentRead=True)
    return int(read.answer["Item"]["amount"]["N"])  # type: ignore[union-attr]


def started(rig: Rig, times: int = 1) -> int:
    """Return the process of a run."""
    return int(rig.journal.wait_for("started", times=times)["pid"])


def test_killed_before_the_transaction_arrives(make_guarded: MakeRig, wire: Wire, store: DynamoDBStore) -> None:
    """The next delivery writes; the dead process's request, which arrives after that, writes nothing."""
    rig = make_guarded(wire.endpoint, visibility_seconds=CHILD_LOSS_SECONDS, tasks={"deposit": BRIEF})
    worker, pass_on = rig.start_worker(2), threading.Event()
    wire.break_nth(TRANSACTION, 1, hold(pass_on))
    published = rig.send("deposit", "ord-1", store.table)
    rig.journal.wait_until(lambda: TRANSACTION in wire.operations(), 20, "no transaction is sent")
    worker.kill_child(started(rig))
    assert rig.result(published) == "ord-1"
    assert amount(store) == 1
    answered = len(wire.operations())
    pass_on.set()
    assert rig.result(rig.send("deposit", "ord-2", store.table)) == "ord-2"
    assert len(wire.operations()) > answered
    assert amount(store) == 2


def test_killed_after_the_transaction_has_arrived(make_guarded: MakeRig, wire: Wire, store: DynamoDBStore) -> None:
    """The next delivery replays."""
    rig = make_guarded(wire.endpoint, visibility_seconds=CHILD_LOSS_SECONDS, tasks={"deposit": BRIEF})
    worker, pass_on = rig.start_worker(2), threading.Event()
    wire.break_nth(TRANSACTION, 1, hold_answer(pass_on))
    published = rig.send("deposit", "ord-1", store.table)
    rig.journal.wait_until(lambda: TRANSACTION in wire.operations(), 20, "no transaction is sent")
    key = rig.journal.wait_for("Claimed")["key"]
    rig.journal.wait_until(lambda: store.get(key).completed_at is not None, 20, "it is not carried out")
    worker.kill_child(started(rig))
    pass_on.set()
    assert rig.result(published) == "ord-1"
    assert rig.journal.count("Replayed", id=published.id) == 1
    assert (rig.journal.count("started"), amount(store)) == (1, 1)


def test_a_process_that_stands_still_longer_than_its_claim_lives(
    make_guarded: MakeRig, wire: Wire, store: DynamoDBStore
) -> None:
    """Another delivery takes over, and writes; the one that goes on writes nothing, and returns that one's result."""
    rig = make_guarded(wire.endpoint, visibility_seconds=60, tasks={"deposit": BRIEF})
    rig.journal.shut("before-effect")
    worker = rig.start_worker(2)
    published = rig.send("deposit", "ord-1", store.table)
    with worker.frozen_child(rig.journal.wait_for("at-gate")["pid"]):
        rig.journal.open("before-effect")
        duplicate = rig.send("deposit", "ord-1", store.table)
        assert rig.result(duplicate) == "ord-1"
    assert rig.result(published) == "ord-1"
    assert rig.journal.count("Superseded", id=published.id) == 1
    assert (rig.journal.count("started"), amount(store)) == (2, 1)
