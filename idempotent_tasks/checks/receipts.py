"""Checks of the databases that keep receipts: their table, and their idle-transaction time-out."""

from collections.abc import Iterator
from typing import Final

from idempotent_tasks.checks.context import CheckContext
from idempotent_tasks.checks.findings import Finding
from idempotent_tasks.core.receipts import Receipts, ReceiptsState
from idempotent_tasks.task import IdempotentTask

__all__ = ["RECEIPT_FINDINGS", "check_receipts"]

#: The codes of this module's findings.
RECEIPT_FINDINGS: Final = ("receipts-table", "receipts-idle")


def check_receipts(context: CheckContext) -> Iterator[Finding]:
    """Find databases where no receipt can be written, or where a dead host's transaction holds its row.

    Looks at each with a connection of its own, which is closed before a worker forks.
    """
    states: dict[str, ReceiptsState] = {}
    for code in RECEIPT_FINDINGS:
        for receipts, tasks in _users(context, code).values():
            name = repr(receipts)
            if name not in states:
                states[name] = receipts.look()
            yield from _about(context, code, receipts, tasks, states[name])


def _users(context: CheckContext, code: str) -> dict[str, tuple[Receipts, list[IdempotentTask]]]:
    """Return the receipts in use, each with the tasks that use them and do not silence a finding."""
    users: dict[str, tuple[Receipts, list[IdempotentTask]]] = {}
    for task in context.heeding(code):
        receipts = context.policy(task).imported_receipts
        if receipts is not None:
            users.setdefault(repr(receipts), (receipts, []))[1].append(task)
    return users


def _about(
    context: CheckContext, code: str, receipts: Receipts, tasks: list[IdempotentTask], state: ReceiptsState
) -> Iterator[Finding]:
    names = tuple(task.name for task in tasks)
    if code == "receipts-table":
        if state.error is not None:
            remedy = "until then every delivery of these tasks waits; the worker's log has the driver's own error"
            yield Finding(code=code, what=f"{receipts!r}: {state.error.message}", remedy=remedy, tasks=names)
        return
    if state.error is not None or state.idle_seconds is None:
        return
    longest = max((context.time_limit(task) or 0.0 for task in tasks), default=0.0)
    what = None
    if state.idle_seconds == 0:
        what = "ends no idle transaction, so that the row of a worker whose host has died is locked for hours"
    elif state.idle_seconds < longest:
        what = (
            f"ends a transaction that is idle for {state.idle_seconds:g} s, and a body may be silent for its time "
            f"limit of {longest:g} s"
        )
    if what is not None:
        remedy = (
            "have the server end a transaction whose client is silent for longer than a body may be: "
            + state.idle_statement.format(seconds=round(max(longest, 60) * 1.5))
        )
        yield Finding(code=code, what=f"the database of {receipts!r} {what}", remedy=remedy, tasks=names)
