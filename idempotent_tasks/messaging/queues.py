"""Queues: which one a message goes back to, how it waits there where no worker holds it, and a queue's own limits."""

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
    "DelayQueue",
    "QueueLimits",
    "consumed_queue",
    "delay_queue",
    "limits_of",
    "name_queues",
    "received_message",
    "sqs_attributes",
    "subscribed_queues",
]

logger = logging.getLogger("idempotent_tasks")

#: Where RabbitMQ's native delayed delivery hands a message over, and what it puts in front of a routing key, once a
#: delay (``kombu.transport.native_delayed_delivery``).
DELIVERY_EXCHANGE: Final = "celery_delayed_delivery"
_DELAYS: Final = re.compile(r"^(?:(?:[01]\.){28})+")
#: Seconds for which RabbitMQ holds a copy in a queue of its own, for each queue that has quorum queues beside it.
DELAYS: Final = (30, 16, 8, 4, 2, 1)
#: Bytes: RabbitMQ takes no longer name.
LONGEST_NAME: Final = 255
#: kombu's transports whose fanout is no queue: what is published under its name reaches no subscriber.
SUBSCRIBING_TRANSPORTS: Final = {"redis", "mongodb"}

#: Seconds for which what a queue of SQS said is taken for true, and its refusal to say anything too.
LONGEST_AGE: Final = 300.0
#: The attributes of an SQS queue that are asked for.
ATTRIBUTES: Final = ("VisibilityTimeout", "RedrivePolicy")
#: The queue that the message comes from which this thread receives at the moment.
_consuming: ContextVar[str | None] = ContextVar("idempotency_consuming", default=None)


def name_queues(channel: Any) -> None:
    """Have the messages that are consumed on a channel say from which queue each comes (`received_message`).

    Neither Celery's consumer nor a message of kombu's virtual transports knows it; the exchange and routing key of a
    message lead to every queue that is bound there.

    Args:
        channel: kombu's, before the worker consumes; calls of its ``basic_consume`` are wrapped.
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
    """Return what a copy of a message needs.

    Args:
        message: kombu's, within the callback of its consumer.
        returns: how often the worker has given it back lately.
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
    """Return the queue of a message by elimination: the only one of this worker's that its exchange leads to.

    Args:
        app: the Celery app.
        delivery_info: the message's exchange and routing key.

    Returns:
        None where it may be one of several, or none that is known.
    """
    exchange, routing_key = delivery_info.get("exchange"), delivery_info.get("routing_key") or ""
    if exchange == "":
        return routing_key or None
    if str(exchange).endswith(DELIVERY_EXCHANGE):
        # Where any exchange may have sent it; see ``bind_queue_to_native_delayed_delivery_exchange``.
        exchange, routing_key = None, _DELAYS.sub("", routing_key)
    found = {
        queue.name
        for queue in app.amqp.queues.consume_from.values()
        for source, pattern in _bindings(queue)
        if _leads(exchange, routing_key, source, pattern)
    }
    return found.pop() if len(found) == 1 else None


def subscribed_queues(app: Any, transport: str) -> list[str]:
    """Return the names of the consumed queues that nothing can be published to, on a transport by kombu's name."""
    if transport not in SUBSCRIBING_TRANSPORTS:
        return []
    queues = app.amqp.queues.consume_from.values()
    return sorted({each.name for each in queues for source, _ in _bindings(each) if source.type == "fanout"})


@dataclass(frozen=True, kw_only=True, slots=True)
class DelayQueue:
    """A queue of RabbitMQ in which a copy waits, and from which it goes to one other queue and nowhere else."""

    name: str
    #: Seconds.
    delay: int
    #: As ``queue_declare`` of the channel takes them.
    declaration: Mapping[str, Any]


def delay_queue(app: Any, queue: str, countdown: float) -> DelayQueue | None:
    """Return the queue in which a copy for ``queue`` waits for most of its countdown (seconds).

    None where a worker holds it: without quorum queues it can take as many messages more as it holds.  With one, its
    prefetch count stays as it is, and what it holds keeps others from it (``celery.utils.quorum_queues``).  Celery's
    own delay, ``celery_delayed_delivery``, is a topic exchange: other queues may be bound to what comes out of it.
    """
    kinds = {(each.queue_arguments or {}).get("x-queue-type") for each in app.amqp.queues.values()}
    delay = next((each for each in DELAYS if each <= countdown), None)
    if "quorum" not in kinds or delay is None:
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
        # The only copy must not be lost where its queue is full or away (https://www.rabbitmq.com/docs/dlx#safety).
        arguments["x-dead-letter-strategy"] = "at-least-once"
    declaration = {"durable": True, "auto_delete": False, "arguments": arguments}
    return DelayQueue(name=_delay_name(queue, delay), delay=delay, declaration=declaration)


def _delay_name(queue: str, delay: int) -> str:
    name = f"{queue}.idempotency-delay-{delay}"
    if len(name.encode()) > LONGEST_NAME:
        name = f"{sha256(queue.encode()).hexdigest()}.idempotency-delay-{delay}"
    return name


def _bindings(queue: Any) -> Iterator[tuple[Any, str]]:
    """Yield the exchanges that a queue (``kombu.Queue``) is bound to, each with its routing key."""
    if queue.exchange:
        yield queue.exchange, queue.routing_key or ""
    for each in queue.bindings or ():
        yield each.exchange, each.routing_key or ""


def _leads(exchange: str | None, routing_key: str, source: Any, pattern: str) -> bool:
    """Return whether a message may have come from an exchange, None for any topic, by one binding to ``source``."""
    if exchange is not None and exchange != source.name:
        return False
    if source.type == "topic":
        return _topic(pattern.split("."), routing_key.split("."))
    return exchange is not None and (source.type != "direct" or pattern == routing_key)


def _topic(pattern: list[str], words: list[str]) -> bool:
    """Return whether a topic's pattern takes a routing key: ``*`` is one word, ``#`` any number of them."""
    if not pattern:
        return not words
    first, *rest = pattern
    if first == "#":
        return any(_topic(rest, words[place:]) for place in range(len(words) + 1))
    return bool(words) and first in ("*", words[0]) and _topic(rest, words[1:])


@dataclass(frozen=True, kw_only=True, slots=True)
class QueueLimits:
    """How long, and how often."""

    #: Seconds after which the broker delivers a message again, or drops it, that a worker holds; None for no limit that
    #: is near.
    hold_seconds: float | None = None
    #: How often a message is delivered at most; None where that is unknown.
    receives: int | None = None


class _AskedQueues:
    """What queues of SQS have said, and when, by app and name."""

    def __init__(self) -> None:
        self.by_app: WeakKeyDictionary[Any, dict[str, tuple[float, QueueLimits]]] = WeakKeyDictionary()


def limits_of(app: Any, queue: str, channel: Any) -> QueueLimits:
    """Return the limits of a queue, as far as the queue or the app says them.

    Args:
        app: the Celery app.
        queue: the queue's name.
        channel: kombu's; one of SQS asks the queue, once in `LONGEST_AGE` seconds.
    """
    if hasattr(channel, "canonical_queue_name"):
        return _asked(app, queue, channel)
    timeout = (app.conf.broker_transport_options or {}).get("visibility_timeout")
    declared = app.amqp.queues.get(queue)
    given = dict((declared.queue_arguments if declared is not None else None) or {})
    # Milliseconds.
    own = [_positive(given.get(name), 1000) for name in ("x-consumer-timeout", "x-message-ttl")]
    own += [_positive(timeout), _positive(getattr(declared, "message_ttl", None))]
    return QueueLimits(hold_seconds=min((each for each in own if each is not None), default=None))


def sqs_attributes(channel: Any, queue: str) -> Mapping[str, str]:
    """Return the `ATTRIBUTES` of a queue of SQS; raises what kombu and botocore raise.

    Args:
        channel: ``kombu.transport.SQS.Channel``.
        queue: the queue's name in Celery.
    """
    client = channel.sqs(queue=channel.canonical_queue_name(queue))
    answer = client.get_queue_attributes(QueueUrl=channel._new_queue(queue), AttributeNames=list(ATTRIBUTES))  # noqa: SLF001
    found: Mapping[str, str] = answer.get("Attributes") or {}
    return found


def _asked(app: Any, queue: str, channel: Any) -> QueueLimits:
    process = this_process()
    known = process.own(_AskedQueues).by_app.setdefault(app, {})
    at, limits = known.get(queue, (None, QueueLimits()))
    now = process.clock.monotonic()
    if at is None or now - at > LONGEST_AGE:
        limits = _ask(app, queue, channel)
        known[queue] = now, limits
    return limits


def _ask(app: Any, queue: str, channel: Any) -> QueueLimits:
    """Ask an SQS queue, whose own visibility timeout counts, whatever the app says: kombu sets it on new queues."""
    try:
        found = sqs_attributes(channel, queue)
        redrive = json.loads(found.get("RedrivePolicy") or "{}")
        receives = redrive.get("maxReceiveCount")
        return QueueLimits(
            hold_seconds=float(found["VisibilityTimeout"]), receives=None if receives is None else int(receives)
        )
    except Exception as error:  # noqa: BLE001 - botocore's, or a credential provider's, or what an emulator answers
        logger.warning("queue %r does not tell its visibility timeout: %s: %s", queue, type(error).__name__, error)
        timeout = (app.conf.broker_transport_options or {}).get("visibility_timeout")
        return QueueLimits(hold_seconds=_positive(timeout))


def _positive(value: object, divisor: int = 1) -> float | None:
    """Return a number of seconds, divided; None where it is none, or no limit."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return value / divisor if is_number and value > 0 else None  # type: ignore[operator]
