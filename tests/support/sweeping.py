"""Redis swept each second for unacknowledged messages, on a kombu that has no option for it."""

from typing import Any

import kombu
from kombu.transport.redis import Transport

__all__ = ["sweep_each_second"]

#: The first kombu with ``unacked_restore_interval``; older ones sweep 10 s after a worker's start, then every 100 s.
FIRST_WITH_OPTION = (5, 7)


def sweep_each_second() -> None:
    """Have older versions of kombu do what `tests.testbed.brokers.redis` asks newer ones to do."""
    if tuple(map(int, kombu.__version__.split(".")[:2])) >= FIRST_WITH_OPTION:
        return
    register = Transport.register_with_event_loop

    def register_and_sweep(transport: Any, connection: Any, loop: Any) -> None:
        register(transport, connection, loop)
        loop.call_repeatedly(1, _sweep, transport.cycle)

    Transport.register_with_event_loop = register_and_sweep


def _sweep(cycle: Any) -> None:
    channel = next((channel for channel in cycle._channels if channel.active_queues), None)
    if channel is not None:
        channel.qos.restore_visible(num=channel.unacked_restore_limit, interval=1)
