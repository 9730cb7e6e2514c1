"""The context of the checks (an app and the worker that runs its tasks), and checks of its settings."""

import inspect
import math
from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any, Final, Self

import celery

from idempotent_tasks.checks.findings import Finding, check_known
from idempotent_tasks.core.encoding import PICKLE
from idempotent_tasks.core.policy import Idempotency
from idempotent_tasks.errors import ConfigurationError
from idempotent_tasks.settings import Settings, changed_settings, settings_of
from idempotent_tasks.task import IdempotentTask

__all__ = [
    "CheckContext",
    "check_downstream",
    "check_pickle",
    "check_prefixes",
    "check_settings",
    "names_in_body",
    "own_tasks",
]

#: kombu's default visibility timeouts in seconds, by transport.
VISIBILITY_DEFAULTS: Final = {"redis": 3600.0, "sqs": 1800.0}
#: How many key prefixes a worker that starts tries at the table; workers of one app draw different ones.
MOST_PREFIXES: Final = 20


@dataclass(frozen=True)
class CheckContext:
    """An app with its guarded tasks and settings, and the worker that runs them or would run them."""

    app: Any
    #: Without Celery's own.
    tasks: tuple[IdempotentTask, ...]
    settings: Settings
    #: The pool's class by module name, for example ``celery.concurrency.prefork``.
    pool: str
    #: The worker's own limit in seconds, ``--time-limit`` or ``task_time_limit``; None where there is none.
    worker_time_limit: float | None
    #: The same for the soft limit, ``--soft-time-limit`` or ``task_soft_time_limit``.
    worker_soft_time_limit: float | None
    #: How many bodies run at once; None if only the worker knows.
    concurrency: int | None
    #: 0 for no limit.
    prefetch_multiplier: int
    #: How many key prefixes are tried at the table at most; None for all.
    most_prefixes: int | None = None
    celery_version: str = celery.__version__

    @classmethod
    def of_worker(cls, worker: Any, pool: str) -> Self:
        """Return the context of a ``celery.worker.WorkController`` that starts.

        Raises:
            ConfigurationError: a setting is missing, unknown or wrong.
        """
        limits = (worker.time_limit, worker.soft_time_limit)
        context = cls._of(worker.app, pool, limits, worker.concurrency, worker.prefetch_multiplier)
        return replace(context, most_prefixes=MOST_PREFIXES)

    @classmethod
    def of_app(cls, app: Any, pool: str) -> Self:
        """Return the context of a worker that has no options but the app's configuration.

        Raises:
            ConfigurationError: a setting is missing, unknown or wrong, or no worker could start with this broker.
        """
        conf = app.conf
        limits = (conf.task_time_limit, conf.task_soft_time_limit)
        context = cls._of(app, pool, limits, conf.worker_concurrency, conf.worker_prefetch_multiplier)
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
        cls,
        app: Any,
        pool: str,
        limits: tuple[float | None, float | None],
        concurrency: int | None,
        prefetch_multiplier: int,
    ) -> Self:
        tasks = tuple(task for task in own_tasks(app) if isinstance(task, IdempotentTask))
        settings = settings_of(app)
        check_known(settings.silenced_checks, "idempotency_silenced_checks")
        for task in tasks:
            check_known(task.idempotency_policy.silenced_checks, "silenced_checks", task.name)
        return cls(app, tasks, settings, pool, *limits, concurrency, prefetch_multiplier)

    def heeding(self, code: str) -> list[IdempotentTask]:
        """Return the tasks that do not silence a finding, sorted by name."""
        return [task for task in self.tasks if code not in task.idempotency_policy.silenced_checks]

    def policy(self, task: IdempotentTask) -> Idempotency:
        """Return a task's policy with the app's defaults."""
        return task.policy_under(self.settings)

    def time_limit(self, task: Any) -> float | None:
        """Return a task's hard time limit in seconds, enforced or not; None if it has none."""
        limit = task.time_limit or self.worker_time_limit
        return float(limit) if limit else None

    def longest_time_limit(self, code: str, *, most: float = math.inf) -> tuple[float, str] | None:
        """Return the longest hard time limit, ``most`` seconds at most, and its task's name; None if there is none.

        Args:
            code: of a finding; tasks that silence it are left out.
            most: longer limits are left out, too.
        """
        limits = ((self.time_limit(task), task.name) for task in self.heeding(code))
        return max(((limit, name) for limit, name in limits if limit is not None and limit <= most), default=None)

    @property
    def enforces_limits(self) -> bool:
        """Whether the pool ends a body at its hard time limit: only the prefork pool does."""
        return self.pool == "celery.concurrency.prefork"

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


def own_tasks(app: Any) -> list[Any]:
    """Return the tasks of an app without those that Celery adds, sorted by name; finalises it."""
    return [task for name, task in sorted(app.tasks.items()) if not name.startswith("celery.")]


def check_settings(context: CheckContext) -> Iterator[Finding]:
    """Find settings that were changed after they had been read."""
    former, present = context.settings.former_store, context.settings.store
    if former is not None:
        yield _changed(f"idempotency_store was {former!r} when it was first used, and is {present!r} now")
    for name in changed_settings(context.app):
        yield _changed(f"{name} was changed after it had been read")


def check_prefixes(context: CheckContext) -> Iterator[Finding]:
    """Find tasks that share a key prefix but not ``key`` and ``validate``: different deliveries would share a key."""
    policies = {task.name: context.policy(task) for task in context.heeding("prefix-shared")}
    for (one, ours), (other, theirs) in combinations(policies.items(), 2):
        prefix = ours.prefix or one
        differing = [name for name in ("key", "validate") if getattr(ours, name) != getattr(theirs, name)]
        if differing and prefix == (theirs.prefix or other):
            options = " and ".join(differing)
            what = f"tasks {one!r} and {other!r} share the prefix {prefix!r} and differ in {options}"
            remedy = f"give each a prefix of its own, or both the same {options}"
            yield Finding(code="prefix-shared", what=what, remedy=remedy, tasks=(one, other))


def names_in_body(task: Any) -> Collection[str]:
    """Return the names that a task's body itself reads or calls; those in functions that it calls are not read."""
    code = getattr(inspect.unwrap(task.run), "__code__", None)
    return () if code is None else code.co_names


def check_downstream(context: CheckContext) -> Iterator[Finding]:
    """Find tasks that may pass one downstream key, unless they have one prefix: those are one task with two names."""
    policies = [(task.name, context.policy(task)) for task in context.heeding("downstream-shared")]
    declared = [(name, policy.prefix or name, policy.downstream_selector) for name, policy in policies]
    passing = [(name, prefix, selector) for name, prefix, selector in declared if selector is not None]
    for (one, our_prefix, ours), (other, their_prefix, theirs) in combinations(passing, 2):
        if our_prefix != their_prefix and ours.distinction == theirs.distinction:
            what = (
                f"nothing keeps the downstream keys of tasks {one!r} and {other!r} apart: "
                f"downstream={ours.text!r} and downstream={theirs.text!r}"
            )
            remedy = "begin each with a literal of its own, as in downstream=\"['charge', order.id]\""
            yield Finding(code="downstream-shared", what=what, remedy=remedy, tasks=(one, other))


def check_pickle(context: CheckContext) -> Iterator[Finding]:
    """Find tasks that store their results as pickle, which runs code when it is read."""
    pickling = [task for task in context.heeding("pickled-results") if context.policy(task).codec == PICKLE]
    for task in pickling:
        if "codec" in task.idempotency_policy.given:
            what = f"task {task.name!r} has codec='pickle'"
            remedy = f"drop codec='pickle' from {task.name!r}, and register_type() what JSON does not know"
            yield Finding(code="pickled-results", what=what, remedy=remedy, tasks=(task.name,))
    following = tuple(task.name for task in pickling if "codec" not in task.idempotency_policy.given)
    if following:
        what = "results are stored as pickle, because of app.conf.idempotency_codec or the app's own serializers"
        remedy = 'app.conf.idempotency_codec = "json", and register_type() what JSON does not know'
        yield Finding(code="pickled-results", what=what, remedy=remedy, tasks=following)


def _changed(what: str) -> Finding:
    remedy = "set every idempotency_* setting where the app is made, before a task is published, called or checked"
    return Finding(code="settings-changed", what=what, remedy=remedy)
