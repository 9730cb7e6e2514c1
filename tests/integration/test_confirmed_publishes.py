"""RabbitMQ: what a worker publishes is confirmed, so that nothing is noted as sent, or acknowledged for, that is lost.

A worker may publish on another connection than it consumes from, as Celery's pools always do: that one breaks here,
with what was written to it in nobody's hands, and the other goes on.
"""

from collections.abc import Callable
from typing import Any

import amqp
import pytest

from idempotent_tasks.core.delivery import Delivery, ReceivedMessage
from idempotent_tasks.messaging.deferral import Publisher
from tests.integration.conftest import MakeRig
from tests.support.rig import Rig, Worker
from tests.testbed.brokers import messages_held
from tests.testbed.tcp import Tcp
from tests.testbed.waiting import wait_for

BY_ORDER = {"time_limit": 120, "idempotency": {"key": "order"}}

pytestmark = pytest.mark.parametrize("broker", ["rabbitmq"], indirect=True)


def start_behind(rig: Rig, tcp: Tcp, concurrency: int = 1, **more: Any) -> Worker:
    """Start a worker with more settings that publishes through the proxy, and have it publish once."""
    url = tcp.url(rig.config.broker_url)
    settings = {**rig.config.settings, "broker_write_url": url, "broker_heartbeat": 0, **more}
    worker = rig.start_worker(concurrency, settings=settings)
    for number in range(concurrency):
        rig.result(rig.send("charge", f"warm-{number}", 1, link=rig.app.tasks["follow_plain"].s("warm")))
    rig.journal.wait_for("effect", key="warm")
    return worker


def lose_a_publish(tcp: Tcp, publish: Callable[[], object]) -> None:
    """Have the connection for publishing break when something was written to it that nobody got."""
    before = tcp.swallowed
    tcp.swallow()
    publish()
    wait_for(lambda: tcp.swallowed > before, 20.0, "nothing was published")
    tcp.heal()
    assert tcp.cut()


FOLLOWING: dict[str, Callable[[Rig], dict[str, Any]]] = {
    "link": lambda rig: {"link": rig.app.tasks["follow_plain"].s("next")},
    "chain": lambda rig: {"chain": [rig.app.tasks["follow_plain"].s("next")]},
}


@pytest.mark.parametrize("kind", list(FOLLOWING))
def test_what_follows_a_task_is_not_lost(make_guarded: MakeRig, tcp: Tcp, kind: str) -> None:
    """It is published again on another connection before the record notes it as sent."""
    rig = make_guarded(tasks={"charge": BY_ORDER})
    start_behind(rig, tcp)
    rig.journal.shut("before-effect")
    published = rig.send("charge", "ord-1", 17, **FOLLOWING[kind](rig))
    rig.journal.wait_for("at-gate")
    lose_a_publish(tcp, lambda: rig.journal.open("before-effect"))
    effect = rig.journal.wait_for("effect", key="next")
    assert rig.journal.wait_for("Dispatched", id=published.id)["at"] >= effect["at"] - 5
    assert rig.journal.count("effect", key="ord-1") == 1


@pytest.mark.parametrize("kind", list(FOLLOWING))
def test_a_task_goes_back_that_nothing_can_follow(make_guarded: MakeRig, tcp: Tcp, kind: str) -> None:
    """A broker that takes no message for long leaves a finished task on record, and its message in the queue."""
    rig = make_guarded(tasks={"charge": BY_ORDER})
    start_behind(rig, tcp, task_publish_retry=False)
    rig.journal.shut("before-effect")
    published = rig.send("charge", "ord-1", 17, **FOLLOWING[kind](rig))
    rig.journal.wait_for("at-gate")
    tcp.swallow()
    rig.journal.open("before-effect")
    rig.journal.wait_for("received", times=2, id=published.id)
    assert published.state not in ("SUCCESS", "FAILURE")
    tcp.heal()
    tcp.cut()
    assert rig.result(published) == 17
    rig.journal.wait_for("effect", key="next")
    rig.journal.wait_for("Dispatched", id=published.id)
    assert rig.journal.count("effect", key="ord-1") == rig.journal.count("effect", key="next") == 1


def test_a_retry_is_not_lost(make_guarded: MakeRig, tcp: Tcp) -> None:
    """The message that a retry follows is acknowledged on another connection than the retry was written to."""
    rig = make_guarded(tasks={"charge": BY_ORDER, "retry": BY_ORDER})
    start_behind(rig, tcp)
    rig.journal.shut("before-claim")
    published = rig.send("retry", "ord-1", 1)
    rig.journal.wait_for("at-gate", gate="before-claim")
    lose_a_publish(tcp, lambda: rig.journal.open("before-claim"))
    assert rig.result(published) == 2


def test_a_deferred_copy_is_not_lost(make_guarded: MakeRig, tcp: Tcp) -> None:
    """Its original goes back to the queue where no confirmation comes."""
    rig = make_guarded(tasks={"charge": BY_ORDER})
    start_behind(rig, tcp, 2)
    rig.journal.shut("before-effect")
    original = rig.send("charge", "ord-1", 17)
    rig.journal.wait_for("at-gate")
    duplicates: list[Any] = []
    lose_a_publish(tcp, lambda: duplicates.append(rig.send("charge", "ord-1", 17)))
    rig.journal.wait_for("Deferred", id=duplicates[0].id)
    rig.journal.open("before-effect")
    assert [rig.result(original), rig.result(duplicates[0])] == [17, 17]


def test_a_full_queue_sends_the_original_back_slowly(make_guarded: MakeRig) -> None:
    """RabbitMQ takes no copy while its queue is full: the duplicate waits, is not lost, and does not spin."""
    full = {"x-max-length": 1, "x-overflow": "reject-publish"}
    rig = make_guarded(queue_arguments=full, tasks={"charge": BY_ORDER})
    rig.journal.shut("before-effect")
    rig.start_worker()
    original = rig.send("charge", "ord-1", 17)
    rig.journal.wait_for("at-gate")
    # It takes the second slot, and what comes next fills the queue.
    rig.journal.shut("before-claim")
    duplicate = rig.send("charge", "ord-1", 17)
    rig.journal.wait_for("at-gate", gate="before-claim")
    filler = [rig.send("add", number, 1) for number in range(2)]
    wait_for(lambda: messages_held(rig.app) == 1, 20.0, "the queue is not full")
    rig.journal.open("before-claim")
    rig.journal.wait_for("received", times=2, id=duplicate.id)
    rig.journal.open("before-effect")
    assert [rig.result(original), rig.result(duplicate)] == [17, 17]
    assert rig.result(filler[0]) == 1
    assert rig.journal.count("received", id=duplicate.id) <= 5


def test_a_queue_that_is_gone_takes_no_copy(make_guarded: MakeRig) -> None:
    """What the default exchange leads nowhere comes back to the publisher, whose message then goes back too."""
    rig = make_guarded(tasks={"charge": BY_ORDER})
    message = ReceivedMessage(
        queue=f"{rig.config.queue}-gone",
        body=b"[]",
        content_type="application/json",
        content_encoding="utf-8",
        headers={},
        properties={},
    )
    delivery = Delivery(task="charge", task_id="id", args=(), kwargs={}, received=message)
    with pytest.raises(amqp.ChannelError, match="NO_ROUTE"):
        Publisher().publish_again(rig.app.tasks["charge"], delivery, None)
