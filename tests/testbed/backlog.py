"""How many messages a broker still has of a test's queue."""

from typing import Any

from celery import Celery

__all__ = ["backlog"]

SQS_COUNTS = [
    "ApproximateNumberOfMessages",
    "ApproximateNumberOfMessagesNotVisible",
    "ApproximateNumberOfMessagesDelayed",
]


def backlog(app: Celery) -> int:
    """Return how many messages of the app's queue wait or are held; RabbitMQ counts only those that wait."""
    queue = app.conf.task_default_queue
    with app.connection_for_read() as connection:
        channel = connection.default_channel
        match connection.transport.driver_type:
            case "amqp":
                return int(app.amqp.queues[queue](channel).queue_declare(passive=True).message_count)
            case "redis":
                return _redis_count(channel, queue)
            case _:
                return _sqs_count(channel, queue)


def _redis_count(channel: Any, queue: str) -> int:
    with channel.client.pipeline() as pipe:
        pipe.llen(queue)
        pipe.hlen(channel.unacked_key)
        return sum(pipe.execute())


def _sqs_count(channel: Any, queue: str) -> int:
    # The transport offers no public way to a queue's URL.
    url = channel._new_queue(queue)
    answer = channel.sqs(queue=channel.canonical_queue_name(queue)).get_queue_attributes(
        QueueUrl=url, AttributeNames=SQS_COUNTS
    )
    return sum(int(count) for count in answer["Attributes"].values())
