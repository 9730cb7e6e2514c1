"""Copies of a received message: made from it, and published past exchanges, signals and routes."""

from collections.abc import Callable, Mapping
from typing import Any, Final, TypeVar

from kombu.compression import compress
from kombu.serialization import dumps

from idempotent_tasks.core.delivery import KEY_HEADER, MESSAGE_ENTRY, ReceivedMessage
from idempotent_tasks.core.processes import this_process
from idempotent_tasks.messaging.confirms import confirm_publishes
from idempotent_tasks.messaging.queues import consumed_queue, subscribed_queues

__all__ = ["UnknownQueueError", "message_copy", "publishing", "queue_of", "rebuilt", "sent_properties", "sqs_message"]

T = TypeVar("T")

#: A first try that fails within so many seconds had a stale connection and is repeated.
STALE_SECONDS: Final = 0.5

#: Headers that a broker adds.  RabbitMQ takes a message with the first for a dead-letter cycle, and drops it
#: (https://www.rabbitmq.com/docs/dlx#automatic-dead-letter-cycles).
BROKER_HEADERS: Final = frozenset(
    {
        *("x-death", "x-first-death-exchange", "x-first-death-queue", "x-first-death-reason"),
        *("x-last-death-exchange", "x-last-death-queue", "x-last-death-reason"),
        *("x-delivery-count", "x-acquired-count", "redelivered"),
    }
)
#: Properties that say how the message was delivered, or that a copy sets itself.
DELIVERY_PROPERTIES: Final = frozenset(
    {
        *("application_headers", "content_type", "content_encoding", "body_encoding", "delivery_info", "delivery_tag"),
        *("delay_seconds", "DelaySeconds", "MessageDeduplicationId", MESSAGE_ENTRY),
    }
)
#: Attributes of a request that are no headers of its message.
REQUEST_ENTRIES: Final = frozenset(
    {
        *("args", "kwargs", "hostname", "properties", "delivery_info", "reply_to", "correlation_id", "headers"),
        *("callbacks", "errbacks", "chain", "chord", "called_directly", "is_eager", "loglevel", "logfile"),
        *("time_limit", "soft_time_limit", "_children", "_protected"),
    }
)

#: The encodings of kombu's serializers that write text.
TEXT_ENCODINGS: Final = frozenset({"utf-8", "us-ascii"})


class UnknownQueueError(Exception):
    """The queue of a message is unknown, or nothing can be published to it."""


def publishing(app: Any, publish: Callable[[Any, Any], T]) -> T:
    """Call ``publish`` with a connection and channel from the app's pool; once more if that connection was stale."""
    clock = this_process().clock
    began = clock.monotonic()
    try:
        return _publish_once(app, publish)
    except Exception:
        if clock.monotonic() - began > STALE_SECONDS:
            raise
    return _publish_once(app, publish)


def _publish_once(app: Any, publish: Callable[[Any, Any], T]) -> T:
    with app.amqp.producer_pool.acquire(block=True) as producer:
        try:
            return publish(producer.connection, producer.channel)
        except BaseException:
            # A confirmation that comes late would be taken for that of the next message.
            if confirm_publishes(app) and producer.connection is not None:
                producer.connection.collect()
            raise


def queue_of(task: Any, received: ReceivedMessage) -> str:
    """Return the queue that a task's current message was consumed from, to which a copy goes.

    Raises:
        UnknownQueueError: it is unknown, or nothing can be published to it.
    """
    queue = received.queue or consumed_queue(task.app, task.request.delivery_info or {})
    if queue is None:
        raise UnknownQueueError("the queue of the message is unknown")
    if not received.is_addressable:
        raise UnknownQueueError(f"nothing can be published to {queue!r}, which is bound to a fanout exchange")
    return queue


def message_copy(
    connection: Any,
    channel: Any,
    received: ReceivedMessage,
    more: Mapping[str, Any],
    more_properties: Mapping[str, Any] | None = None,
) -> Any:
    """Return a copy of a message with more headers and properties, prepared for the channel."""
    headers = {**{name: each for name, each in received.headers.items() if name not in BROKER_HEADERS}, **more}
    body, encoding = received.body, (received.content_encoding or "").lower()
    if isinstance(body, bytes) and encoding in TEXT_ENCODINGS and "compression" not in headers:
        # As kombu's serializers return it: a virtual transport may be configured to send text as it is.
        body = body.decode(encoding)
    if "compression" in headers:
        raw = body.encode() if isinstance(body, str) else body
        body, headers["compression"] = compress(raw, headers["compression"])
    properties = {**sent_properties(received), **(more_properties or {})}
    if properties.get("user_id") != connection.userid:
        # RabbitMQ closes the channel on a message with another user's id.
        properties.pop("user_id", None)
    return channel.prepare_message(
        body,
        priority=properties.pop("priority", None),
        content_type=received.content_type,
        content_encoding=received.content_encoding,
        headers=headers,
        properties=properties,
    )


def sent_properties(received: ReceivedMessage) -> dict[str, Any]:
    """Return the properties that a message's sender has set, without those of its delivery."""
    kept = {name: each for name, each in received.properties.items() if name not in DELIVERY_PROPERTIES}
    return {**kept, **_sqs_properties(received)}


def _sqs_properties(received: ReceivedMessage) -> dict[str, Any]:
    """Return the group id and attributes of an SQS message, as kombu sends them."""
    message = sqs_message(received)
    attributes = message.get("MessageAttributes")
    group = (message.get("Attributes") or {}).get("MessageGroupId")
    own = {} if group is None or "MessageGroupId" in received.properties else {"MessageGroupId": group}
    return {**own, **({"message_attributes": dict(attributes)} if attributes else {})}


def sqs_message(received: ReceivedMessage) -> Mapping[str, Any]:
    """Return a message as SQS delivered it; empty for another broker's."""
    found = (received.properties.get("delivery_info") or {}).get("sqs_message")
    return found if isinstance(found, Mapping) else {}


def _is_ours(name: str) -> bool:
    """Return whether this name of a request's attribute or header is this library's, and not the explicit key's."""
    return name.startswith("idempotency_") and name != KEY_HEADER


def rebuilt(task: Any) -> ReceivedMessage:
    """Rebuild a message from its request, where no `GuardedRequest` has kept it (a foreign ``Request`` class).

    In protocol 2 (https://docs.celeryq.dev/en/stable/internals/protocol.html), with all headers and properties of the
    request.
    """
    request, app = task.request, task.app
    entries = vars(request)
    headers = {name: each for name, each in entries.items() if name not in REQUEST_ENTRIES and not _is_ours(name)}
    # The message's own inner headers, or those that Celery has collected from the ones above.
    found = (request.headers or {}).items()
    inner = {name: each for name, each in found if name not in entries and not _is_ours(name)}
    if inner:
        headers["headers"] = inner
    embedded = {name: entries.get(name) for name in ("callbacks", "errbacks", "chain", "chord")}
    serializer = task.serializer or app.conf.task_serializer
    content_type, content_encoding, body = dumps((request.args, request.kwargs, embedded), serializer)
    delivery_info = request.delivery_info or {}
    queue = consumed_queue(app, delivery_info)
    transport = app.connection_for_read().transport.driver_type
    return ReceivedMessage(
        queue=queue,
        is_addressable=queue not in subscribed_queues(app, transport),
        body=body,
        content_type=content_type,
        content_encoding=content_encoding,
        headers={**headers, "id": request.id, "task": task.name},
        properties={**(request.properties or {}), "priority": delivery_info.get("priority")},
    )
