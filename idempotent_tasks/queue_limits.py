"""What a queue itself says of how long a worker may hold a message, and how often it may come back."""

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final
from weakref import WeakKeyDictionary

from idempotent_tasks.core.processes import this_process

__all__ = ["QueueLimits", "limits_of", "sqs_attributes"]

logger = logging.getLogger("idempotent_tasks")

#: Seconds for which what a queue of SQS said is taken for true, and its refusal to say anything too.
LONGEST_AGE: Final = 300.0
#: The attributes of an SQS queue that are asked for.
ATTRIBUTES: Final = ("VisibilityTimeout", "RedrivePolicy")


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
