"""RabbitMQ's quorum queues: their delivery limit, and how a deferred message waits beside them.

A quorum queue counts how often a message came back (``x-delivery-count``) and drops it, or dead-letters it, when that
exceeds ``x-delivery-limit`` (https://www.rabbitmq.com/docs/quorum-queues#poison-message-handling).  Where Celery
detects one (``celery.utils.quorum_queues``) a worker takes no message more for one that it holds, so that a countdown
waits in queues of the broker, which count whole seconds; the worker waits for the rest.
"""

import celery
import pytest

from idempotent_tasks import CrashLoopError
from tests.integration.conftest import MakeRig
from tests.testbed.brokers import messages_held

BY_ORDER = {"time_limit": 120, "idempotency": {"key": "order"}}

pytestmark = pytest.mark.parametrize("broker", ["rabbitmq"], indirect=True)
delayed_natively = pytest.mark.skipif(celery.__version__ < "5.5", reason="Celery 5.5 is the first to have it")


def quorum(delivery_limit: int) -> dict[str, int | str]:
    """Return the arguments of a quorum queue that gives a message back so often at most."""
    return {"x-queue-type": "quorum", "x-delivery-limit": delivery_limit}


def test_crash_loop_ends_visibly_before_the_delivery_limit(make_guarded: MakeRig) -> None:
    """With a delivery limit above ``max_crashes`` a task that kills its process fails, instead of being dropped."""
    rig = make_guarded(
        queue_arguments=quorum(delivery_limit=4),
        tasks={"die": {"time_limit": 120, "idempotency": {"key": "order", "max_crashes": 2}}},
    )
    worker = rig.start_worker()
    published = rig.send("die", "ord-1")
    with pytest.raises(CrashLoopError, match="2 times in a row"):
        rig.result(published)
    assert [each["attempt"] for each in rig.journal.entries("started")] == [1, 2]
    assert [each["delivery_count"] for each in rig.journal.entries("received")] == [0, 1, 2]
    rig.journal.wait_for("acknowledged", id=published.id)
    worker.process.terminate()
    assert messages_held(rig.app) == 0


def test_delivery_limit_drops_a_crash_loop_before_max_crashes(make_guarded: MakeRig) -> None:
    """With a delivery limit below ``max_crashes`` the broker drops the task: no failure is ever stored."""
    rig = make_guarded(
        queue_arguments=quorum(delivery_limit=1),
        tasks={"die": {"time_limit": 120, "idempotency": {"key": "order", "max_crashes": 5}}},
    )
    worker = rig.start_worker()
    published = rig.send("die", "ord-1")
    rig.journal.wait_for("Released", times=2, id=published.id)
    worker.process.terminate()
    assert messages_held(rig.app) == 0
    assert published.state == "PENDING"
    assert rig.journal.count("started") == 2


def test_deferrals_leave_the_delivery_limit_alone(make_guarded: MakeRig) -> None:
    """A duplicate is deferred more often than its queue delivers a message, and still gets the result."""
    rig = make_guarded(queue_arguments=quorum(delivery_limit=1), tasks={"charge": BY_ORDER})
    rig.journal.shut("before-effect")
    worker = rig.start_worker()
    original = rig.send("charge", "ord-1", 17)
    rig.journal.wait_for("at-gate")
    duplicate = rig.send("charge", "ord-1", 17)
    rig.journal.wait_for("Deferred", times=2, id=duplicate.id)
    rig.journal.open("before-effect")
    assert [rig.result(original), rig.result(duplicate)] == [17, 17]
    assert rig.journal.count("effect") == 1
    assert {each["delivery_count"] for each in rig.journal.entries("received")} == {0}
    worker.retire()
    assert messages_held(rig.app) == 0


@delayed_natively
@pytest.mark.parametrize("exchange_type", ["topic", "direct"])
def test_a_deferred_message_waits_in_the_broker(make_guarded: MakeRig, exchange_type: str) -> None:
    """A duplicate waits in a delay of its queue's own, again and again: never too short, and it gets the result."""
    rig = make_guarded(
        queue_arguments=quorum(delivery_limit=1), exchange_type=exchange_type, tasks={"charge": BY_ORDER}
    )
    rig.journal.shut("before-effect")
    worker = rig.start_worker()
    original = rig.send("charge", "ord-1", 17)
    rig.journal.wait_for("at-gate")
    duplicate = rig.send("charge", "ord-1", 17)
    rig.journal.wait_for("Deferred", times=2, id=duplicate.id)
    rig.journal.open("before-effect")
    assert [rig.result(original), rig.result(duplicate)] == [17, 17]
    assert rig.journal.count("effect") == 1
    worker.retire()
    assert messages_held(rig.app) == 0
    deferrals = rig.journal.entries("Deferred", id=duplicate.id)
    for nth, deferred in enumerate(deferrals, start=1):
        (received,) = rig.journal.entries("received", id=duplicate.id, deferrals=nth)
        assert received["routing_key"] == rig.config.queue
        # The worker holds it for no longer than keeps duplicates from coming at one moment.
        assert received["at"] >= deferred["at"] + deferred["countdown_seconds"] - 1.2
        (begun,) = rig.journal.entries("begun", id=duplicate.id, deferrals=nth)
        (before,) = rig.journal.entries("begun", id=duplicate.id, deferrals=nth - 1)
        assert begun["at"] >= before["at"] + deferred["countdown_seconds"] - 0.1


@delayed_natively
def test_a_delay_keeps_to_the_queue_of_the_message(make_guarded: MakeRig, prefix: str) -> None:
    """A duplicate in a queue that is not the app's default comes back to that queue, although it was delayed."""
    rig = make_guarded(
        queue_arguments=quorum(delivery_limit=1),
        exchange_type="topic",
        default_queue=f"{prefix}-default",
        tasks={"charge": BY_ORDER},
    )
    rig.declare_queues()
    rig.journal.shut("before-effect")
    rig.start_worker()
    original = rig.send("charge", "ord-1", 17, queue=rig.config.queue)
    rig.journal.wait_for("at-gate")
    duplicate = rig.send("charge", "ord-1", 17, queue=rig.config.queue)
    rig.journal.wait_for("Deferred", times=2, id=duplicate.id)
    rig.journal.open("before-effect")
    assert [rig.result(original), rig.result(duplicate)] == [17, 17]
    assert rig.journal.count("effect") == 1
