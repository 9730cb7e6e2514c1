"""The small world with tasks that close the window: their reruns are parked or asked about, or they return writes."""

from typing import Final

from idempotent_tasks.core.policy import Idempotency
from simulation.history import History
from simulation.provider import SETTLE_SECONDS
from simulation.small import HARD_LIMIT_SECONDS, LEASE_SECONDS, FinalError, SmallTask, never_called
from simulation.small_random import play_tasks

__all__ = ["TASKS", "play"]


_LIMITED: Final = Idempotency(key="order", grace=2)
_LEASED: Final = Idempotency(key="order", lease=LEASE_SECONDS, store_failures=(FinalError,))
_RECOVERS: Final = {"recover": never_called, "settle": SETTLE_SECONDS}
_PARKS: Final = {"on_rerun": "park"}
TASKS: Final = {
    task.name: task
    for task in (
        SmallTask("parks-limited", _LIMITED.over(_PARKS), HARD_LIMIT_SECONDS),
        SmallTask("parks", _LEASED.over(_PARKS)),
        SmallTask("recovers-limited", _LIMITED.over(_RECOVERS), HARD_LIMIT_SECONDS),
        SmallTask("recovers", _LEASED.over(_RECOVERS)),
        SmallTask("writes", _LEASED, writes=True),
        SmallTask("writes-limited", _LIMITED, HARD_LIMIT_SECONDS, writes=True),
        SmallTask("writes-parks", _LEASED.over(_PARKS), writes=True),
    )
}


def play(seed: int) -> History:
    """Play the history of a seed, and return what happened."""
    return play_tasks(seed, TASKS)
