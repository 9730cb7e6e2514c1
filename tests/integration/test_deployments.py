"""A deployment that renames a task, on each broker: what becomes of messages under the old name."""

from typing import Any

import kombu
from celery import chord

from idempotent_tasks import DynamoDBStore, IdempotentTask, Record
from idempotent_tasks.core.records import is_reservation
from idempotent_tasks.stores.dynamodb.admin import TableAdmin
from tests.integration.conftest import MakeRig
from tests.support.deployments import row
from tests.testbed import brokers
from tests.testbed.brokers import Broker
from tests.testbed.waiting import wait_for

ONCE = {"key": "order", "at_publish": "join"}


def charge(order: str) -> None:
    """Be known to the producer alone."""


@row("The task's name")
def test_an_old_name_that_no_worker_knows(make_guarded: MakeRig, store: DynamoDBStore, broker: Broker) -> None:
    """Its task fails, nothing follows, its reservation stays, and the message is gone."""
    rig = make_guarded(settings={"idempotency_observers": []})
    renamed: Any = rig.app.task(charge, base=IdempotentTask, name="old.charge", shared=False, idempotency=ONCE)
    worker = rig.start_worker(1)
    rig.ask_store()
    follow = rig.app.tasks["follow"]
    published = renamed.apply_async(("ord-1",), link=follow.si(1, "link"), link_error=follow.si(1, "error"))
    assert isinstance(published.get(timeout=30, propagate=False), Exception)
    assert (published.state, type(published.result).__name__) == ("FAILURE", "NotRegistered")
    assert "Received unregistered task of type 'old.charge'" in worker.log()
    body = chord([renamed.s("ord-2"), renamed.s("ord-3")])(follow.si(1, "body"))
    failed = [type(each.get(timeout=30, propagate=False)).__name__ for each in body.parent.results]
    assert failed == ["NotRegistered"] * 2
    # What was sent for them would run before what is published now.
    assert rig.result(rig.send("charge", "ord-4", 17)) == 17
    assert rig.journal.count("started", task="follow") == 0
    assert body.state == "PENDING"
    records = [each for each in TableAdmin(store).records(task="old.charge") if isinstance(each, Record)]
    assert all(map(is_reservation, records))
    assert published.id in {each.task_id for each in records}
    assert renamed.delay("ord-1").id == published.id
    # kombu before 5.7 leaves in SQS what is rejected.
    held = 3 if broker.name == "sqs" and kombu.VERSION < (5, 7) else 0
    wait_for(lambda: brokers.messages_held(rig.app) == held, 10.0, lambda: str(brokers.messages_held(rig.app)))
