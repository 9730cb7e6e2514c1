"""How many messages a broker still holds for one contender, as far as it tells."""

from typing import Any, Final

from amqp.exceptions import ChannelError
from redis import Redis

from benchmarks.chaos.arena import Arena

__all__ = ["delete_queue", "is_forgetful", "messages_held"]

_REDIS: Final = "redis://"


def is_forgetful(arena: Arena) -> bool:
    """Return whether a killed worker can take a message along that the broker does not know to be unacknowledged.

    kombu pops a message from Redis and notes it afterwards; where the worker takes no more at the moment, long
    afterwards (``kombu.transport.redis.MultiChannelPoller``, of 5.7).
    """
    return arena.broker_url.startswith(_REDIS)


def messages_held(app: Any, arena: Arena) -> int:
    """Return how many messages wait, and on Redis also how many are delivered and not acknowledged.

    RabbitMQ does not tell a client what is unacknowledged.
    """
    if is_forgetful(arena):
        prefix = arena.transport_options["global_keyprefix"]
        with Redis.from_url(arena.broker_url) as client:
            return int(client.llen(f"{prefix}{arena.queue}")) + int(client.hlen(f"{prefix}unacked"))
    with app.connection_for_write() as connection:
        try:
            return int(connection.default_channel.queue_declare(arena.queue, passive=True).message_count)
        except ChannelError:
            return 0


def delete_queue(app: Any, arena: Arena) -> None:
    """Delete the contender's queue."""
    with app.connection_for_write() as connection:
        app.amqp.queues[arena.queue](connection.default_channel).delete()
