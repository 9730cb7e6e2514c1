"""What the checks look at: an app, its guarded tasks, and the worker that runs them or would run them."""

from dataclasses import dataclass
from typing import Any, Final, Self

import celery

from idempotent_tasks.checks.findings import WHY
from idempotent_tasks.errors import ConfigurationError
from idempotent_tasks.policy import Idempotency
from idempotent_tasks.settings import Settings, settings_of
from idempotent_tasks.task import IdempotentTask

__all__ = ["Surroundings"]

#: Seconds, by transport: the defaults of kombu's.
VISIBILITY_DEFAULTS: Final = {"redis": 3600.0, "sqs": 1800.0}


@dataclass(frozen=True, kw_only=True)
class Surroundings:
    """Everything that a check reads."""

    app: Any
    tasks: tuple[IdempotentTask, ...]
    settings: Settings
    #: The pool's class by module name, for example ``celery.concurrency.prefork``.
    pool: str
    #: The worker's own limit in seconds, ``--time-limit`` or ``task_time_limit``; None where there is none.
    worker_time_limit: float | None
    #: How many bodies run at once; None where only the worker knows.
    concurrency: int | None
    #: 0 for as many messages as there are.
    prefetch_multiplier: int
    celery_version: str = celery.__version__

    @classmethod
    def of_worker(cls, worker: Any, pool: str) -> Self:
        """Return what a worker (``celery.worker.WorkController``) that starts is surrounded by.

        Raises:
            ConfigurationError: a setting is missing, unknown or wrong.
        """
        return cls._of(
            worker.app,
            pool=pool,
            worker_time_limit=worker.time_limit,
            concurrency=worker.concurrency,
            prefetch_multiplier=worker.prefetch_multiplier,
        )

    @classmethod
    def of_app(cls, app: Any, pool: str) -> Self:
        """Return the same for a worker that is started with nothing but the app's configuration; raises likewise."""
        conf = app.conf
        return cls._of(
            app,
            pool=pool,
            worker_time_limit=conf.task_time_limit,
            concurrency=conf.worker_concurrency,
            prefetch_multiplier=conf.worker_prefetch_multiplier,
        )

    @classmethod
    def _of(cls, app: Any, **worker: Any) -> Self:
        tasks = tuple(task for _, task in sorted(app.tasks.items()) if isinstance(task, IdempotentTask))
        settings = settings_of(app)
        silenced = settings.silenced_checks
        if not silenced <= WHY.keys():
            msg = f"idempotency_silenced_checks={sorted(silenced)!r} is not a list of {sorted(WHY)}"
            raise ConfigurationError(msg)
        return cls(app=app, tasks=tasks, settings=settings, **worker)

    def policy(self, task: IdempotentTask) -> Idempotency:
        """Return a task's policy with the app's defaults."""
        return task.policy_under(self.settings)

    def time_limit(self, task: IdempotentTask) -> float | None:
        """Return a task's hard time limit in seconds, whether or not the pool enforces it."""
        limit = task.time_limit or self.worker_time_limit
        return float(limit) if limit else None

    @property
    def longest_time_limit(self) -> tuple[float, str] | None:
        """The longest hard time limit in seconds and its task's name; None where no task has one."""
        limits = ((self.time_limit(task), task.name) for task in self.tasks)
        return max(((limit, name) for limit, name in limits if limit is not None), default=None)

    @property
    def transport(self) -> str:
        """The broker's driver by kombu's name, for example ``redis``."""
        return str(self.app.connection_for_read().transport.driver_type)

    @property
    def visibility_timeout(self) -> float | None:
        """After how many seconds the broker delivers an unacknowledged message again; None where it does not so."""
        options = self.app.conf.broker_transport_options or {}
        default = VISIBILITY_DEFAULTS.get(self.transport)
        given = options.get("visibility_timeout")
        return None if default is None else float(given or default)
