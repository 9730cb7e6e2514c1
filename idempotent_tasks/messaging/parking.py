"""Messages of parked keys: kept in the key's record, and published again once a person has decided."""

import zlib
from typing import Any, Final

from kombu.utils.json import dumps, loads

from idempotent_tasks.core.delivery import PRIVATE_HEADERS, Delivery, ReceivedMessage
from idempotent_tasks.messaging.confirms import CONFIRM_SECONDS, confirm_publishes
from idempotent_tasks.messaging.copies import message_copy, publishing, queue_of, rebuilt, sent_properties

__all__ = ["decoded_message", "encoded_message", "publish_parked"]

#: Headers that are over by the time of the decision: a worker would drop an expired message, and hold one with an ETA.
PAST_HEADERS: Final = frozenset({"eta", "expires", *PRIVATE_HEADERS})


def encoded_message(task: Any, delivery: Delivery) -> bytes:
    """Return a task's current message, to be kept until it is published again: compressed JSON, its arguments included.

    Args:
        task: the bound Celery task, whose ``request`` is the message.
        delivery: of the same message.

    Raises:
        Exception: its queue is unknown, nothing can be published there, or a header has no JSON form.
    """
    received = delivery.received or rebuilt(task)
    kept = {
        "queue": queue_of(task, received),
        "body": received.body,
        "content_type": received.content_type,
        "content_encoding": received.content_encoding,
        "headers": {name: each for name, each in received.headers.items() if name not in PAST_HEADERS},
        "properties": sent_properties(received),
    }
    return zlib.compress(dumps(kept).encode())


def decoded_message(message: bytes) -> ReceivedMessage:
    """Return a message that `encoded_message` has encoded.

    Raises:
        ValueError, TypeError, zlib.error: it has not.
    """
    return ReceivedMessage(**loads(zlib.decompress(message)))


def publish_parked(app: Any, message: ReceivedMessage) -> None:
    """Publish a message to the queue that it came from, and wait until the broker has it.

    Raises:
        Exception: the broker does not take it.
    """
    confirmed = confirm_publishes(app)
    options = {"mandatory": True, "timeout": CONFIRM_SECONDS} if confirmed else {}

    def publish(connection: Any, channel: Any) -> None:
        copy = message_copy(connection, channel, message, {})
        channel.basic_publish(copy, exchange="", routing_key=message.queue, **options)

    publishing(app, publish)
