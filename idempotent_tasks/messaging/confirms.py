"""Publishing by a worker's process: RabbitMQ confirms it, and what follows a task is not given up where it fails."""

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


class _FollowingProducer(Producer):
    """Sends a finished task's message back where the broker does not take what follows it.

    Celery reports such a task as failed and acknowledges its message (``celery.app.trace.build_tracer``), although its
    outcome is on record: nobody would send what follows.  A redelivery replays the outcome and sends it.
    """

    def publish(self, body: Any, *args: Any, **options: Any) -> Any:
        """See ``kombu.Producer.publish``.

        Raises:
            celery.exceptions.Reject: instead of the broker's error, where this is what follows a task.
        """
        connection = self.connection
        try:
            return super().publish(body, *args, **options)
        except Exception as error:
            give_back = state_of(current_task.request).give_back if current_task else None
            if give_back is None or not _is_brokers(error, connection):
                raise
            logger.exception("%s[%s]: what follows cannot be sent", current_task.name, current_task.request.id)
            raise give_back(error) from error


def _is_brokers(error: Exception, connection: Any) -> bool:
    """Return whether a broker, or the way to it, is to blame: what cannot be encoded never can."""
    kinds = (*getattr(connection, "connection_errors", ()), *getattr(connection, "channel_errors", ()))
    return isinstance(error, (OperationalError, OSError, *kinds))


class _ConfirmedProducer(_FollowingProducer):
    """Waits for each confirmation, and for none too long."""

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


class _ProducerPools:
    """The pool of each app, and whether RabbitMQ confirms what it publishes."""

    def __init__(self) -> None:
        self.by_app: WeakKeyDictionary[Any, tuple[Any, bool]] = WeakKeyDictionary()


def confirm_publishes(app: Any) -> bool:
    """Have what this process publishes for an app confirmed, from its producer pool on.

    A retry, a link or the next step of a chain must not be lost in a socket's buffer while the message that it follows
    is acknowledged on another connection.  RabbitMQ confirms if it is asked to
    (https://www.rabbitmq.com/docs/confirms#publisher-confirms); the other transports always wait for an answer.

    Returns:
        Whether the broker is one that has to be asked.
    """
    pools_of = this_process().own(_ProducerPools).by_app
    if app not in pools_of:
        pools_of[app] = _pool(app)
    pool, confirms = pools_of[app]
    if getattr(app.amqp, "_producer_pool", None) is not pool:
        # Celery makes a pool when it needs the first, and forgets it in a child.
        app.amqp._producer_pool = pool  # noqa: SLF001 - Celery has no setting for it
    return confirms


def _pool(app: Any) -> tuple[Any, bool]:
    """Return the pool that this process publishes from for an app, and whether RabbitMQ confirms what it publishes."""
    connection, kind = app.connection_for_write(), _FollowingProducer
    confirms = connection.transport.driver_type == "amqp"
    if confirms:
        options = {**(app.conf.broker_transport_options or {}), "confirm_publish": True}
        connection, kind = app.connection_for_write(transport_options=options), _ConfirmedProducer
    return pools.ProducerPool(pools.connections[connection], limit=app.pool.limit, Producer=kind), confirms
