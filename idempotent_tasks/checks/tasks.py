"""Checks of what tasks declare: options without effect, keys that select nothing, bodies that nothing ends."""

from collections.abc import Iterator, Mapping
from dataclasses import fields
from difflib import get_close_matches
from typing import Any, Final

from idempotent_tasks.checks.context import CheckContext, names_in_body, own_tasks
from idempotent_tasks.checks.findings import Finding, names_of
from idempotent_tasks.core.declaration import misfit, never_skips
from idempotent_tasks.core.policy import Idempotency
from idempotent_tasks.task import IdempotentTask

__all__ = [
    "check_keys",
    "check_misplaced",
    "check_missing_limits",
    "check_parked_retries",
    "check_skipping",
    "check_unguarded",
    "unguarded_tasks",
]

_OPTIONS: Final = frozenset(option.name for option in fields(Idempotency))


def check_unguarded(context: CheckContext) -> Iterator[Finding]:
    """Find tasks that declare a policy and are not guarded."""
    yield from unguarded_tasks(context.app)


def unguarded_tasks(app: Any) -> Iterator[Finding]:
    """Find an app's tasks that declare a policy and are not guarded, such as through ``task_annotations``."""
    names = tuple(task.name for task in own_tasks(app) if not isinstance(task, IdempotentTask) and _declares(task))
    if names:
        what = f"idempotency= is given to what is no IdempotentTask: {names_of(names)}"
        remedy = (
            "@app.task(base=IdempotentTask, idempotency=...) there, or every task of the app with "
            'Celery(..., task_cls="idempotent_tasks:IdempotentTask")'
        )
        yield Finding(code="task-not-guarded", what=what, remedy=remedy, tasks=names)


def _declares(task: Any) -> bool:
    """Return whether a task has a policy, as an object or a mapping of options."""
    values = (getattr(type(task), name, None) for name in ("idempotency", "idempotency_policy"))
    return any(isinstance(value, Idempotency | Mapping) for value in values)


def check_misplaced(context: CheckContext) -> Iterator[Finding]:
    """Find guarded tasks whose decorator has an option of `Idempotency` as its own, or misspells ``idempotency=``."""
    for task in context.heeding("option-misplaced"):
        names = _misplaced(task)
        if names:
            what = f"task {task.name!r} is declared with {', '.join(f'{name}=' for name in names)}"
            remedy = "idempotency=Idempotency(...) there, with these as its options"
            yield Finding(code="option-misplaced", what=what, remedy=remedy, tasks=(task.name,))


def _misplaced(task: IdempotentTask) -> list[str]:
    """Return the options of a task's decorator that Celery makes attributes of, and nobody reads."""
    declared = vars(type(task))
    # A class of the user's own may have attributes of any name.
    if not declared.get("_decorated"):
        return []
    # Not by `hasattr`, which would bind the class itself to an app.
    known = {name for base in IdempotentTask.__mro__ for name in vars(base)}
    unknown = [name for name, value in declared.items() if value is not None and name not in known]
    return [name for name in unknown if name in _OPTIONS or get_close_matches(name, ["idempotency"], cutoff=0.8)]


def check_skipping(context: CheckContext) -> Iterator[Finding]:
    """Find tasks that skip by the app's setting, and that have no key by which they could meet another delivery."""
    idle = [task.name for task in context.heeding("skip-without-key") if never_skips(context.policy(task)) is not None]
    if idle:
        what = f"{names_of(idle)}: on_busy='skip', from app.conf.idempotency_on_busy, and no key="
        remedy = "idempotency=Idempotency.exclusive() there for one run at a time, or key=, or on_busy='defer'"
        yield Finding(code="skip-without-key", what=what, remedy=remedy, tasks=tuple(idle))


def check_keys(context: CheckContext) -> Iterator[Finding]:
    """Find tasks whose arguments the app's ``idempotency_key`` or ``idempotency_validate`` cannot be selected from."""
    for task in context.heeding("key-names-no-parameter"):
        problem = misfit(context.policy(task), task.run_signature)
        if problem is not None:
            what = f"task {task.name!r}: app.conf.idempotency_{problem}"
            remedy = f"idempotency=Idempotency(key=..., validate=...) of its own for {task.name!r}"
            yield Finding(code="key-names-no-parameter", what=what, remedy=remedy, tasks=(task.name,))


def check_parked_retries(context: CheckContext) -> Iterator[Finding]:
    """Find tasks whose ``autoretry_for`` would retry a run that ``on_rerun="park"`` leaves to a person."""
    parked = tuple(
        task.name
        for task in context.heeding("retries-parked")
        if getattr(task, "autoretry_for", ())
        and context.policy(task).on_rerun == "park"
        and "nothing_done" not in names_in_body(task)
    )
    if parked:
        what = f"{names_of(parked)}: autoretry_for= beside on_rerun='park'"
        remedy = (
            "call self.idempotency.nothing_done() where an error is certain to come before the effect, or drop "
            "autoretry_for= there"
        )
        yield Finding(code="retries-parked", what=what, remedy=remedy, tasks=parked)


def check_missing_limits(context: CheckContext) -> Iterator[Finding]:
    """Find tasks that nothing ends, on a pool that could."""
    if not context.enforces_limits or context.worker_soft_time_limit:
        return
    heeding = context.heeding("time-limit-missing")
    endless = tuple(task.name for task in heeding if not (context.time_limit(task) or task.soft_time_limit))
    if endless:
        what = f"{names_of(endless)}: no time limit"
        remedy = "time_limit=300 there (seconds, longer than the slowest run), or app.conf.task_time_limit = 300"
        yield Finding(code="time-limit-missing", what=what, remedy=remedy, tasks=endless)
