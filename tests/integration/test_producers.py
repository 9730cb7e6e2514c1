"""``at_publish`` with real producers, brokers and workers: joined, refused, killed, lost and cut off."""

import os
import sys
from pathlib import Path
from typing import Any

import pytest
from celery.exceptions import TimeLimitExceeded
from celery.result import AsyncResult
from kombu.exceptions import OperationalError

from idempotent_tasks import CrashLoopError, DuplicateError, DynamoDBStore, Record
from idempotent_tasks.stores.dynamodb.admin import TableAdmin
from tests.integration.conftest import MakeRig
from tests.support.inline import UNREACHABLE
from tests.support.rig import Rig
from tests.testbed.brokers import CHILD_LOSS_SECONDS
from tests.testbed.processes import child
from tests.testbed.tcp import Tcp
from tests.testbed.waiting import wait_for

PROJECT_ROOT = Path(__file__).parents[2]
#: What another process runs to publish; it comes to the gate ``before-sending-charge`` when it has reserved the key.
PUBLISH = "from tests.support.worker_app import app; app.tasks['charge'].delay('ord-1', 17)"
#: For how long keys are reserved where a test waits for the end of it, in seconds.
RESERVED = 6

on_two = pytest.mark.parametrize("broker", ["redis", "rabbitmq"], indirect=True)
on_redis = pytest.mark.parametrize("broker", ["redis"], indirect=True)


def joining(make: MakeRig, task: str = "charge", options: dict[str, Any] | None = None, **policy: Any) -> Rig:
    """Return a rig of one task whose publishes join; the test itself is a producer that observes nothing."""
    idempotency = {"key": "order", "at_publish": "join", **policy}
    tasks = {task: {**(options or {}), "idempotency": idempotency}}
    rig = make(visibility_seconds=CHILD_LOSS_SECONDS, tasks=tasks)
    rig.app.conf.idempotency_observers = []
    rig.declare_queues()
    rig.ask_store()
    return rig


def the_record(store: DynamoDBStore) -> Record:
    """Return the one record of the test's table."""
    (record,) = TableAdmin(store).records()
    assert isinstance(record, Record)
    return record


def published_again(rig: Rig, former: str, timeout_seconds: float) -> AsyncResult:
    """Publish order 1 until its key is free of a former task, whose result all publishes get until then."""

    def publish() -> AsyncResult | None:
        result = rig.send("charge", "ord-1", 17)
        return None if result.id == former else result

    result = wait_for(publish, timeout_seconds, f"{former} still has the key")
    assert result is not None
    return result


@on_two
def test_joined_publishes_share_one_run_and_one_result(make_guarded: MakeRig) -> None:
    """Published while it waits, runs and is done: one message, one effect, one result for every publisher."""
    rig = joining(make_guarded)
    rig.journal.shut("before-effect")
    waiting = [rig.send("charge", "ord-1", 17) for _ in range(3)]
    rig.start_worker()
    rig.journal.wait_for("at-gate")
    running = rig.send("charge", "ord-1", 17)
    rig.journal.open("before-effect")
    assert rig.result(running) == 17
    done = rig.send("charge", "ord-1", 17)
    assert [rig.result(each) for each in (*waiting, done)] == [17] * 4
    assert len({each.id for each in (*waiting, running, done)}) == 1
    assert (rig.journal.count("received"), rig.journal.count("effect")) == (1, 1)
    assert rig.journal.wait_for("Claimed")["attempt"] == 1


@on_redis
def test_a_duplicate_is_refused(make_guarded: MakeRig) -> None:
    """Under ``raise`` the producer is told whose task has the key."""
    rig = joining(make_guarded, at_publish="raise")
    first = rig.send("charge", "ord-1", 17)
    with pytest.raises(DuplicateError) as caught:
        rig.send("charge", "ord-1", 17)
    assert caught.value.task_id == first.id
    rig.start_worker()
    assert rig.result(first) == 17


@on_two
def test_a_producer_killed_before_it_publishes(make_guarded: MakeRig, tmp_path: Path) -> None:
    """Its reservation blocks the key until it expires: a duplicate that is there waits so long, and is not lost."""
    rig = joining(make_guarded, reserve=RESERVED)
    rig.start_worker()
    rig.journal.shut("before-sending-charge")
    env = os.environ | rig.config.environment() | {"PYTHONPATH": str(PROJECT_ROOT)}
    with child([sys.executable, "-c", PUBLISH], tmp_path / "producer.log", env):
        rig.journal.wait_for("at-gate", gate="before-sending-charge")
    rig.journal.open("before-sending-charge")
    dead = rig.journal.wait_for("Reserved")
    assert rig.send("charge", "ord-1", 17).id == dead["id"]
    careless = rig.app.send_task("charge", ("ord-1", 17), queue=rig.config.queue)
    rig.journal.wait_for("Deferred", id=careless.id, reason="busy")
    assert rig.journal.count("started") == 0
    assert rig.result(careless) == 17
    (claimed,) = rig.journal.entries("Claimed")
    # DynamoDB's clock, by which the reservation is reckoned, is known to half a second.
    assert claimed["at"] >= dead["at"] + RESERVED - 1
    assert (claimed["id"], claimed["attempt"], rig.journal.count("effect")) == (careless.id, 1, 1)


@on_two
def test_a_lost_message(make_guarded: MakeRig) -> None:
    """Publishes join a message that will never come until its reservation expires; the next one runs."""
    rig = joining(make_guarded, reserve=RESERVED)
    lost = rig.send("charge", "ord-1", 17)
    with rig.app.connection_for_write() as connection:
        rig.app.amqp.queues[rig.config.queue](connection.default_channel).purge()
    assert rig.send("charge", "ord-1", 17).id == lost.id
    rig.start_worker()
    assert rig.result(published_again(rig, lost.id, 2 * RESERVED)) == 17
    assert (rig.journal.count("received"), rig.journal.count("effect")) == (1, 1)


@on_two
def test_a_publish_that_fails(make_guarded: MakeRig, store: DynamoDBStore, tcp: Tcp) -> None:
    """The producer's broker is gone: it hears so, and the key is free for whoever publishes next."""
    rig = joining(make_guarded)
    broker_url = rig.config.broker_url
    options = {**rig.config.transport_options, **UNREACHABLE["broker_transport_options"]}
    rig.app.conf.update(UNREACHABLE, broker_write_url=tcp.url(broker_url), broker_transport_options=options)
    tcp.refuse()
    with pytest.raises(OperationalError):
        rig.send("charge", "ord-1", 17)
    failed = the_record(store)
    assert (failed.free, failed.error) == (True, "NotPublished")
    tcp.heal()
    published = rig.send("charge", "ord-1", 17)
    # The proxy ends before the rig.
    rig.app.pool.force_close_all()
    rig.app.conf.broker_write_url = broker_url
    assert published.id != failed.task_id
    rig.start_worker()
    assert rig.result(published) == 17


@on_two
def test_a_holder_that_dies_while_others_have_joined(make_guarded: MakeRig) -> None:
    """Its message runs again, and the joined publishers get that result: no publish was needed."""
    rig = joining(make_guarded)
    rig.journal.shut("before-effect")
    worker = rig.start_worker()
    first = rig.send("charge", "ord-1", 17)
    dying = rig.journal.wait_for("at-gate")["pid"]
    joined = rig.send("charge", "ord-1", 17)
    worker.kill_child(dying)
    rig.journal.open("before-effect")
    assert (joined.id, rig.result(joined)) == (first.id, 17)
    assert [entry["attempt"] for entry in rig.journal.entries("started")] == [1, 2]
    assert rig.journal.count("effect") == 1


@on_redis
def test_a_holder_that_retries(make_guarded: MakeRig) -> None:
    """Retries are published, whoever has joined, and the joiner gets the result of the last."""
    rig = joining(make_guarded, "retry")
    rig.send("retry", "ord-1", 2)
    joined = rig.send("retry", "ord-1", 2)
    rig.start_worker()
    assert rig.result(joined) == 3
    assert rig.journal.count("started") == 3


@on_redis
def test_a_holder_that_crashes_for_good(make_guarded: MakeRig) -> None:
    """Its joiners see the failure; a new publish is granted and starts again."""
    rig = joining(make_guarded, "die", max_crashes=1)
    first = rig.send("die", "ord-1")
    joined = rig.send("die", "ord-1")
    rig.start_worker()
    with pytest.raises(CrashLoopError):
        rig.result(joined)
    assert joined.id == first.id
    assert rig.send("die", "ord-1").id != first.id


@on_redis
def test_a_holder_at_its_hard_time_limit(make_guarded: MakeRig) -> None:
    """Its failure is final in Celery's eyes: the key is free at once, and the next publish runs."""
    # Long enough for a busy machine to reach the body.
    rig = joining(make_guarded, options={"time_limit": 3})
    rig.journal.shut("before-effect")
    rig.start_worker()
    first = rig.send("charge", "ord-1", 17)
    with pytest.raises(TimeLimitExceeded):
        rig.result(first)
    rig.journal.open("before-effect")
    assert rig.result(published_again(rig, first.id, 10)) == 17


@on_redis
def test_a_holder_on_a_machine_that_is_gone(make_guarded: MakeRig) -> None:
    """Its lease ends, its message or the next publish runs, and nothing has to be cleared by hand."""
    rig = joining(make_guarded, lease=2)
    rig.journal.shut("before-effect")
    gone = rig.start_worker(elsewhere_skew_seconds=0)
    first = rig.send("charge", "ord-1", 17)
    rig.journal.wait_for("at-gate")
    gone.kill()
    rig.journal.open("before-effect")
    second = published_again(rig, first.id, 10)
    rig.start_worker()
    assert (rig.result(second), rig.journal.count("effect")) == (17, 1)
