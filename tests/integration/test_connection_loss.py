"""Workers that lose their broker in the middle of a body, and deferrals that find no broker.

RabbitMQ gives back what a lost connection had not acknowledged as soon as it notices
(https://www.rabbitmq.com/docs/confirms#automatic-requeueing); with Redis it is the worker itself that gives it back
when it closes its side (``kombu.transport.virtual.base.Channel.close``), else the visibility timeout does.  The pool
knows nothing of the loss: bodies run on, and what they acknowledge later belongs to no connection any more
(``celery.worker.consumer.consumer.Consumer.on_connection_error_after_connected``).
"""

import pytest

from tests.integration.conftest import MakeRig
from tests.testbed.brokers import messages_held
from tests.testbed.tcp import Tcp
from tests.testbed.waiting import wait_for

#: Long claims: whoever must wait for the expiry of one waits longer than these tests.
BY_ORDER = {"time_limit": 120, "idempotency": {"key": "order"}}

on_rabbitmq = pytest.mark.parametrize("broker", ["rabbitmq"], indirect=True)
on_connections = pytest.mark.parametrize("broker", ["redis", "rabbitmq"], indirect=True)


@on_connections
def test_body_continues_over_a_lost_connection(make_guarded: MakeRig, tcp: Tcp) -> None:
    """The worker's connections are cut under a body: it goes on, its redelivery waits, and there is one effect."""
    rig = make_guarded(tasks={"charge": BY_ORDER})
    rig.journal.shut("before-effect")
    worker = rig.start_worker(2, broker_url=tcp.url(rig.config.broker_url))
    published = rig.send("charge", "ord-1", 17)
    rig.journal.wait_for("at-gate")
    assert tcp.cut()
    rig.journal.wait_for("Deferred", id=published.id, reason="busy")
    rig.journal.open("before-effect")
    assert rig.result(published) == 17
    rig.journal.wait_for("Replayed", id=published.id)
    assert rig.journal.count("started") == rig.journal.count("effect") == 1
    worker.retire()
    assert messages_held(rig.app) == 0


@on_rabbitmq
def test_redelivery_to_another_worker_waits_for_the_body_without_a_broker(make_guarded: MakeRig, tcp: Tcp) -> None:
    """A worker without a broker commits what it runs; the redelivery, at another worker, gets that result."""
    rig = make_guarded(tasks={"charge": BY_ORDER})
    rig.journal.shut("before-effect")
    rig.start_worker(1, broker_url=tcp.url(rig.config.broker_url))
    published = rig.send("charge", "ord-1", 17)
    rig.journal.wait_for("at-gate")
    other = rig.start_worker(1)
    tcp.refuse()
    tcp.cut()
    rig.journal.wait_for("received", id=published.id, pid=other.process.pid)
    rig.journal.wait_for("Deferred", id=published.id, reason="busy")
    rig.journal.open("before-effect")
    rig.journal.wait_for("Replayed", id=published.id)
    assert rig.result(published) == 17
    assert rig.journal.count("started") == rig.journal.count("effect") == 1
    other.retire()
    assert messages_held(rig.app) == 0


@pytest.mark.parametrize(
    ("broker", "gate"),
    [("redis", "before-effect"), ("rabbitmq", "before-effect"), ("rabbitmq", "Claimed")],
    indirect=["broker"],
)
def test_task_cancelled_by_a_lost_connection_frees_its_key(make_guarded: MakeRig, tcp: Tcp, gate: str) -> None:
    """Celery shall cancel what runs when the connection is lost: the redelivery runs at once, no crash counts.

    See ``worker_cancel_long_running_tasks_on_connection_loss`` and ``celery.worker.request.Request.cancel``.
    """
    settings = {"worker_cancel_long_running_tasks_on_connection_loss": True}
    rig = make_guarded(tasks={"charge": BY_ORDER}, settings=settings)
    rig.journal.shut(gate)
    worker = rig.start_worker(2, broker_url=tcp.url(rig.config.broker_url))
    published = rig.send("charge", "ord-1", 17)
    rig.journal.wait_for("at-gate")
    assert tcp.cut()
    rig.journal.wait_for("at-gate", times=2)
    rig.journal.open(gate)
    rig.journal.wait_for("over", id=published.id, state="SUCCESS")
    assert rig.result(rig.app.AsyncResult(published.id)) == 17
    assert rig.journal.count("effect") == 1
    assert [each["attempt"] for each in rig.journal.entries("Claimed")] == [1, 1]
    rig.journal.wait_for("acknowledged", id=published.id)
    worker.process.terminate()
    assert messages_held(rig.app) == 0


@on_connections
def test_deferral_without_a_broker_loses_nothing(make_guarded: MakeRig, tcp: Tcp) -> None:
    """A duplicate cannot be published again, because its pool process reaches no broker: it goes back to its queue."""
    rig = make_guarded(tasks={"charge": BY_ORDER})
    rig.journal.shut("before-effect")
    worker = rig.start_worker(2, broker_url=tcp.url(rig.config.broker_url))
    original = rig.send("charge", "ord-1", 17)
    rig.journal.wait_for("at-gate")
    tcp.refuse()
    duplicate = rig.send("charge", "ord-1", 17)
    wait_for(lambda: "cannot be deferred and goes back" in worker.log(), 20.0, worker.log)
    rig.journal.wait_for("received", times=2, id=duplicate.id)
    tcp.heal()
    rig.journal.wait_for("Deferred", id=duplicate.id)
    rig.journal.open("before-effect")
    assert [rig.result(original), rig.result(duplicate)] == [17, 17]
    assert rig.journal.count("effect") == 1


@on_connections
def test_deferral_while_the_worker_loses_its_broker_loses_nothing(make_guarded: MakeRig, tcp: Tcp) -> None:
    """The broker goes away for the whole worker before a duplicate is published again: every message comes back.

    A worker that meets the loss of Redis while it rejects may stay deaf: kombu connects again for the reject, and the
    event loop waits on the old connection.  Its messages come back to another worker.
    """
    rig = make_guarded(tasks={"charge": BY_ORDER})
    rig.journal.shut("before-effect")
    worker = rig.start_worker(2, broker_url=tcp.url(rig.config.broker_url))
    original = rig.send("charge", "ord-1", 17)
    rig.journal.wait_for("at-gate", gate="before-effect")
    rig.journal.shut("before-claim")
    duplicate = rig.send("charge", "ord-1", 17)
    rig.journal.wait_for("at-gate", gate="before-claim")
    tcp.refuse()
    tcp.cut()
    rig.journal.open("before-claim")
    wait_for(lambda: "cannot be deferred and goes back" in worker.log(), 20.0, worker.log)
    tcp.heal()
    rig.start_worker(2)
    rig.journal.wait_for("Deferred", 40.0, id=duplicate.id)
    rig.journal.open("before-effect")
    assert [rig.result(original), rig.result(duplicate)] == [17, 17]
    assert rig.journal.count("started") == rig.journal.count("effect") == 1


@on_rabbitmq
def test_deferral_that_is_swallowed_is_not_acknowledged(make_guarded: MakeRig, tcp: Tcp) -> None:
    """A copy that vanished on its way was not confirmed: the message goes back to its queue instead of being lost."""
    rig = make_guarded(tasks={"charge": BY_ORDER})
    rig.journal.shut("before-effect")
    # Bodies' processes publish through the proxy, the parent consumes and acknowledges past it.
    write_url = {"broker_write_url": tcp.url(rig.config.broker_url)}
    rig.start_worker(2, settings=rig.config.settings | write_url)
    original = rig.send("charge", "ord-1", 17)
    rig.journal.wait_for("at-gate")
    warm_up = rig.send("charge", "ord-1", 17)
    rig.journal.wait_for("Deferred", id=warm_up.id)
    tcp.swallow()
    duplicate = rig.send("charge", "ord-1", 17)
    rig.journal.wait_for("received", id=duplicate.id, times=2)
    assert rig.journal.count("Deferred", id=duplicate.id) == 0
    tcp.heal()
    rig.journal.wait_for("Deferred", id=duplicate.id)
    rig.journal.open("before-effect")
    assert [rig.result(each) for each in (original, warm_up, duplicate)] == [17, 17, 17]
    assert rig.journal.count("effect") == 1


@on_connections
def test_what_follows_waits_for_the_broker(make_guarded: MakeRig, tcp: Tcp) -> None:
    """A worker that reads its messages, and finds no broker to publish to, gives back a task that something follows."""
    rig = make_guarded(tasks={"charge": BY_ORDER})
    settings = {**rig.config.settings, "broker_write_url": tcp.url(rig.config.broker_url), "task_publish_retry": False}
    rig.start_worker(1, settings=settings)
    rig.journal.shut("before-effect")
    published = rig.send("charge", "ord-1", 17, link=rig.app.tasks["follow_plain"].s("next"))
    rig.journal.wait_for("at-gate")
    tcp.refuse()
    tcp.cut()
    rig.journal.open("before-effect")
    rig.journal.wait_for("received", times=2, id=published.id)
    assert published.state not in ("SUCCESS", "FAILURE")
    tcp.heal()
    assert rig.result(published) == 17
    rig.journal.wait_for("effect", key="next")
    assert rig.journal.count("effect", key="ord-1") == rig.journal.count("effect", key="next") == 1
