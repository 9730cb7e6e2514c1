"""Each broker's URL, options that make a lost delivery come back within seconds, and how many messages it holds."""

from dataclasses import dataclass, field, replace
from typing import Any
from urllib.parse import urlsplit

from celery import Celery

__all__ = ["Broker", "messages_held", "rabbitmq", "redis", "sqs"]

VISIBILITY_SECONDS = 5
#: Longer than billiard needs to notice a dead child (up to 5 s): kombu 5.7 stops the whole worker where it rejects
#: an SQS message that was delivered again meanwhile (``ReceiptHandleIsInvalid``).
CHILD_LOSS_SECONDS = 20

SQS_COUNTS = [
    "ApproximateNumberOfMessages",
    "ApproximateNumberOfMessagesNotVisible",
    "ApproximateNumberOfMessagesDelayed",
]


@dataclass(frozen=True)
class Broker:
    """One broker, ready for `app.conf`."""

    name: str
    url: str
    transport_options: dict[str, Any] = field(default_factory=dict)

    def with_visibility(self, seconds: int) -> "Broker":
        """Return this broker with another visibility timeout, if it has one at all."""
        if "visibility_timeout" not in self.transport_options:
            return self
        return replace(self, transport_options={**self.transport_options, "visibility_timeout": seconds})


def redis(url: str, prefix: str) -> Broker:
    """Redis, whose sweep for unacknowledged messages would take 100 s by default."""
    options = {
        "global_keyprefix": prefix,
        "visibility_timeout": VISIBILITY_SECONDS,
        "unacked_restore_interval": 1,
        "unacked_restore_throttle": 1,
        # A worker that is killed while it gives messages back keeps the others from it for so long: 300 s by default.
        "unacked_mutex_expire": 3,
    }
    return Broker("redis", f"{url}/0", options)


def rabbitmq(url: str) -> Broker:
    """RabbitMQ, which gives a delivery back as soon as its connection is gone."""
    return Broker("rabbitmq", url)


def sqs(endpoint: str) -> Broker:
    """SQS of an emulator, which never marks a redelivery and wants a fresh queue for each visibility timeout."""
    options = {
        "region": "us-east-1",
        "is_secure": False,
        "visibility_timeout": VISIBILITY_SECONDS,
        "wait_time_seconds": 0,
        "polling_interval": 0.2,
    }
    return Broker("sqs", f"sqs://testing:testing@{urlsplit(endpoint).netloc}", options)


def messages_held(app: Celery) -> int:
    """Return how many messages of an app's queue wait or are unacknowledged; RabbitMQ counts only those that wait."""
    queue = app.conf.task_default_queue
    with app.connection_for_read() as connection:
        channel = connection.default_channel
        match connection.transport.driver_type:
            case "amqp":
                return int(app.amqp.queues[queue](channel).queue_declare(passive=True).message_count)
            case "redis":
                with channel.client.pipeline() as pipe:
                    pipe.llen(queue)
                    pipe.hlen(channel.unacked_key)
                    return sum(pipe.execute())
            case _:
                return _sqs_count(channel, queue)


def _sqs_count(channel: Any, queue: str) -> int:
    # The transport offers no public way to a queue's URL.
    url = channel._new_queue(queue)
    answer = channel.sqs(queue=channel.canonical_queue_name(queue)).get_queue_attributes(
        QueueUrl=url, AttributeNames=SQS_COUNTS
    )
    return sum(int(count) for count in answer["Attributes"].values())
