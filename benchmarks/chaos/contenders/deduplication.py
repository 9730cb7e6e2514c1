"""Celery's own ``worker_deduplicate_successful_tasks``: a redelivered message whose result is stored does not run."""

from typing import Any

from celery import Celery

from benchmarks.chaos.arena import Arena
from benchmarks.chaos.contenders.contender import REDELIVERED, Charge, Contender

__all__ = ["CONTENDER"]


def declare(app: Celery, arena: Arena, charge: Charge) -> None:
    """Register the task, and ask for the deduplication as its documentation says."""
    app.conf.update(
        worker_deduplicate_successful_tasks=True,
        # It asks for late acknowledgement and for a backend that keeps results; Redis does.
        task_acks_late=True,
        # What it needs to tell whether the continuations of a finished task were dispatched.
        result_extended=True,
    )

    @app.task(name=arena.task_name, bind=True, shared=False, **REDELIVERED)
    def run(self: Any, key: str, seconds: float, effect_seconds: float) -> str:
        return charge(self, key, seconds, effect_seconds)


CONTENDER = Contender(name="celery-dedup", title="Celery's deduplication", declare=declare)
