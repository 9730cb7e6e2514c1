"""Checks of the queues themselves: what can be published to them, and what they say of their limits."""

from collections.abc import Iterator
from typing import Any

from idempotent_tasks.checks.context import Surroundings
from idempotent_tasks.checks.findings import Finding
from idempotent_tasks.queue_limits import sqs_attributes
from idempotent_tasks.route import subscribed_queues

__all__ = ["check_queue_limits", "check_subscribers"]


def check_subscribers(found: Surroundings) -> Iterator[Finding]:
    """Find queues into which no delivery can be deferred."""
    for name in subscribed_queues(found.app, found.transport):
        yield Finding(
            code="broadcast-not-deferred",
            what=f"queue {name!r} is bound to a fanout exchange on {found.transport}",
            remedy=f"send guarded tasks to another queue than {name!r}, or set on_busy='raise' or 'skip' for them",
        )


def check_queue_limits(found: Surroundings) -> Iterator[Finding]:
    """Find predefined queues of SQS whose visibility timeout is too short, or is not told; asks SQS."""
    named = (found.app.conf.broker_transport_options or {}).get("predefined_queues") or {}
    if found.transport != "sqs" or not named:
        return
    with found.app.connection_for_read() as connection:
        channel = connection.channel()
        for name in sorted(named):
            yield from _check_queue(found, channel, name)


def _check_queue(found: Surroundings, channel: Any, name: str) -> Iterator[Finding]:
    try:
        visibility = float(sqs_attributes(channel, name)["VisibilityTimeout"])
    except Exception as error:  # noqa: BLE001 - botocore's, or a credential provider's
        yield Finding(
            code="queue-limits-unknown",
            what=f"queue {name!r} does not tell its visibility timeout ({type(error).__name__}: {error})",
            remedy="allow sqs:GetQueueAttributes, or give broker_transport_options the queue's visibility_timeout",
        )
        return
    limit, task = found.longest_time_limit or (0.0, "")
    if visibility < limit:
        yield Finding(
            code="visibility-below-time-limit",
            what=f"queue {name!r} has a visibility timeout of {visibility:g} s, and {task!r} a limit of {limit:g} s",
            remedy=f"set VisibilityTimeout of {name!r} to {limit + 60:g}",
        )
