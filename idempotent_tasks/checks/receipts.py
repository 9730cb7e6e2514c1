"""Checks of the databases that keep receipts: their table, and their idle-transaction time-out."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

from idempotent_tasks.checks.context import CheckContext
from idempotent_tasks.checks.findings import Finding
from idempotent_tasks.core.receipts import Receipts, ReceiptsState
from idempotent_tasks.task import IdempotentTask

__all__ = ["RECEIPT_FINDINGS", "check_receipts"]

#: The codes of this module's findings.
RECEIPT_FINDINGS: Final = ("receipts-table", "receipts-idle")


@dataclass(frozen=True, kw_only=True, slots=True)
class _Use:
    """Receipts, and the tasks that have them or whose steps may have them."""

    receipts: Receipts
    #: Without those that silence the finding.
    tasks: list[IdempotentTask] = field(default_factory=list)
    #: Whether only steps have them, and nobody knows of which tasks.
    in_steps: bool = False

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the tasks."""
        return tuple(task.name for task in self.tasks)


def check_receipts(context: CheckContext) -> Iterator[Finding]:
    """Find databases where no receipt can be written, or where a dead host's transaction holds its row.

    Looks at each with a connection of its own, which is closed before a worker forks.
    """
    states: dict[str, ReceiptsState] = {}
    for code in RECEIPT_FINDINGS:
        for use in _uses(context, code):
            name = repr(use.receipts)
            if name not in states:
                states[name] = use.receipts.look()
            yield from _about(context, code, use, states[name])


def _uses(context: CheckContext, code: str) -> Iterator[_Use]:
    """Yield each use of receipts that a finding may be about."""
    uses: dict[str, _Use] = {}
    heeding = context.heeding(code)
    for task in heeding:
        receipts = context.policy(task).imported_receipts
        if receipts is not None:
            uses.setdefault(repr(receipts), _Use(receipts=receipts)).tasks.append(task)
    for receipts in context.settings.step_receipts if heeding else ():
        uses.setdefault(repr(receipts), _Use(receipts=receipts, tasks=heeding, in_steps=True))
    yield from uses.values()


def _about(context: CheckContext, code: str, use: _Use, state: ReceiptsState) -> Iterator[Finding]:
    if code == "receipts-table":
        if state.error is not None:
            which = "that comes to a step with it" if use.in_steps else "of these tasks"
            remedy = f"until then every delivery {which} waits; the worker's log has the driver's own error"
            yield Finding(code=code, what=f"{use.receipts!r}: {state.error.message}", remedy=remedy, tasks=use.names)
        return
    if state.error is not None or state.idle_seconds is None:
        return
    limit = _limit(context, use)
    what = None
    if state.idle_seconds == 0:
        what = "ends no idle transaction, so that the row of a worker whose host has died is locked for hours"
    elif state.idle_seconds < limit:
        what = (
            f"ends a transaction that is idle for {state.idle_seconds:g} s, and a body may be silent for its time "
            f"limit of {limit:g} s"
        )
    if what is not None:
        remedy = (
            "have the server end a transaction whose client is silent for longer than a body may be: "
            + state.idle_statement.format(seconds=round(max(limit, 60) * 1.5))
        )
        yield Finding(code=code, what=f"the database of {use.receipts!r} {what}", remedy=remedy, tasks=use.names)


def _limit(context: CheckContext, use: _Use) -> float:
    """Return for how many seconds a body may be silent, by its time limit; 0.0 if none has one."""
    limits = [context.time_limit(task) or 0.0 for task in use.tasks]
    # The step may be of any of the tasks, and each of them may be silent for the shortest.
    return min(filter(None, limits), default=0.0) if use.in_steps else max(limits)
