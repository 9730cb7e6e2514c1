"""Which queue a message goes back to where the broker itself delays messages."""

import re
from collections.abc import Mapping
from typing import Any, Final

__all__ = ["kept_route"]

#: Where RabbitMQ's native delayed delivery hands a message over, and what it puts in front of a routing key, once a
#: delay (``kombu.transport.native_delayed_delivery``).
DELIVERY_EXCHANGE: Final = "celery_delayed_delivery"
_DELAYS: Final = re.compile(r"^(?:(?:[01]\.){28})+")


def kept_route(app: Any, delivery_info: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options that publish a message with a countdown to the queue that it came from.

    Empty where its exchange and routing key say enough: without quorum queues, and for a queue that the app does not
    know.  With one, Celery takes the routing key of the app's default queue (``celery.app.base.Celery.send_task``), and
    kombu before 5.7 adds each delay to the routing key of the one before, until it is too long to be published
    (https://github.com/celery/kombu/issues/2556).

    Args:
        app: the Celery app.
        delivery_info: the message's, from its request.
    """
    queues = list(app.amqp.queues.values())
    if not any((queue.queue_arguments or {}).get("x-queue-type") == "quorum" for queue in queues):
        return {}
    exchange = delivery_info.get("exchange")
    routing_key = _DELAYS.sub("", delivery_info.get("routing_key") or "")
    for queue in queues:
        if queue.routing_key == routing_key and exchange in {queue.exchange.name, DELIVERY_EXCHANGE}:
            return {"queue": queue}
    return {}
