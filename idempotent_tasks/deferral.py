"""Publishing a delivery again for later: the same message with a countdown, nothing of the retry count spent."""

import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import MappingProxyType
from typing import Any, Final

from kombu import pools
from kombu.serialization import registry

from idempotent_tasks.delivery import CONTENT_TYPE_ENTRY, DEFERRALS_HEADER, Delivery
from idempotent_tasks.route import kept_route

__all__ = ["countdown_seconds", "publish_again", "visibility_timeout"]

#: Seconds: the first countdown, and the longest; each deferral doubles it.
FIRST_COUNTDOWN: Final = 1.0
LONGEST_COUNTDOWN: Final = 30.0
#: RabbitMQ's native delayed delivery counts whole seconds and takes no 0 (``kombu.transport.native_delayed_delivery``).
SHORTEST_COUNTDOWN: Final = 1.0
#: Seconds to wait for RabbitMQ's confirmation of a copy, before the message goes back to its queue instead.
CONFIRM_SECONDS: Final = 1.5
#: Seconds that a countdown may reach past the expiry of the claim that it waits for.
MARGIN: Final = 0.5


def countdown_seconds(deferrals: int, claim_left: float | None, visibility_timeout: float | None) -> float:
    """Return for how long to defer, in seconds.

    Args:
        deferrals: how often this message was deferred before.
        claim_left: seconds until the claim in the way expires, or None where that is not known.
        visibility_timeout: the broker's, in seconds, or None: a worker holds a message with a countdown
            unacknowledged, and a broker with such a timeout would deliver it twice.
    """
    grown = min(FIRST_COUNTDOWN * 2.0 ** min(deferrals, 10), LONGEST_COUNTDOWN)
    # Many duplicates of one key must not come back at one moment.
    countdown: float = grown * random.uniform(1.0, 1.25)  # noqa: S311 - not a secret
    if claim_left is not None:
        countdown = min(countdown, claim_left + MARGIN)
    if visibility_timeout is not None:
        countdown = min(countdown, visibility_timeout / 2)
    return max(countdown, SHORTEST_COUNTDOWN)


def publish_again(
    task: Any, delivery: Delivery, countdown: float, more_headers: Mapping[str, Any] = MappingProxyType({})
) -> None:
    """Publish the task's current message again, to run after ``countdown`` seconds.

    Everything of the message stays: id, retries, arguments and how they are shown, chain, chord, callbacks, expiry,
    time limits, priority, route.

    Args:
        task: the bound Celery task, whose ``request`` is the message.
        delivery: the same message as this library read it.
        countdown: seconds.
        more_headers: what the copy says beside what the message says.

    Raises:
        kombu.exceptions.OperationalError: the broker does not take it.
    """
    request = task.request
    same = {name: request.get(name) for name in ("argsrepr", "kwargsrepr", "compression")}
    # Celery before 5.7 takes the task's own ignore_result, and any Celery the task's own serializer.
    kept = {"ignore_result": request.ignore_result} if "ignore_result" in vars(request) else {}
    kept |= kept_route(task.app, request.delivery_info or {})
    serializer = registry.type_to_name.get(request.get(CONTENT_TYPE_ENTRY))
    signature = task.signature_from_request(
        request, countdown=countdown, retries=request.retries, serializer=serializer, **same, **kept
    )
    headers = {**(signature.options.get("headers") or {}), DEFERRALS_HEADER: delivery.deferrals + 1, **more_headers}
    with _publisher(task.app) as publisher:
        signature.set(headers=headers).apply_async(add_to_parent=False, **publisher)


@contextmanager
def _publisher(app: Any) -> Iterator[dict[str, Any]]:
    """Lend publishing options with which the broker has the message when the call returns.

    The copy that a message is acknowledged for must not be lost in a socket's buffer: RabbitMQ confirms if it is asked
    to (https://www.rabbitmq.com/docs/confirms#publisher-confirms); the other transports always wait for an answer.
    """
    if app.connection_for_write().transport.driver_type != "amqp":
        yield {}
        return
    options = {**(app.conf.broker_transport_options or {}), "confirm_publish": True}
    with pools.producers[app.connection_for_write(transport_options=options)].acquire(block=True) as producer:
        try:
            yield {"producer": producer, "timeout": CONFIRM_SECONDS, "retry": False}
        except BaseException:
            # A confirmation that comes late would be taken for that of the next message.
            producer.connection.collect()
            raise


def visibility_timeout(app: Any) -> float | None:
    """Return the visibility timeout that the app sets for its broker, in seconds, or None.

    The transports' defaults, 3,600 s (Redis) and 1,800 s (SQS), are far above the longest countdown.
    """
    options = app.conf.broker_transport_options or {}
    timeout = options.get("visibility_timeout")
    return float(timeout) if timeout else None
