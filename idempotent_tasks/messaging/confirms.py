"""Publisher confirms for a worker's process, and a redelivery where a broker refuses a task's callbacks."""

import logging
from typing import Any, Final
from weakref import WeakKeyDictionary

from celery import current_task
from kombu import Producer, pools
from kombu.exceptions import OperationalError

from idempotent_tasks.core.processes import this_process
from idempotent_tasks.messaging.request_state import state_of

__all__ = ["CONFIRM_SECONDS", "confirm_publishes"]

logger = logging.getLogger("idempotent_tasks")

#: Seconds to wait for RabbitMQ's confirmation of a message.
CONFIRM_SECONDS: Final = 5.0


class _CallbackProducer(Producer):
    """Sends a finished task's message back to its queue where the broker does not take a callback.

    Celery reports such a task as failed and acknowledges its message (``celery.app.trace.build_tracer``), although its
    outcome is on record: nobody would send the callbacks.  A redelivery replays the outcome and sends them.
    """

    def publish(self, body: Any, *args: Any, **options: Any) -> Any:
        """See ``kombu.Producer.publish``.

        Raises:
            celery.exceptions.Reject: instead of the broker's error, where the message is a callback.
        """
        connection = self.connection
        try:
            return super().publish(body, *args, **options)
        except Exception as error:
            give_back = state_of(current_task.request).give_back if current_task else None
            if give_back is None or not _blames_broker(error, connection):
                raise
            logger.exception("%s[%s]: a callback cannot be sent", current_task.name, current_task.request.id)
            raise give_back(error) from error


def _blames_broker(error: Exception, connection: Any) -> bool:
    """Return whether the broker or its connection failed; what cannot be encoded fails on each try."""
    kinds = (*getattr(connection, "connection_errors", ()), *getattr(connection, "channel_errors", ()))
    return isinstance(error, (OperationalError, OSError, *kinds))


class _ConfirmedProducer(_CallbackProducer):
    """Waits for the confirmation of each message, by default for `CONFIRM_SECONDS`."""

    def publish(self, body: Any, *args: Any, **options: Any) -> Any:
        """See ``kombu.Producer.publish``; raises its errors where no confirmation comes."""
        if options.get("timeout") is None:
            options["timeout"] = CONFIRM_SECONDS
        try:
            return super().publish(body, *args, **options)
        except BaseException:
            # A confirmation that comes late would be taken for that of the next message.
            if self.connection is not None:
                self.connection.collect()
            raise


class _ProducerPools(WeakKeyDictionary[Any, tuple[Any, bool]]):
    """The pool of each app, and whether it publishes with confirms."""


def confirm_publishes(app: Any) -> bool:
    """Have the broker confirm what this process publishes for an app; return whether it uses AMQP publisher confirms.

    A retry, a link or the next step of a chain must not be lost in a socket's buffer while the message that it follows
    is acknowledged on another connection.  RabbitMQ confirms on request
    (https://www.rabbitmq.com/docs/confirms#publisher-confirms); the other transports always wait for an answer.
    """
    pools_by_app = this_process().own(_ProducerPools)
    known = pools_by_app.get(app)
    if known is None:
        known = pools_by_app[app] = _pool(app)
    pool, confirms = known
    if getattr(app.amqp, "_producer_pool", None) is not pool:
        # Celery makes a pool on first use, and again in a child.
        app.amqp._producer_pool = pool  # noqa: SLF001 - Celery has no setting for it
    return confirms


def _pool(app: Any) -> tuple[Any, bool]:
    connection, kind = app.connection_for_write(), _CallbackProducer
    confirms = connection.transport.driver_type == "amqp"
    if confirms:
        options = {**(app.conf.broker_transport_options or {}), "confirm_publish": True}
        connection, kind = app.connection_for_write(transport_options=options), _ConfirmedProducer
    return pools.ProducerPool(pools.connections[connection], limit=app.pool.limit, Producer=kind), confirms
