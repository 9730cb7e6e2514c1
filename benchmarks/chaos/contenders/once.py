"""celery-once: a lock in Redis from publication to the end of the body; a duplicate in between is not published."""

from typing import Any

from celery import Celery
from celery_once import QueueOnce

from benchmarks.chaos.arena import Arena
from benchmarks.chaos.contenders.contender import REDELIVERED, Charge, Contender

__all__ = ["CONTENDER"]


def declare(app: Celery, arena: Arena, charge: Charge) -> None:
    """Register the task with a lock for its key."""
    app.conf.ONCE = {
        "backend": "celery_once.backends.Redis",
        # Its default timeout of an hour: a shorter one would free keys whose message waits for its redelivery.
        "settings": {"url": arena.lock_url, "default_timeout": 3600},
    }

    @app.task(
        name=arena.task_name,
        bind=True,
        base=QueueOnce,
        shared=False,
        # The key alone, as for every contender; and a duplicate is no error of its publisher.
        once={"keys": ["key"], "graceful": True},
        **REDELIVERED,
    )
    def run(self: Any, key: str, seconds: float, effect_seconds: float) -> str:
        return charge(self, key, seconds, effect_seconds)


CONTENDER = Contender(name="celery-once", title="celery-once", declare=declare)
