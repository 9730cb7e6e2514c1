"""This library as if each worker ran on a machine of its own: no worker can see that another's processes have ended."""

from celery import Celery

from benchmarks.chaos.arena import Arena
from benchmarks.chaos.contenders.contender import Charge, Contender
from benchmarks.chaos.contenders.ours import declare_on, store_url
from tests.testbed.elsewhere import store_elsewhere

__all__ = ["CONTENDER"]


def declare(app: Celery, arena: Arena, charge: Charge) -> None:
    """Register the same task over a store whose claims name no process."""
    declare_on(store_elsewhere(store_url(arena), 0), app, arena, charge)


CONTENDER = Contender(name="ours-apart", title="IdempotentTask, machines apart", declare=declare, has_table=True)
