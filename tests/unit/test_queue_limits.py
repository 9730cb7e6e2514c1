"""What a queue says of how long a worker may hold a message."""

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import pytest
from celery import Celery
from kombu import Queue

from idempotent_tasks.core.processes import this_process
from idempotent_tasks.messaging.deferral import LONGEST_COUNTDOWN
from idempotent_tasks.messaging.queues import LONGEST_AGE, LONGEST_DELAY, QueueLimits, delays_messages, limits_of
from idempotent_tasks.testing import FakeClock

PLAIN = SimpleNamespace()


@pytest.fixture
def shop() -> Celery:
    """An app with one queue that it declares itself."""
    app = Celery("shop", set_as_current=False)
    app.conf.task_queues = [Queue("orders")]
    return app


@pytest.mark.parametrize(
    ("options", "arguments", "seconds"),
    [
        ({}, None, None),
        (None, {}, None),
        ({"visibility_timeout": 0}, {}, None),
        ({"visibility_timeout": 120}, {}, 120.0),
        ({"visibility_timeout": "soon"}, {}, None),
        ({}, {"x-consumer-timeout": 60_000}, 60.0),
        ({}, {"x-message-ttl": 5_000, "x-consumer-timeout": 60_000}, 5.0),
        ({"visibility_timeout": 3}, {"x-message-ttl": 5_000}, 3.0),
        ({}, {"x-message-ttl": True, "x-consumer-timeout": -1}, None),
    ],
    ids=repr,
)
def test_what_the_app_says(
    shop: Celery, options: Mapping[str, Any] | None, arguments: Mapping[str, Any] | None, seconds: float | None
) -> None:
    """The nearest of the transport's visibility timeout and the queue's arguments for RabbitMQ."""
    shop.conf.broker_transport_options = options
    shop.amqp.queues["orders"].queue_arguments = arguments
    assert limits_of(shop, "orders", PLAIN) == QueueLimits(hold_seconds=seconds)
    assert limits_of(shop, "unknown", PLAIN).hold_seconds in (None, (options or {}).get("visibility_timeout"))


def test_a_time_to_live_that_kombu_knows(shop: Celery) -> None:
    """``Queue(message_ttl=...)`` counts seconds."""
    shop.amqp.queues["orders"].message_ttl = 7
    assert limits_of(shop, "orders", PLAIN).hold_seconds == 7


class Sqs:
    """A channel of SQS, and its client."""

    def __init__(self, *answers: Any) -> None:
        self.asked: list[dict[str, Any]] = []
        self._answers = list(answers)

    def sqs(self, queue: str) -> "Sqs":
        """Return the client of a queue."""
        assert queue == "prefix-orders"
        return self

    def canonical_queue_name(self, queue: str) -> str:
        """Return the name in SQS."""
        return f"prefix-{queue}"

    def _new_queue(self, queue: str) -> str:
        return f"https://sqs/prefix-{queue}"

    def get_queue_attributes(self, **asked: Any) -> Any:
        """Give the next answer."""
        self.asked.append(asked)
        answer = self._answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return {"Attributes": answer}


class TestSqs:
    """The queue's own visibility timeout counts, which kombu only sets on queues that it makes."""

    def test_the_queue_is_asked(self, shop: Celery) -> None:
        """Whatever the app says."""
        shop.conf.broker_transport_options = {"visibility_timeout": 1800}
        sqs = Sqs({"VisibilityTimeout": "30", "RedrivePolicy": '{"maxReceiveCount": 3, "deadLetterTargetArn": "a"}'})
        assert limits_of(shop, "orders", sqs) == QueueLimits(hold_seconds=30.0, receives=3)
        assert sqs.asked == [
            {"QueueUrl": "https://sqs/prefix-orders", "AttributeNames": ["VisibilityTimeout", "RedrivePolicy"]}
        ]

    def test_it_is_asked_again_when_the_answer_is_old(self, shop: Celery, monkeypatch: pytest.MonkeyPatch) -> None:
        """Somebody may have changed it."""
        clock = FakeClock()
        monkeypatch.setattr(this_process(), "clock", clock)
        sqs = Sqs({"VisibilityTimeout": "30"}, {"VisibilityTimeout": "60"})
        assert [limits_of(shop, "orders", sqs).hold_seconds for _ in range(3)] == [30.0] * 3
        clock.advance(LONGEST_AGE + 1)
        assert limits_of(shop, "orders", sqs).hold_seconds == 60.0
        assert len(sqs.asked) == 2

    @pytest.mark.parametrize(
        "answer",
        [PermissionError("denied"), KeyError("x"), {}, {"VisibilityTimeout": "x"}, {"RedrivePolicy": "{"}],
        ids=repr,
    )
    @pytest.mark.parametrize(("options", "seconds"), [({}, None), ({"visibility_timeout": 90}, 90.0)], ids=repr)
    def test_a_queue_that_does_not_tell(
        self, shop: Celery, answer: Any, options: Mapping[str, Any], seconds: float | None
    ) -> None:
        """What the app says is all there is, and the refusal is remembered like an answer."""
        shop.conf.broker_transport_options = options
        sqs = Sqs(answer)
        for _ in range(2):
            assert limits_of(shop, "orders", sqs) == QueueLimits(hold_seconds=seconds)


class TestDelays:
    """Which queues delay a single message themselves."""

    @pytest.mark.parametrize(
        ("queue", "url", "delays"),
        [
            ("orders", "https://sqs/orders", True),
            ("orders.fifo", "https://sqs/orders.fifo", False),
            # As the keys of ``predefined_queues`` may be.
            ("orders", "https://sqs/orders.fifo", False),
            ("orders.fifo", "https://sqs/orders", False),
        ],
    )
    def test_those_of_sqs_that_are_no_fifo_queues(self, queue: str, url: str, delays: bool) -> None:
        """Kombu tells a FIFO queue by the name that it has in Celery, SQS by its own."""
        channel = SimpleNamespace(sqs=None, canonical_queue_name=None, _new_queue={queue: url}.__getitem__)
        assert delays_messages(queue, channel) is delays

    def test_no_other(self, shop: Celery) -> None:
        """Another transport names its queues as that of SQS does (``pgmq``), and is not asked as SQS is."""
        shop.conf.broker_transport_options = {"visibility_timeout": 120}
        pgmq = SimpleNamespace(canonical_queue_name=str)
        assert [delays_messages("orders", channel) for channel in (PLAIN, pgmq)] == [False, False]
        assert limits_of(shop, "orders", pgmq) == QueueLimits(hold_seconds=120.0)

    def test_no_countdown_is_longer_than_sqs_allows(self) -> None:
        """With its jitter."""
        assert LONGEST_COUNTDOWN * 1.25 <= LONGEST_DELAY
