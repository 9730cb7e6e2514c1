"""Deferral: publish the same message again with a countdown, without using up a retry."""

import logging
from collections.abc import Callable, Mapping
from datetime import timedelta
from math import ceil
from typing import Any, Final

from celery.exceptions import Reject
from celery.utils.time import maybe_iso8601, maybe_make_aware

from idempotent_tasks.core.delivery import WAITS_HEADER, AwaitedRun, Delivery, ReceivedMessage
from idempotent_tasks.core.processes import this_process
from idempotent_tasks.messaging.confirms import confirm_publishes
from idempotent_tasks.messaging.copies import message_copy, publishing, queue_of, rebuilt, sqs_message
from idempotent_tasks.messaging.queues import (
    LONGEST_DELAY,
    DelayQueue,
    QueueLimits,
    delay_queue,
    delays_messages,
    holds_freely,
    limits_of,
)

__all__ = ["GivenBack", "Publisher", "countdown_seconds", "longest_wait_seconds"]

logger = logging.getLogger("idempotent_tasks")

#: The first and the longest countdown in seconds; each deferral doubles it.
FIRST_COUNTDOWN: Final = 1.0
LONGEST_COUNTDOWN: Final = 30.0
#: The longest time in seconds for which a worker holds a copy that waits for a run of its own.
LONGEST_WAIT: Final = 300.0
#: The shortest countdown in seconds, unless a visibility timeout or the message's expiry is near.
SHORTEST_COUNTDOWN: Final = 1.0
#: The shortest countdown in seconds in any case.
SHORTEST_OF_ALL: Final = 0.1
#: Seconds to wait for RabbitMQ's confirmation of a copy, before the message goes back to its queue instead.
CONFIRM_SECONDS: Final = 1.5
#: Seconds that a countdown may reach past the expiry of the claim that it waits for.
MARGIN: Final = 0.5
#: A copy is due this many seconds before its message expires, or after this part of the time until then.
EXPIRY_MARGIN: Final = 1.0
EXPIRY_PART: Final = 1 / 2
#: The factor by which each receive of a message lengthens the time for which SQS hides it.
RETURN_GROWTH: Final = 4.0
#: With so few receives left before it is a dead letter, an SQS message stays hidden until the claim ends.
SCARCE_RECEIVES: Final = 2
#: The longest time in seconds for which SQS hides a message.
LONGEST_HIDING: Final = 43_000.0


class GivenBack(Reject):
    """Rejects a message that could not be published again, so that it goes back to its queue.

    Args:
        reason: as text, which a worker's parent process can unpickle; a broker's error it may not.
        requeue: always true.
        hidden: whether SQS hides the message until it is due, so that it needs no rejection.
    """

    def __init__(self, reason: str, requeue: bool = True, hidden: bool = False) -> None:  # noqa: FBT001, FBT002 - Celery's
        self.hidden = hidden
        super().__init__(reason, requeue)

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle with all arguments, for the way from a pool's process to its parent."""
        return type(self), (self.reason, self.requeue, self.hidden)


def countdown_seconds(
    deferrals: int, claim_left: float | None, hold_seconds: float | None, expires_in: float | None = None
) -> float:
    """Return the countdown of a deferred copy in seconds.

    Args:
        deferrals: how often this message was deferred before.
        claim_left: seconds until the claim that holds the key expires; None if unknown.
        hold_seconds: the visibility timeout, or another limit after which the broker delivers again a message that a
            worker holds for its countdown; None if there is none.
        expires_in: seconds until the message expires, after which a worker drops it; None for never.
    """
    grown = min(FIRST_COUNTDOWN * 2.0 ** min(deferrals, 10), LONGEST_COUNTDOWN)
    # Duplicates of one key must not all come back at once.
    countdown: float = grown * this_process().random.uniform(1.0, 1.25)
    if claim_left is not None:
        countdown = min(countdown, claim_left + MARGIN)
    countdown = max(countdown, SHORTEST_COUNTDOWN)
    if hold_seconds is not None:
        countdown = min(countdown, hold_seconds / 2)
    return max(_before_expiry(countdown, expires_in), SHORTEST_OF_ALL)


def longest_wait_seconds(claim_left: float, hold_seconds: float | None, expires_in: float | None = None) -> float:
    """Return for how many seconds a worker may hold a copy that it lets go as soon as a run of its own ends.

    Args:
        claim_left, hold_seconds, expires_in: as for `countdown_seconds`.
    """
    longest = min(LONGEST_WAIT, claim_left + MARGIN)
    if hold_seconds is not None:
        longest = min(longest, hold_seconds / 2)
    # A claim that is renewed outlives them, and then they must not all come back at once.
    return _before_expiry(longest * this_process().random.uniform(0.5, 1.0), expires_in)


def _before_expiry(seconds: float, expires_in: float | None) -> float:
    return seconds if expires_in is None else min(seconds, max(expires_in - EXPIRY_MARGIN, expires_in * EXPIRY_PART))


class Publisher:
    """Publishes the message of a delivery again, or gives it back to its queue."""

    def __init__(self) -> None:
        #: Queues whose delay queue this process cannot declare.
        self._undelayed: set[str] = set()

    def publish_again(
        self,
        task: Any,
        delivery: Delivery,
        claim_left: float | None,
        headers: Mapping[str, Any] | None = None,
        run: str | None = None,
    ) -> float:
        """Publish the task's current message again with a countdown, and return that countdown in seconds.

        The copy goes only to the queue that the message was consumed from: it bypasses exchanges, signals, routes and
        the task's own ``apply_async``.  Its body, properties and headers are those that arrived, except for a
        deferral's own.

        Args:
            task: the bound Celery task, whose ``request`` is the message.
            delivery: of the same message.
            claim_left: seconds until the claim that holds the key expires; None if unknown.
            headers: further headers of the copy.
            run: the `run_digest` of that claim's run, whose worker may hold the copy until the run ends.

        Raises:
            Exception: the broker does not take it, or the queue is unknown; the message must go back.
        """
        app = task.app
        received = delivery.received or rebuilt(task)
        queue = queue_of(task, received)
        confirmed = confirm_publishes(app)
        # Both tries publish the same copy: the first may have arrived.
        more = {**_cleared(received), **(headers or {}), **delivery.successor().headers}

        def publish(connection: Any, channel: Any) -> float:
            delays = delays_messages(queue, channel)
            held = None if delays else limits_of(app, queue, channel).hold_seconds
            countdown = countdown_seconds(delivery.deferrals, claim_left, held, _expires_in(task))
            if delays and countdown >= 1:
                delay = min(round(countdown), LONGEST_DELAY)
                # No ETA: a worker whose clock is behind would hold the copy for it.
                message = message_copy(connection, channel, received, {**more, "eta": None}, {"DelaySeconds": delay})
                channel.basic_publish(message, exchange="", routing_key=queue)
                return float(delay)
            delayed = delay_queue(app, queue, countdown) if confirmed and queue not in self._undelayed else None
            if delayed is not None:
                self._declare(channel, queue, delayed)
                # A worker holds it for the rest: just enough to spread duplicates over time.
                countdown = min(countdown, delayed.delay + 1.0)
            now = app.now()
            eta = {"eta": (now + timedelta(seconds=countdown)).isoformat()}
            if run is not None and claim_left is not None and holds_freely(app, channel):
                longest = longest_wait_seconds(claim_left, held, _expires_in(task))
                eta[WAITS_HEADER] = AwaitedRun(run, now.timestamp(), now.timestamp() + longest).header
            message = message_copy(connection, channel, received, {**more, **eta})
            options = {"mandatory": True, "timeout": CONFIRM_SECONDS} if confirmed else {}
            channel.basic_publish(
                message, exchange="", routing_key=queue if delayed is None else delayed.name, **options
            )
            return countdown

        return publishing(app, publish)

    def give_back(
        self, task: Any, delivery: Delivery, error: Exception, claim_left: float | None, pause: Callable[[float], None]
    ) -> GivenBack:
        """Wait, then return the rejection that gives back a message that could not be published again.

        SQS hides the message instead of a wait, because each receive brings it nearer to a dead-letter queue.  On any
        other transport it would come back at once.

        Args:
            task, delivery, claim_left: as for `publish_again`.
            error: why it could not be published.
            pause: waits for at most so many seconds.
        """
        reason = f"{type(error).__name__}: {error}"
        received = delivery.received
        if received is not None and _hide(task, received, claim_left):
            return GivenBack(reason, hidden=True)
        timeout = (task.app.conf.broker_transport_options or {}).get("visibility_timeout")
        returns = received.returns if received is not None else 0
        pause(countdown_seconds(returns, claim_left, float(timeout) if timeout else None, _expires_in(task)))
        return GivenBack(reason)

    def _declare(self, channel: Any, queue: str, delayed: DelayQueue) -> None:
        try:
            channel.queue_declare(queue=delayed.name, **delayed.declaration)
        except Exception:
            logger.warning("queue %r cannot be declared: workers hold what waits for %r", delayed.name, queue)
            self._undelayed.add(queue)
            raise


def _cleared(received: ReceivedMessage) -> dict[str, None]:
    """Return the header that a copy has only while its own run lives."""
    return {WAITS_HEADER: None} if received.headers.get(WAITS_HEADER) is not None else {}


def _expires_in(task: Any) -> float | None:
    """Return the seconds until the current message expires by this worker's clock, as Celery does; None for never."""
    app, expires = task.app, task.request.expires
    if not expires:
        return None
    try:
        moment = maybe_make_aware(maybe_iso8601(expires), app.conf.timezone)
        return float((moment - app.now()).total_seconds())
    except (AttributeError, TypeError, ValueError):
        return None


def _hide(task: Any, received: ReceivedMessage, claim_left: float | None) -> bool:
    """Extend the visibility timeout of an SQS message; return whether that succeeded."""
    message, queue = sqs_message(received), received.queue
    if not message.get("ReceiptHandle") or queue is None:
        return False
    url = received.properties["delivery_info"].get("sqs_queue")
    try:
        with task.app.amqp.producer_pool.acquire(block=True) as producer:
            channel = producer.channel
            limits = limits_of(task.app, queue, channel)
            seconds = _hiding_seconds(message, limits, claim_left, _expires_in(task))
            channel.sqs(queue=channel.canonical_queue_name(queue)).change_message_visibility(
                QueueUrl=url, ReceiptHandle=message["ReceiptHandle"], VisibilityTimeout=ceil(seconds)
            )
    except Exception:
        logger.exception("the visibility timeout of a message of %r cannot be changed", queue)
        return False
    return True


def _hiding_seconds(
    message: Mapping[str, Any], limits: QueueLimits, claim_left: float | None, expires_in: float | None
) -> float:
    receives = int((message.get("Attributes") or {}).get("ApproximateReceiveCount") or 1)
    seconds = FIRST_COUNTDOWN * RETURN_GROWTH ** min(receives, 5)
    if claim_left is not None:
        is_scarce = limits.receives is not None and limits.receives - receives <= SCARCE_RECEIVES
        end = max(claim_left, 0.0) + MARGIN
        seconds = end if is_scarce else min(seconds, end)
    return min(max(_before_expiry(seconds, expires_in), SHORTEST_COUNTDOWN), LONGEST_HIDING)
