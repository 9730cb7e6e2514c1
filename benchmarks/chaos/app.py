"""The Celery app of one contender, and the body that is the same for all of them."""

import os
import time
from typing import Any
from uuid import uuid4

from celery import Celery
from kombu import Exchange, Queue

from benchmarks.chaos import contenders
from benchmarks.chaos.arena import Arena
from benchmarks.chaos.contenders.contender import Charge
from benchmarks.chaos.history import What
from benchmarks.chaos.journal import Journal

__all__ = ["build_app"]


def build_app(arena: Arena) -> Celery:
    """Return the app with the contender's task registered; nothing global is touched."""
    app = Celery(arena.prefix, set_as_current=False)
    app.conf.update(
        broker_url=arena.broker_url,
        broker_transport_options=arena.transport_options,
        broker_connection_retry_on_startup=True,
        result_backend=arena.result_backend,
        result_backend_transport_options={"global_keyprefix": f"{arena.prefix}."},
        result_expires=3600,
        task_queues=[Queue(arena.queue, Exchange(arena.queue, auto_delete=True), routing_key=arena.queue)],
        task_default_queue=arena.queue,
        task_default_exchange=arena.queue,
        task_default_routing_key=arena.queue,
        worker_enable_remote_control=False,
        worker_prefetch_multiplier=1,
    )
    contenders.load(arena.contender).declare(app, arena, charge_into(arena.journal))
    return app


def charge_into(journal: Journal) -> Charge:
    """Return the body that writes into a journal."""

    def charge(task: Any, key: str, seconds: float, effect_seconds: float) -> str:
        """Have one side effect after ``effect_seconds`` of ``seconds``, and return a value that is this run's own."""
        run, value = uuid4().hex[:8], uuid4().hex[:12]
        about = {"key": key, "run": run, "task_id": task.request.id, "pid": os.getpid()}
        journal.append(What.STARTED, worker=task.request.hostname, **about)
        time.sleep(effect_seconds)
        journal.append(What.EFFECT, value=value, **about)
        time.sleep(max(seconds - effect_seconds, 0.0))
        journal.append(What.ENDED, value=value, **about)
        return value

    return charge
