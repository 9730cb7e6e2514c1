"""Checks of the configuration against itself: what one part of it says and another silently overrules."""

from collections.abc import Iterator
from itertools import combinations

from idempotent_tasks.checks.context import Surroundings
from idempotent_tasks.checks.findings import Finding
from idempotent_tasks.settings import changed_settings

__all__ = ["check_prefixes", "check_settings"]


def check_settings(found: Surroundings) -> Iterator[Finding]:
    """Find settings that were changed after the app had been used."""
    former, present = found.settings.former_store, found.settings.store
    if former is not None:
        yield _changed(f"idempotency_store was {former!r} when it was first used, and is {present!r} now")
    for name in changed_settings(found.app):
        yield _changed(f"{name} was changed after it had been read")


def check_prefixes(found: Surroundings) -> Iterator[Finding]:
    """Find tasks whose keys can meet though they mean different things."""
    policies = {task.name: found.policy(task) for task in found.tasks}
    for (one, ours), (other, theirs) in combinations(policies.items(), 2):
        prefix = ours.prefix or one
        differing = [name for name in ("key", "validate") if getattr(ours, name) != getattr(theirs, name)]
        if differing and prefix == (theirs.prefix or other):
            options = " and ".join(differing)
            yield Finding(
                code="prefix-shared",
                what=f"tasks {one!r} and {other!r} share the prefix {prefix!r} and differ in {options}",
                remedy=f"give each a prefix of its own, or both the same {options}",
            )


def _changed(what: str) -> Finding:
    remedy = "set every idempotency_* setting where the app is made, before a task is published, called or checked"
    return Finding(code="settings-changed", what=what, remedy=remedy)
