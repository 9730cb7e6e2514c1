"""Queues: the one a message was consumed from, RabbitMQ's delay queues, and the limits of a queue."""

import json
import logging
import re
from collections.abc import Iterator, Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from hashlib import sha256
from typing import Any, Final
from weakref import WeakKeyDictionary

from idempotent_tasks.core.delivery import ReceivedMessage
from idempotent_tasks.core.processes import this_process

__all__ = [
    "LONGEST_DELAY",
    "DelayQueue",
    "QueueLimits",
    "consumed_queue",
    "delay_queue",
    "delays_messages",
    "holds_freely",
    "limits_of",
    "name_queues",
    "received_message",
    "sqs_attributes",
    "subscribed_queues",
]

logger = logging.getLogger("idempotent_tasks")

#: The exchange that RabbitMQ's native delayed delivery ends at, and the prefix of the routing key, one for each delay
#: (``kombu.transport.native_delayed_delivery``).
DELIVERY_EXCHANGE: Final = "celery_delayed_delivery"
_DELAYS: Final = re.compile(r"^(?:(?:[01]\.){28})+")
#: The delays in seconds for which there may be a delay queue.
DELAYS: Final = (30, 16, 8, 4, 2, 1)
#: RabbitMQ's limit of a queue's name in bytes.
LONGEST_NAME: Final = 255
#: kombu's transports whose fanout subscribers read no queue: what is published under its name reaches none of them.
SUBSCRIBING_TRANSPORTS: Final = {"redis", "mongodb"}

#: The longest delay of a single message on SQS, in seconds.
LONGEST_DELAY: Final = 900
#: What the names and URLs of SQS's FIFO queues end with.
FIFO: Final = ".fifo"
#: Seconds for which the limits of an SQS queue are cached, and a failure to read them too.
LONGEST_AGE: Final = 300.0
#: The attributes of an SQS queue that are read.
ATTRIBUTES: Final = ("VisibilityTimeout", "RedrivePolicy")
#: The queue of the message that this thread receives.
_consuming: ContextVar[str | None] = ContextVar("idempotency_consuming", default=None)


def name_queues(channel: Any) -> None:
    """Let `received_message` name the queue of each message that is consumed on a channel.

    Neither Celery's consumer nor a message of kombu's virtual transports knows its queue; exchange and routing key lead
    to every queue that is bound there.

    Args:
        channel: kombu's, before the worker consumes; its ``basic_consume`` is wrapped.
    """
    consume = channel.basic_consume

    def basic_consume(*args: Any, **options: Any) -> Any:
        queue, callback = options.get("queue"), options.get("callback")
        if queue is None or callback is None:
            return consume(*args, **options)

        def receive(message: Any) -> Any:
            token = _consuming.set(queue)
            try:
                return callback(message)
            finally:
                _consuming.reset(token)

        return consume(*args, **{**options, "callback": receive})

    channel.basic_consume = basic_consume


def received_message(message: Any, returns: int = 0) -> ReceivedMessage:
    """Return a message with the queue that it was consumed from, to publish a copy of it.

    Args:
        message: kombu's, inside the callback of its consumer.
        returns: how often the worker has given it back.
    """
    queue = _consuming.get()
    return ReceivedMessage(
        queue=queue,
        # Fanout of Redis and MongoDB: nothing is read from a list of the queue's name.
        is_addressable=queue is None or queue not in getattr(message.channel, "_fanout_queues", ()),
        body=message.body,
        content_type=message.content_type,
        content_encoding=message.content_encoding,
        headers=message.headers,
        properties=message.properties,
        returns=returns,
    )


def consumed_queue(app: Any, delivery_info: Mapping[str, Any]) -> str | None:
    """Return the only queue of this worker that an exchange and routing key lead to; None if there are several or none.

    Args:
        app: the Celery app.
        delivery_info: the message's exchange and routing key.
    """
    exchange, routing_key = delivery_info.get("exchange"), delivery_info.get("routing_key") or ""
    if exchange == "":
        return routing_key or None
    if str(exchange).endswith(DELIVERY_EXCHANGE):
        # From any exchange; see kombu's ``bind_queue_to_native_delayed_delivery_exchange``.
        exchange, routing_key = None, _DELAYS.sub("", routing_key)
    found = {
        queue.name
        for queue in app.amqp.queues.consume_from.values()
        for source, pattern in _bindings(queue)
        if _leads(exchange, routing_key, source, pattern)
    }
    return found.pop() if len(found) == 1 else None


def subscribed_queues(app: Any, transport: str) -> list[str]:
    """Return the consumed queues that nothing can be published to: fanout, if kombu's transport is Redis or MongoDB."""
    if transport not in SUBSCRIBING_TRANSPORTS:
        return []
    queues = app.amqp.queues.consume_from.values()
    return sorted({each.name for each in queues for source, _ in _bindings(each) if source.type == "fanout"})


@dataclass(frozen=True, kw_only=True, slots=True)
class DelayQueue:
    """A RabbitMQ queue whose messages go to one other queue after a delay."""

    name: str
    #: Seconds.
    delay: int
    #: Arguments of the channel's ``queue_declare``.
    declaration: Mapping[str, Any]


def delay_queue(app: Any, queue: str, countdown: float) -> DelayQueue | None:
    """Return the delay queue in which a copy for ``queue`` waits for most of its countdown (seconds).

    None if no queue is a quorum queue: then a worker raises its prefetch count by the copies that it holds until they
    are due.  With a quorum queue it cannot (``celery.utils.quorum_queues``), and held copies would block other
    messages.  Celery's own delay is a topic exchange, ``celery_delayed_delivery``, to which other queues may be bound.
    """
    delay = next((each for each in DELAYS if each <= countdown), None)
    if delay is None or not _has_quorum_queue(app):
        return None
    kind = app.conf.get("broker_native_delayed_delivery_queue_type") or "quorum"
    arguments = {
        "x-queue-type": kind,
        "x-message-ttl": delay * 1000,
        "x-dead-letter-exchange": "",
        "x-dead-letter-routing-key": queue,
        "x-overflow": "reject-publish",
    }
    if kind == "quorum":
        # The only copy must survive a full or missing target (https://www.rabbitmq.com/docs/dlx#safety).
        arguments["x-dead-letter-strategy"] = "at-least-once"
    declaration = {"durable": True, "auto_delete": False, "arguments": arguments}
    return DelayQueue(name=_delay_name(queue, delay), delay=delay, declaration=declaration)


def holds_freely(app: Any, channel: Any) -> bool:
    """Return whether a worker may hold messages of a queue without keeping others from it.

    With a quorum queue its prefetch count is fixed; of SQS a FIFO queue keeps back the rest of the message's group.

    Args:
        app: the Celery app.
        channel: kombu's.
    """
    return not _is_sqs(channel) and not _has_quorum_queue(app)


def _has_quorum_queue(app: Any) -> bool:
    return any((each.queue_arguments or {}).get("x-queue-type") == "quorum" for each in app.amqp.queues.values())


def _delay_name(queue: str, delay: int) -> str:
    name = f"{queue}.idempotency-delay-{delay}"
    if len(name.encode()) > LONGEST_NAME:
        name = f"{sha256(queue.encode()).hexdigest()}.idempotency-delay-{delay}"
    return name


def _bindings(queue: Any) -> Iterator[tuple[Any, str]]:
    """Yield the exchanges that a ``kombu.Queue`` is bound to, each with its routing key."""
    if queue.exchange:
        yield queue.exchange, queue.routing_key or ""
    for each in queue.bindings or ():
        yield each.exchange, each.routing_key or ""


def _leads(exchange: str | None, routing_key: str, source: Any, pattern: str) -> bool:
    """Return whether a binding to ``source`` matches an exchange (None for any topic exchange) and a routing key."""
    if exchange is not None and exchange != source.name:
        return False
    if source.type == "topic":
        return _topic(pattern.split("."), routing_key.split("."))
    return exchange is not None and (source.type != "direct" or pattern == routing_key)


def _topic(pattern: list[str], words: list[str]) -> bool:
    """Return whether a topic pattern matches a routing key: ``*`` is one word, ``#`` any number of words."""
    if not pattern:
        return not words
    first, *rest = pattern
    if first == "#":
        return any(_topic(rest, words[place:]) for place in range(len(words) + 1))
    return bool(words) and first in ("*", words[0]) and _topic(rest, words[1:])


@dataclass(frozen=True, kw_only=True, slots=True)
class QueueLimits:
    """How long a worker may hold a message of a queue, and how often it is delivered."""

    #: Seconds after which the broker redelivers or drops a message that a worker holds; None if there is no limit.
    hold_seconds: float | None = None
    #: The most deliveries of a message; None if unknown.
    receives: int | None = None


class _SqsLimits(WeakKeyDictionary[Any, dict[str, tuple[float, QueueLimits]]]):
    """The limits of SQS queues by app and name, with the monotonic time at which they were read."""


def limits_of(app: Any, queue: str, channel: Any) -> QueueLimits:
    """Return the limits of a queue, as far as the queue or the app's configuration tells them.

    Args:
        app: the Celery app.
        queue: the queue's name.
        channel: kombu's; on SQS the queue itself is asked, once in `LONGEST_AGE` seconds.
    """
    if _is_sqs(channel):
        return _sqs_limits(app, queue, channel)
    declared = app.amqp.queues.get(queue)
    given = dict((declared.queue_arguments if declared is not None else None) or {})
    # Milliseconds.
    own = [_positive(given.get(name), 1000) for name in ("x-consumer-timeout", "x-message-ttl")]
    own += [_configured_timeout(app), _positive(getattr(declared, "message_ttl", None))]
    return QueueLimits(hold_seconds=min((each for each in own if each is not None), default=None))


def delays_messages(queue: str, channel: Any) -> bool:
    """Return whether a queue delays single messages, for at most `LONGEST_DELAY` whole seconds: SQS, except for FIFO.

    Args:
        queue: the queue's name.
        channel: kombu's.
    """
    # By its name kombu decides, and drops the delay; by its URL SQS does, and refuses the message.
    return _is_sqs(channel) and not any(each.endswith(FIFO) for each in (queue, channel._new_queue(queue)))  # noqa: SLF001


def _is_sqs(channel: Any) -> bool:
    """Return whether a channel is ``kombu.transport.SQS.Channel``; others have its names of queues, not its clients."""
    return hasattr(channel, "canonical_queue_name") and hasattr(channel, "sqs")


def sqs_attributes(channel: Any, queue: str) -> Mapping[str, str]:
    """Return the `ATTRIBUTES` of an SQS queue; raises what kombu and botocore raise.

    Args:
        channel: ``kombu.transport.SQS.Channel``.
        queue: the queue's name in Celery.
    """
    client = channel.sqs(queue=channel.canonical_queue_name(queue))
    answer = client.get_queue_attributes(QueueUrl=channel._new_queue(queue), AttributeNames=list(ATTRIBUTES))  # noqa: SLF001
    found: Mapping[str, str] = answer.get("Attributes") or {}
    return found


def _sqs_limits(app: Any, queue: str, channel: Any) -> QueueLimits:
    process = this_process()
    known = process.own(_SqsLimits).setdefault(app, {})
    now = process.clock.monotonic()
    if queue not in known or now - known[queue][0] > LONGEST_AGE:
        known[queue] = now, _read_sqs_limits(app, queue, channel)
    return known[queue][1]


def _read_sqs_limits(app: Any, queue: str, channel: Any) -> QueueLimits:
    """Read the limits from an SQS queue: kombu applies the configured visibility timeout only to queues it creates."""
    try:
        found = sqs_attributes(channel, queue)
        redrive = json.loads(found.get("RedrivePolicy") or "{}")
        receives = redrive.get("maxReceiveCount")
        hold_seconds = float(found["VisibilityTimeout"])
        return QueueLimits(hold_seconds=hold_seconds, receives=None if receives is None else int(receives))
    except Exception as error:  # noqa: BLE001 - botocore's, or a credential provider's, or what an emulator answers
        logger.warning("the visibility timeout of queue %r cannot be read: %s: %s", queue, type(error).__name__, error)
        return QueueLimits(hold_seconds=_configured_timeout(app))


def _configured_timeout(app: Any) -> float | None:
    return _positive((app.conf.broker_transport_options or {}).get("visibility_timeout"))


def _positive(value: object, divisor: int = 1) -> float | None:
    """Return a positive number divided by ``divisor``; None for anything else."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return value / divisor if is_number and value > 0 else None  # type: ignore[operator]
