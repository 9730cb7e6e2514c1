"""Publishing that returns when RabbitMQ has the message."""

import os
from typing import Any, Final
from weakref import WeakKeyDictionary

from kombu import Producer, pools

__all__ = ["CONFIRM_SECONDS", "confirm_publishes"]

#: Seconds to wait for RabbitMQ's confirmation of a message.
CONFIRM_SECONDS: Final = 5.0

#: The pool of each app, None without RabbitMQ, and the process that it was made for.
_pools: WeakKeyDictionary[Any, tuple[int, Any]] = WeakKeyDictionary()


class _ConfirmedProducer(Producer):
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


def confirm_publishes(app: Any) -> bool:
    """Have what this process publishes for an app confirmed, from its producer pool on.

    A retry, a link or the next step of a chain must not be lost in a socket's buffer while the message that it follows
    is acknowledged on another connection.  RabbitMQ confirms if it is asked to
    (https://www.rabbitmq.com/docs/confirms#publisher-confirms); the other transports always wait for an answer.

    Returns:
        Whether the broker is one that has to be asked.
    """
    known = _pools.get(app)
    if known is None or known[0] != os.getpid():
        known = os.getpid(), _confirmed_pool(app)
        _pools[app] = known
    pool = known[1]
    if pool is None:
        return False
    if getattr(app.amqp, "_producer_pool", None) is not pool:
        # Celery makes a pool when it needs the first, and forgets it in a child.
        app.amqp._producer_pool = pool  # noqa: SLF001 - Celery has no setting for it
    return True


def _confirmed_pool(app: Any) -> Any:
    if app.connection_for_write().transport.driver_type != "amqp":
        return None
    options = {**(app.conf.broker_transport_options or {}), "confirm_publish": True}
    connections = pools.connections[app.connection_for_write(transport_options=options)]
    return pools.ProducerPool(connections, limit=app.pool.limit, Producer=_ConfirmedProducer)
