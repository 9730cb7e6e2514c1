"""Duplicates of a busy key: their copies wait in the worker that runs the body, and are due as soon as it ends."""

import pytest
from celery.result import AsyncResult

from tests.integration.conftest import MakeRig
from tests.support.rig import Rig
from tests.testbed.brokers import messages_held
from tests.testbed.journal import Journal
from tests.testbed.tcp import Tcp
from tests.testbed.waiting import wait_for

#: A claim lasts longer than a test waits for a result: a copy that nobody lets go is too late.
BY_ORDER = {"idempotency": {"key": "order", "lease": 120}}
#: As long, by a visibility timeout of which a copy may be held for half.
VISIBILITY_SECONDS = 600
DUPLICATES = 10
#: How many copies a worker holds no longer than their countdown (`MOVING_COPIES`), and whose second countdown is 2 s.
MOVING = 4

held_by_workers = pytest.mark.parametrize("broker", ["redis", "rabbitmq"], indirect=True)
on_redis = pytest.mark.parametrize("broker", ["redis"], indirect=True)


def busy(make_guarded: MakeRig) -> Rig:
    """Return a rig whose bodies stop at a gate."""
    rig = make_guarded(visibility_seconds=VISIBILITY_SECONDS, tasks={"charge": BY_ORDER})
    rig.journal.shut("before-effect")
    return rig


def publish_duplicates(rig: Rig) -> list[AsyncResult]:
    """Publish duplicates while a body runs, and return them once those that are not held have been deferred again."""
    published = [rig.send("charge", "ord-1", 17) for _ in range(DUPLICATES)]
    rig.journal.wait_for("Deferred", times=DUPLICATES + MOVING)
    rig.journal.wait_until(lambda: all_received(rig.journal), 20.0, "a copy is under way")
    return published


def all_received(journal: Journal) -> bool:
    """Return whether the worker has every copy, and has acknowledged every message that one stands for.

    Redis loses a copy whose connection is lost on its way, and a worker whose last credit is a message that it could
    not acknowledge waits for its bodies before it connects again (``MultiChannelPoller.on_readable`` of kombu).
    """
    deferred = journal.count("Deferred")
    received = journal.count("received") == 1 + DUPLICATES + deferred
    return received and journal.count("acknowledged") == deferred


@held_by_workers
@pytest.mark.parametrize("pool", ["prefork", "threads"])
def test_copies_get_the_result_as_soon_as_the_run_ends(make_guarded: MakeRig, pool: str) -> None:
    """Long before a test gives up waiting for a result, although their claim lasts for minutes."""
    rig = busy(make_guarded)
    worker = rig.start_worker(2, pool=pool)
    original = rig.send("charge", "ord-1", 17)
    rig.journal.wait_for("at-gate")
    published = publish_duplicates(rig)
    rig.journal.open("before-effect")
    assert [rig.result(each) for each in (original, *published)] == [17] * (DUPLICATES + 1)
    assert rig.journal.count("effect") == 1
    if pool == "prefork":
        # With threads a worker of RabbitMQ may take longer to end.
        worker.retire()
        assert messages_held(rig.app) == 0


@on_redis
def test_a_copy_takes_over_as_soon_as_the_child_is_gone(make_guarded: MakeRig) -> None:
    """The claim of a dead child is released, and whoever comes first runs the body; the others wait for that run."""
    rig = busy(make_guarded)
    worker = rig.start_worker(2)
    original = rig.send("charge", "ord-1", 17)
    at_gate = rig.journal.wait_for("at-gate")
    published = publish_duplicates(rig)
    worker.kill_child(at_gate["pid"])
    rig.journal.wait_for("at-gate", times=2)
    rig.journal.open("before-effect")
    assert [rig.result(each) for each in (original, *published)] == [17] * (DUPLICATES + 1)
    assert rig.journal.count("effect") == 1


@on_redis
def test_copies_wait_beside_the_tasks_of_others(make_guarded: MakeRig) -> None:
    """The pool's free slot runs what has another key."""
    rig = busy(make_guarded)
    rig.start_worker(2)
    original = rig.send("charge", "ord-1", 17)
    rig.journal.wait_for("at-gate")
    publish_duplicates(rig)
    other = rig.send("charge", "ord-2", 18)
    rig.journal.wait_for("at-gate", times=2)
    assert not original.ready()
    rig.journal.open("before-effect")
    assert (rig.result(original), rig.result(other)) == (17, 18)


@held_by_workers
def test_copies_of_a_lost_connection_come_again(make_guarded: MakeRig, tcp: Tcp) -> None:
    """Those that were held are delivered by the next connection, and get the result of the run that has gone on."""
    rig = busy(make_guarded)
    rig.start_worker(2, broker_url=tcp.url(rig.config.broker_url))
    original = rig.send("charge", "ord-1", 17)
    rig.journal.wait_for("at-gate")
    published = publish_duplicates(rig)
    received = rig.journal.count("received")
    assert tcp.cut()
    wait_for(lambda: rig.journal.count("received") > received, 30, "nothing came again")
    rig.journal.open("before-effect")
    assert [rig.result(each) for each in (original, *published)] == [17] * (DUPLICATES + 1)
    assert rig.journal.count("effect") == 1
