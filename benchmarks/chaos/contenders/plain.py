"""Plain Celery: every delivery of every message runs the body."""

from typing import Any

from celery import Celery

from benchmarks.chaos.arena import Arena
from benchmarks.chaos.contenders.contender import REDELIVERED, Charge, Contender

__all__ = ["CONTENDER"]


def declare(app: Celery, arena: Arena, charge: Charge) -> None:
    """Register the task with what a message needs to survive a kill, and nothing else."""

    @app.task(name=arena.task_name, bind=True, shared=False, **REDELIVERED)
    def run(self: Any, key: str, seconds: float, effect_seconds: float) -> str:
        return charge(self, key, seconds, effect_seconds)


CONTENDER = Contender(name="plain", title="plain Celery", declare=declare)
