"""The context of the checks (an app and the worker that runs its tasks), and checks of its settings."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations
from typing import Any, Final, Self

import celery

from idempotent_tasks.checks.findings import WHY, Finding
from idempotent_tasks.core.encoding import PICKLE
from idempotent_tasks.core.policy import Idempotency
from idempotent_tasks.errors import ConfigurationError
from idempotent_tasks.settings import Settings, changed_settings, settings_of
from idempotent_tasks.task import IdempotentTask, guarded_tasks

__all__ = ["CheckContext", "check_pickle", "check_prefixes", "check_settings"]

#: kombu's default visibility timeouts in seconds, by transport.
VISIBILITY_DEFAULTS: Final = {"redis": 3600.0, "sqs": 1800.0}


@dataclass(frozen=True)
class CheckContext:
    """An app with its guarded tasks and settings, and the worker that runs them or would run them."""

    app: Any
    tasks: tuple[IdempotentTask, ...]
    settings: Settings
    #: The pool's class by module name, for example ``celery.concurrency.prefork``.
    pool: str
    #: The worker's own limit in seconds, ``--time-limit`` or ``task_time_limit``; None where there is none.
    worker_time_limit: float | None
    #: How many bodies run at once; None if only the worker knows.
    concurrency: int | None
    #: 0 for no limit.
    prefetch_multiplier: int
    celery_version: str = celery.__version__

    @classmethod
    def of_worker(cls, worker: Any, pool: str) -> Self:
        """Return the context of a ``celery.worker.WorkController`` that starts.

        Raises:
            ConfigurationError: a setting is missing, unknown or wrong.
        """
        return cls._of(worker.app, pool, worker.time_limit, worker.concurrency, worker.prefetch_multiplier)

    @classmethod
    def of_app(cls, app: Any, pool: str) -> Self:
        """Return the context of a worker that has no options but the app's configuration.

        Raises:
            ConfigurationError: a setting is missing, unknown or wrong, or no worker could start with this broker.
        """
        conf = app.conf
        context = cls._of(app, pool, conf.task_time_limit, conf.worker_concurrency, conf.worker_prefetch_multiplier)
        try:
            context.transport  # noqa: B018 - raises here, once, what each check of the broker would raise
        except Exception as error:
            # Of other errors the text may quote a URL with a password.
            text = f": {error}" if isinstance(error, ImportError | KeyError) else ""
            msg = f"the broker's transport cannot be used ({type(error).__name__}{text}); fix broker_url, or install it"
            raise ConfigurationError(msg) from error
        return context

    @classmethod
    def _of(
        cls, app: Any, pool: str, time_limit: float | None, concurrency: int | None, prefetch_multiplier: int
    ) -> Self:
        tasks = tuple(sorted(guarded_tasks(app), key=lambda task: task.name))
        settings = settings_of(app)
        silenced = settings.silenced_checks
        if not silenced <= WHY.keys():
            msg = f"idempotency_silenced_checks={sorted(silenced)!r} is not a list of {sorted(WHY)}"
            raise ConfigurationError(msg)
        return cls(app, tasks, settings, pool, time_limit, concurrency, prefetch_multiplier)

    def policy(self, task: IdempotentTask) -> Idempotency:
        """Return a task's policy with the app's defaults."""
        return task.policy_under(self.settings)

    @property
    def longest_time_limit(self) -> tuple[float, str] | None:
        """The longest hard time limit in seconds, enforced or not, and its task's name; None if no task has one."""
        limits = ((task.time_limit or self.worker_time_limit, task.name) for task in self.tasks)
        return max(((float(limit), name) for limit, name in limits if limit), default=None)

    @property
    def transport(self) -> str:
        """The broker's transport by kombu's name, for example ``redis``."""
        return str(self.app.connection_for_read().transport.driver_type)

    @property
    def visibility_timeout(self) -> float | None:
        """Seconds until the broker redelivers an unacknowledged message; None for a broker without such a timeout."""
        options = self.app.conf.broker_transport_options or {}
        default = VISIBILITY_DEFAULTS.get(self.transport)
        given = options.get("visibility_timeout")
        return None if default is None else float(given or default)


def check_settings(context: CheckContext) -> Iterator[Finding]:
    """Find settings that were changed after they had been read."""
    former, present = context.settings.former_store, context.settings.store
    if former is not None:
        yield _changed(f"idempotency_store was {former!r} when it was first used, and is {present!r} now")
    for name in changed_settings(context.app):
        yield _changed(f"{name} was changed after it had been read")


def check_prefixes(context: CheckContext) -> Iterator[Finding]:
    """Find tasks that share a key prefix but not ``key`` and ``validate``: different deliveries would share a key."""
    policies = {task.name: context.policy(task) for task in context.tasks}
    for (one, ours), (other, theirs) in combinations(policies.items(), 2):
        prefix = ours.prefix or one
        differing = [name for name in ("key", "validate") if getattr(ours, name) != getattr(theirs, name)]
        if differing and prefix == (theirs.prefix or other):
            options = " and ".join(differing)
            what = f"tasks {one!r} and {other!r} share the prefix {prefix!r} and differ in {options}"
            remedy = f"give each a prefix of its own, or both the same {options}"
            yield Finding(code="prefix-shared", what=what, remedy=remedy)


def check_pickle(context: CheckContext) -> Iterator[Finding]:
    """Find tasks that store their results as pickle, which runs code when it is read."""
    for task in context.tasks:
        if task.idempotency_policy.given.get("codec") == PICKLE:
            what = f"task {task.name!r} has codec='pickle'"
            remedy = f"drop codec='pickle' from {task.name!r}, and register_type() what JSON does not know"
            yield Finding(code="pickled-results", what=what, remedy=remedy)
    following = [task for task in context.tasks if "codec" not in task.idempotency_policy.given]
    if any(context.policy(task).codec == PICKLE for task in following):
        what = "results are stored as pickle, because of app.conf.idempotency_codec or the app's own serializers"
        remedy = 'app.conf.idempotency_codec = "json", and register_type() what JSON does not know'
        yield Finding(code="pickled-results", what=what, remedy=remedy)


def _changed(what: str) -> Finding:
    remedy = "set every idempotency_* setting where the app is made, before a task is published, called or checked"
    return Finding(code="settings-changed", what=what, remedy=remedy)
