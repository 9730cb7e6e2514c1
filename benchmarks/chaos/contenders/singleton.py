"""celery-singleton: a lock in Redis from publication to the end; a duplicate gets the running task's result."""

from typing import Any

from celery import Celery
from celery_singleton import Singleton

from benchmarks.chaos.arena import Arena
from benchmarks.chaos.contenders.contender import REDELIVERED, Charge, Contender

__all__ = ["CONTENDER"]


def declare(app: Celery, arena: Arena, charge: Charge) -> None:
    """Register the task with a lock for its key."""
    app.conf.update(
        singleton_backend_url=arena.lock_url,
        singleton_key_prefix=f"{arena.prefix}.lock.",
        # By default a lock that a crash leaves is there for ever, which its documentation warns of; an hour is
        # long enough never to free the key of a message that waits for its redelivery.
        singleton_lock_expiry=3600,
        # The publisher of a duplicate gets the result of the task that is there.
        singleton_raise_on_duplicate=False,
    )

    @app.task(
        name=arena.task_name,
        bind=True,
        base=Singleton,
        shared=False,
        # The key alone, as for every contender.
        unique_on=["key"],
        **REDELIVERED,
    )
    def run(self: Any, key: str, seconds: float, effect_seconds: float) -> str:
        return charge(self, key, seconds, effect_seconds)


CONTENDER = Contender(name="celery-singleton", title="celery-singleton", declare=declare)
