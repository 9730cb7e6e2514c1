"""Queues of SQS that somebody else has made, with limits of their own: a waiting duplicate is no dead letter."""

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any
from uuid import uuid4

import boto3
import kombu
import pytest

from idempotent_tasks.checks import CheckContext
from idempotent_tasks.checks.broker import check_queue_limits, check_visibility_excess
from tests.conftest import FAKE_AWS
from tests.integration.conftest import MakeRig
from tests.support.rig import Rig
from tests.testbed import brokers
from tests.testbed.brokers import Broker
from tests.testbed.waiting import wait_for
from tests.testbed.wire import Wire, answer, wire_to

BY_ORDER = {"time_limit": 120, "idempotency": {"key": "order"}}
#: Seconds: every delivery is over long before, and every wait of 30 s would be too long.
VISIBILITY_SECONDS = 4
COUNTS = ["ApproximateNumberOfMessages", "ApproximateNumberOfMessagesNotVisible", "ApproximateNumberOfMessagesDelayed"]


@pytest.fixture
def sqs_wire(ministack: str) -> Iterator[Wire]:
    """A proxy in front of SQS, which can refuse what a worker has no permission for."""
    with wire_to(ministack) as proxy:
        yield proxy


@pytest.fixture
def broker(sqs_wire: Wire) -> Broker:
    """SQS behind the proxy; the app says no visibility timeout, as where the queue has one."""
    found = brokers.sqs(sqs_wire.endpoint)
    return Broker(
        found.name, found.url, {k: v for k, v in found.transport_options.items() if k != "visibility_timeout"}
    )


@dataclass
class Queues:
    """A queue, and one that has its dead letters."""

    client: Any
    name: str
    url: str
    dead_url: str

    @property
    def is_fifo(self) -> bool:
        """Whether its messages have an order."""
        return self.name.endswith(".fifo")

    def dead_letters(self) -> int:
        """Return how many there are."""
        return sum(self._counts(self.dead_url))

    def waiting(self) -> tuple[int, int]:
        """Return how many messages a worker holds, and how many the queue itself delays."""
        _, held, delayed = self._counts(self.url)
        return held, delayed

    def _counts(self, url: str) -> list[int]:
        found = self.client.get_queue_attributes(QueueUrl=url, AttributeNames=COUNTS)["Attributes"]
        return [int(found[name]) for name in COUNTS]


@pytest.fixture(params=["", ".fifo"], ids=["standard", "fifo"])
def queues(request: pytest.FixtureRequest, ministack: str) -> Iterator[Queues]:
    """Queues as Terraform makes them: three receives, and a short visibility timeout."""
    client = boto3.client(
        "sqs",
        endpoint_url=ministack,
        region_name="us-east-1",
        aws_access_key_id=FAKE_AWS["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=FAKE_AWS["AWS_SECRET_ACCESS_KEY"],
    )
    name = f"test-{uuid4().hex[:12]}"
    kind = {"FifoQueue": "true"} if request.param else {}
    dead_url = client.create_queue(QueueName=f"{name}-dead{request.param}", Attributes=kind)["QueueUrl"]
    arn = client.get_queue_attributes(QueueUrl=dead_url, AttributeNames=["QueueArn"])["Attributes"]["QueueArn"]
    redrive = json.dumps({"deadLetterTargetArn": arn, "maxReceiveCount": "3"})
    attributes = {"VisibilityTimeout": str(VISIBILITY_SECONDS), "RedrivePolicy": redrive, **kind}
    url = client.create_queue(QueueName=f"{name}{request.param}", Attributes=attributes)["QueueUrl"]
    yield Queues(client, f"{name}{request.param}", url, dead_url)
    client.delete_queue(QueueUrl=url)
    client.delete_queue(QueueUrl=dead_url)
    client.close()


def rig_on(make_guarded: MakeRig, queues: Queues, **tasks: Any) -> Rig:
    """Return a rig on the predefined queue."""
    return make_guarded(
        queue_name=queues.name,
        transport={"predefined_queues": {queues.name: {"url": queues.url}}},
        tasks={"charge": BY_ORDER, **tasks},
    )


def group_of(order: str) -> dict[str, Any]:
    """Return the properties that keep one FIFO group from holding up another."""
    return {"MessageGroupId": order}


def test_a_duplicate_waits_within_the_queues_own_visibility_timeout(make_guarded: MakeRig, queues: Queues) -> None:
    """No copy is held so long that SQS delivers it again, and none becomes a dead letter."""
    rig = rig_on(make_guarded, queues)
    rig.journal.shut("before-effect")
    for _ in range(2):
        rig.start_worker()
    original = rig.send("charge", "ord-1", 17, **group_of("one"))
    rig.journal.wait_for("at-gate")
    duplicate = rig.send("charge", "ord-1", 17, **group_of("two"))
    rig.journal.wait_for("Deferred", 60.0, times=4, id=duplicate.id)
    rig.journal.open("before-effect")
    assert rig.result(duplicate) == rig.result(original) == 17
    assert rig.journal.count("effect") == 1
    assert {each["receive_count"] for each in rig.journal.entries("received", id=duplicate.id)} <= {"1", None}
    countdowns = [each["countdown_seconds"] for each in rig.journal.entries("Deferred")]
    if queues.is_fifo:
        assert max(countdowns) <= VISIBILITY_SECONDS / 2
    else:
        # It waits in the queue, where no visibility timeout runs.
        assert max(countdowns) > VISIBILITY_SECONDS
    assert queues.dead_letters() == 0


def test_a_deferred_copy_waits_in_the_queue_or_in_a_fifo_queues_worker(make_guarded: MakeRig, queues: Queues) -> None:
    """A worker's memory and prefetch count are not used up by duplicates; FIFO queues delay no single message."""
    rig = rig_on(make_guarded, queues)
    rig.journal.shut("before-effect")
    rig.start_worker()
    original = rig.send("charge", "ord-1", 17, **group_of("one"))
    rig.journal.wait_for("at-gate")
    duplicate = rig.send("charge", "ord-1", 17, **group_of("two"))
    # Long enough to look at: 2 s, or as long as the visibility timeout lets a worker hold it.
    rig.journal.wait_for("Deferred", times=2, id=duplicate.id)
    expected = (2, 0) if queues.is_fifo else (1, 1)
    wait_for(lambda: queues.waiting() == expected, 2.0, lambda: f"held, delayed: {queues.waiting()}")
    rig.journal.open("before-effect")
    assert rig.result(duplicate) == rig.result(original) == 17


def test_a_deferred_copy_outlives_every_worker(make_guarded: MakeRig, queues: Queues) -> None:
    """Whether the queue or a worker held it, it is delivered again, and the body has its effect once."""
    rig = rig_on(make_guarded, queues)
    rig.journal.shut("before-effect")
    worker = rig.start_worker()
    rig.send("charge", "ord-1", 17, **group_of("one"))
    rig.journal.wait_for("at-gate")
    duplicate = rig.send("charge", "ord-1", 17, **group_of("two"))
    rig.journal.wait_for("Deferred", times=2, id=duplicate.id)
    worker.kill()
    rig.journal.open("before-effect")
    rig.start_worker()
    assert rig.result(duplicate) == 17
    assert rig.journal.count("effect") == 1
    assert queues.dead_letters() == 0


@pytest.mark.skipif(kombu.VERSION < (5, 7), reason="older kombu fetches no attributes, or sends no group")
def test_what_sqs_keeps_beside_a_message_survives(make_guarded: MakeRig, queues: Queues) -> None:
    """The group and the attributes of a copy are those of the message; its deduplication id is not."""
    rig = rig_on(make_guarded, queues)
    rig.journal.shut("before-effect")
    rig.start_worker(1)
    rig.send("charge", "ord-1", 17, **group_of("one"))
    rig.journal.wait_for("at-gate")
    rig.start_worker(1, transport_options={**rig.config.transport_options, "fetch_message_attributes": WITH_ATTRIBUTES})
    attributes = {"tenant": {"DataType": "String", "StringValue": "acme"}}
    more = {"MessageDeduplicationId": "dedup-1"} if queues.name.endswith(".fifo") else {}
    duplicate = rig.send("charge", "ord-1", 17, **group_of("two"), message_attributes=attributes, **more)
    rig.journal.wait_for("Deferred", times=3, id=duplicate.id)
    entries = rig.journal.entries("received", id=duplicate.id)
    assert {each["group"] for each in entries} == {"two"}
    assert {each["attributes"] for each in entries} == {"acme"}
    rig.journal.open("before-effect")
    assert rig.result(duplicate) == 17


#: As kombu takes it, and asks SQS for it.
WITH_ATTRIBUTES = {
    "MessageSystemAttributeNames": ["ApproximateReceiveCount", "MessageGroupId"],
    "MessageAttributeNames": ["tenant"],
}


@pytest.mark.parametrize("refused", [{"SendMessage"}, {"SendMessage", "GetQueueAttributes"}], ids=["send", "and-ask"])
def test_a_worker_that_may_not_send_makes_no_dead_letters(
    make_guarded: MakeRig, queues: Queues, sqs_wire: Wire, refused: set[str]
) -> None:
    """The original stays hidden, longer each time, and to the end of the claim before it would be a dead letter."""
    rig = rig_on(make_guarded, queues, charge={"time_limit": 120, "idempotency": {"key": "order", "lease": 6}})
    rig.journal.shut("before-effect")
    for _ in range(2):
        rig.start_worker()
    original = rig.send("charge", "ord-1", 17, **group_of("one"))
    rig.journal.wait_for("at-gate")
    duplicate = rig.send("charge", "ord-1", 17, **group_of("two"))
    rig.journal.wait_for("begun", id=duplicate.id)
    sqs_wire.clear()
    sqs_wire.break_when(lambda operation, _: operation in refused, answer(403, "AccessDeniedException"))
    deliveries = rig.journal.count("received", id=duplicate.id)
    wait_for(lambda: sqs_wire.operations().count("ChangeMessageVisibility") >= 1, 20.0, "it was not hidden")
    rig.journal.open("before-effect")
    assert rig.result(original) == 17
    assert rig.result(duplicate) == 17
    assert rig.journal.count("received", id=duplicate.id) <= deliveries + 3
    assert rig.journal.count("effect") == 1
    assert queues.dead_letters() == 0


def test_a_task_that_no_worker_knows_becomes_a_dead_letter(make_guarded: MakeRig, queues: Queues) -> None:
    """As after a deployment that has renamed it: with a redrive policy the rejected message is delivered again."""
    rig = rig_on(make_guarded, queues)
    rig.start_worker()
    published = rig.app.send_task("old.charge", ("ord-1",), **group_of("one"))
    wait_for(lambda: queues.dead_letters() == 1, 40.0, lambda: f"held, delayed: {queues.waiting()}")
    assert type(published.result).__name__ == "NotRegistered"


def test_the_checks_ask_the_queue(make_guarded: MakeRig, queues: Queues, sqs_wire: Wire) -> None:
    """Its own visibility timeout is held against the time limits, and a refusal is a finding."""
    rig = rig_on(make_guarded, queues)
    context = CheckContext.of_app(rig.app, "celery.concurrency.prefork")
    (finding,) = check_queue_limits(context)
    assert finding.code == "visibility-below-time-limit"
    assert (queues.name in finding.what, "120 s" in finding.what) == (True, True)
    queues.client.set_queue_attributes(QueueUrl=queues.url, Attributes={"VisibilityTimeout": "43200"})
    assert list(check_queue_limits(context)) == [], "some tasks of the app have no limit"
    context = replace(context, worker_time_limit=120.0)
    (finding,) = check_queue_limits(context)
    assert finding.code == "visibility-far-above-time-limit"
    what = f"queue {queues.name!r} has a visibility timeout of 43200 s, and no task of the app may run for longer than "
    assert finding.what == f"{what}120 s"
    assert finding.remedy.startswith(f"set VisibilityTimeout of {queues.name!r} to ")
    assert list(check_visibility_excess(context)) == []
    sufficient = finding.remedy.partition(" to ")[2].partition(";")[0]
    queues.client.set_queue_attributes(QueueUrl=queues.url, Attributes={"VisibilityTimeout": sufficient})
    assert list(check_queue_limits(context)) == []
    sqs_wire.break_when(lambda operation, _: operation == "GetQueueAttributes", answer(403, "AccessDeniedException"))
    (finding,) = check_queue_limits(context)
    assert finding.code == "queue-limits-unknown"
