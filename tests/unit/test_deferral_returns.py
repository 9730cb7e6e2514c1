"""A message that cannot be published again goes back to its queue, and neither spins there nor counts as failed."""

import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest
from billiard.einfo import ExceptionInfo
from celery import Celery
from celery.exceptions import Ignore, Reject, SoftTimeLimitExceeded
from kombu import Exchange, Queue

from idempotent_tasks.core.delivery import Delivery, ReceivedMessage
from idempotent_tasks.events import Deferred
from idempotent_tasks.messaging.deferral import (
    FIRST_COUNTDOWN,
    LONGEST_COUNTDOWN,
    LONGEST_HIDING,
    MARGIN,
    GivenBack,
    Publisher,
    _hiding_seconds,
)
from idempotent_tasks.messaging.queues import QueueLimits
from idempotent_tasks.testing import FakeClock
from idempotent_tasks.worker.request import MOST_RETURNED, GuardedRequest, _Workers
from tests.support.guarding import request_by
from tests.support.inline import UNREACHABLE
from tests.support.shop import Shop

#: Seconds: longer than any pause.
LONG = 10_000


@pytest.fixture
def cut_off(shop: Shop) -> Shop:
    """A shop whose key another worker holds for long, and whose broker takes no message."""
    shop.sells(lambda task: "paid")
    shop.store.claim(request_by("elsewhere", key=shop.key, lease_seconds=LONG))
    shop.publish()
    shop.app.conf.update(UNREACHABLE)
    return shop


def pauses(shop: Shop, clock: FakeClock, times: int) -> list[float]:
    """Return for how many seconds each delivery of the message waited before it went back."""
    lengths = []
    for _ in range(times):
        before = clock.now()
        shop.worker.run_next()
        lengths.append(clock.now() - before)
        assert shop.worker.waiting() == 1
    shop.worker.take().ack()
    return lengths


def test_each_return_waits_longer_to_a_limit(cut_off: Shop, clock: FakeClock) -> None:
    """A broker that gives it back at once does not have it back at once."""
    lengths = pauses(cut_off, clock, 8)
    for nth, length in enumerate(lengths):
        expected = min(FIRST_COUNTDOWN * 2**nth, LONGEST_COUNTDOWN)
        assert expected <= length <= expected * 1.25
    assert cut_off.runs == 0
    assert not [event for event in cut_off.seen if isinstance(event, Deferred)]
    assert cut_off.state == "PENDING"


def test_a_claim_that_ends_soon_is_not_waited_beyond(shop: Shop, clock: FakeClock) -> None:
    """Then it is this delivery's turn."""
    shop.sells(lambda task: "paid")
    shop.store.claim(request_by("elsewhere", key=shop.key, lease_seconds=2))
    shop.publish()
    shop.app.conf.update(UNREACHABLE)
    (first, second) = pauses(shop, clock, 2)
    assert first + second <= 2 + 2 * MARGIN


def test_a_queue_that_is_not_known_is_not_guessed(app: Celery, shop: Shop, clock: FakeClock) -> None:
    """Two queues of the worker are bound to what the message was sent to: it goes back, and neither gets a copy."""
    topic = Exchange("returns-topic", type="topic")
    queues = [Queue(app.conf.task_default_queue, topic, routing_key="order.#"), Queue("other", topic, routing_key="#")]
    app.conf.task_queues = queues
    shop.sells(lambda task: "paid")
    shop.claim_elsewhere()
    channel = shop.worker.connection.default_channel
    bound = queues[0](channel)
    bound.declare()
    shop.publish(exchange=topic, routing_key="order.placed")
    before = clock.now()
    shop.worker.run_next()
    assert clock.now() - before >= FIRST_COUNTDOWN
    assert shop.worker.waiting() == 1
    message = shop.worker.take()
    assert "idempotency_copy" not in message.headers
    message.ack()
    bound.delete()


def test_it_can_be_pickled() -> None:
    """The pool's process says it to its parent, whatever the broker's error was."""
    for hidden in (False, True):
        error = pickle.loads(pickle.dumps(GivenBack("OSError: gone", hidden=hidden)))
        assert isinstance(error, Reject)
        assert (error.reason, error.requeue, error.hidden) == ("OSError: gone", True, hidden)


def received(**properties: Any) -> ReceivedMessage:
    """Return a message of SQS, received twice."""
    message = {"ReceiptHandle": "handle", "Attributes": {"ApproximateReceiveCount": "2"}}
    return ReceivedMessage(
        queue="pay",
        body=b"",
        content_type="a/b",
        content_encoding="utf-8",
        headers={},
        properties={"delivery_info": {"sqs_message": message, "sqs_queue": "https://pay"}, **properties},
    )


class Sqs:
    """What a task sees of SQS: one channel, whose client is this object."""

    def __init__(self, error: Exception | None = None) -> None:
        self.hidden: list[dict[str, Any]] = []
        self._error = error
        channel = SimpleNamespace(sqs=lambda queue: self, canonical_queue_name=lambda name: name, _new_queue=str)
        producer = SimpleNamespace(channel=channel)

        @contextmanager
        def acquire(*, block: bool) -> Iterator[Any]:
            yield producer

        conf = SimpleNamespace(broker_transport_options={}, timezone="UTC")
        app = App(amqp=SimpleNamespace(producer_pool=SimpleNamespace(acquire=acquire)), conf=conf)
        self.task = SimpleNamespace(app=app, request=SimpleNamespace(expires=None))

    def get_queue_attributes(self, **_: Any) -> dict[str, Any]:
        """Answer as a queue with a redrive policy does."""
        return {"Attributes": {"VisibilityTimeout": "30", "RedrivePolicy": '{"maxReceiveCount": "4"}'}}

    def change_message_visibility(self, **asked: Any) -> None:
        """Hide the message, or say why not."""
        if self._error is not None:
            raise self._error
        self.hidden.append(asked)


@dataclass(eq=False)
class App:
    """An app that can be the key of a weak dictionary."""

    amqp: Any
    conf: Any


def delivery(message: ReceivedMessage | None) -> Delivery:
    """Return the delivery of a message."""
    return Delivery(task="shop.charge", task_id="id", args=(), kwargs={}, received=message)


class TestOnSqs:
    """Each receive brings a message nearer to the dead letters."""

    def test_it_is_hidden_instead_of_held(self) -> None:
        """Two receives are left: it stays away until the claim in its way has ended."""
        sqs, paused = Sqs(), list[float]()
        answer = Publisher().give_back(sqs.task, delivery(received()), OSError("denied"), 21.2, paused.append)
        assert answer.hidden
        assert (answer.reason, answer.requeue) == ("OSError: denied", True)
        assert sqs.hidden == [{"QueueUrl": "https://pay", "ReceiptHandle": "handle", "VisibilityTimeout": 22}]
        assert paused == []

    def test_what_cannot_be_hidden_waits_in_its_slot(self) -> None:
        """A worker may not be allowed to do that either."""
        sqs, paused = Sqs(PermissionError("denied")), list[float]()
        answer = Publisher().give_back(sqs.task, delivery(received()), OSError("denied"), 21.2, paused.append)
        assert not answer.hidden
        assert len(paused) == 1

    @pytest.mark.parametrize("message", [None, received(delivery_info={})], ids=["no-message", "no-sqs"])
    def test_elsewhere_it_waits_in_its_slot(self, message: ReceivedMessage | None) -> None:
        """No other broker hides messages one by one."""
        paused: list[float] = []
        answer = Publisher().give_back(Sqs().task, delivery(message), OSError("denied"), None, paused.append)
        assert not answer.hidden
        assert len(paused) == 1

    @pytest.mark.parametrize(
        ("receives", "most", "claim_left", "expires_in", "seconds"),
        [
            pytest.param(1, None, None, None, 4, id="first"),
            pytest.param(3, None, None, None, 64, id="grows"),
            pytest.param(1, 10, 100, None, 4, id="far-from-dead"),
            pytest.param(9, None, 20, None, 20 + MARGIN, id="not-beyond-the-claim"),
            pytest.param(1, 3, 100, None, 100 + MARGIN, id="scarce"),
            pytest.param(1, 3, 100, 50, 49, id="scarce-and-expiring"),
            pytest.param(1, 3, -5, None, 1, id="over"),
            pytest.param(1, 3, 1e6, None, LONGEST_HIDING, id="longer-than-sqs-takes"),
        ],
    )
    def test_for_how_long(
        self, receives: int, most: int | None, claim_left: float | None, expires_in: float | None, seconds: float
    ) -> None:
        """Until it can act, by the claim, its receives and its expiry."""
        message = {"Attributes": {"ApproximateReceiveCount": str(receives)}}
        assert _hiding_seconds(message, QueueLimits(receives=most), claim_left, expires_in) == seconds


class Qos:
    """Remembers which delivery tags it was told to forget."""

    def __init__(self) -> None:
        self.forgotten: list[str] = []

    def ack(self, tag: str) -> None:
        """Forget one."""
        self.forgotten.append(tag)


def failed(request: GuardedRequest, error: Exception) -> None:
    """Tell a request what its pool's process says."""
    try:
        raise error
    except type(error):
        request.on_failure(ExceptionInfo(), return_ok=True)


class TestTheParent:
    """What a worker's main process does with a message that comes back."""

    def test_a_hidden_message_is_forgotten(self, shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
        """It takes no more of the prefetch count, and is not given back: SQS would show it at once."""
        shop.sells(lambda task: "paid")
        shop.publish()
        message = shop.worker.take()
        request = shop.worker.receive(message)
        qos = Qos()
        monkeypatch.setattr(type(message.channel), "qos", qos)
        failed(request, GivenBack("denied", hidden=True))
        assert qos.forgotten == [message.delivery_tag]
        assert request.acknowledged
        assert not message.acknowledged
        monkeypatch.undo()
        message.ack()

    def test_any_other_goes_back(self, shop: Shop) -> None:
        """As Celery has it."""
        shop.sells(lambda task: "paid")
        shop.publish()
        message = shop.worker.take()
        failed(shop.worker.receive(message), GivenBack("denied"))
        assert message.acknowledged
        assert shop.worker.waiting() == 1
        shop.worker.take().ack()

    def test_it_counts_returns_of_each_message(self) -> None:
        """Of those that came back last."""
        workers = _Workers()
        for number in range(MOST_RETURNED + 1):
            workers.note_return(str(number))
        workers.note_return("5")
        assert [workers.returns_of(each) for each in ("0", "1", "5", "new")] == [0, 1, 2, 0]
        workers.forget_returns("5")
        workers.forget_returns("new")
        assert workers.returns_of("5") == 0

    def test_a_deferral_ends_the_count(self, shop: Shop) -> None:
        """The next copy is a new message."""
        shop.sells(lambda task: "paid")
        shop.publish()
        message = shop.worker.take()
        failed(shop.worker.receive(message), GivenBack("denied"))
        again = shop.worker.take()
        request = shop.worker.receive(again)
        assert request.request_dict["properties"]["idempotency_message"].returns == 1
        failed(request, Ignore())
        assert shop.worker.receive(again).request_dict["properties"]["idempotency_message"].returns == 0


def test_a_soft_time_limit_cuts_the_wait_short(cut_off: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    """The message goes back at once then, instead of failing."""

    def interrupted(_: float) -> None:
        raise SoftTimeLimitExceeded

    monkeypatch.setattr(cut_off.store.clock, "sleep", interrupted)
    cut_off.worker.run_next()
    assert cut_off.worker.waiting() == 1
    assert cut_off.state == "PENDING"
    cut_off.worker.take().ack()
