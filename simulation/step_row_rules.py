"""Rows that steps write, held against a history: each commits with the result that its record comes to have."""

from collections.abc import Iterator
from typing import Any, Final

from simulation.history import Entry
from simulation.receipt_rules import ReceiptRows
from simulation.step_rules import StepFacts, StepName

__all__ = ["STEP_ROW_INVARIANTS", "StepRows"]

#: What may come between a look at a claim and the ``COMMIT`` that follows it.
_STANDSTILLS: Final = frozenset({"child-stopped", "machine-frozen", "stopped-in-transaction", "stopped-in-keep"})

Found = Iterator[tuple[float, str]]


class StepRows:
    """What a history has of steps, and of the receipts that some of them have.

    Args:
        steps: the steps.
        rows: the receipts, those of whole bodies too.
    """

    def __init__(self, steps: StepFacts, rows: ReceiptRows) -> None:
        self.steps = steps
        self.rows = rows
        #: The first receipt of each step.
        self.receipts: dict[StepName, Entry] = {}
        for each in rows.receipts:
            if each.details["step"]:
                step = StepName(each.details["key"], each.details["generation"], each.details["step"])
                self.receipts.setdefault(step, each)
        #: The commits of steps that have written a row.
        self.sent = [each for each in rows.history.of("commit-sent") if each.details["step"] and each.details["runs"]]


def _own_row(facts: StepRows) -> Found:
    """With the receipt of a step commits the one row of its function, which has returned and not handed over."""
    done = {(each.details["run"], each.details["name"]): each for each in reversed(facts.steps.done)}
    for step, receipt in facts.receipts.items():
        own = facts.rows.rows_with(receipt)
        runs = [each.details["run"] for each in own]
        returned = done.get((runs[0], step.name)) if runs else None
        if len(own) != 1:
            yield receipt.at, f"{step} was committed with rows of the runs {runs}"
        elif returned is None or returned.at > receipt.at:
            yield receipt.at, f"{step} was committed, and its function has not returned in run {runs[0]}"
        elif (runs[0], step.name) in facts.steps.handed_over:
            yield receipt.at, f"{step} was committed, and its function has handed run {runs[0]} over"


def _kept_of_receipt(facts: StepRows) -> Found:
    """What the record has of a step that writes a row is the result in its receipt, which was there first."""
    for step, kept in facts.steps.kept.items():
        if step not in facts.steps.with_rows:
            continue
        receipt = facts.receipts.get(step)
        if receipt is None or receipt.at > kept.entry.at:
            yield kept.entry.at, f"{step} is kept without a receipt"
        elif (value := facts.steps.value_of(receipt.details["data"], receipt.details["codec"])) != kept.value:
            yield kept.entry.at, f"{step} is kept as {kept.value!r}, and its receipt has {value!r}"


def _not_again(facts: StepRows) -> Found:
    """No function of a step begins whose receipt of that generation is there."""
    for entry in facts.steps.ran:
        step = StepName(entry.details["key"], entry.details["generation"], entry.details["name"])
        receipt = facts.receipts.get(step)
        if entry.details["row"] and receipt is not None and receipt.at < entry.at:
            yield entry.at, f"{step} ran in run {entry.details['run']} although it has a receipt"


def _in_time(facts: StepRows) -> Found:
    """No step's ``COMMIT`` is sent by a run that knows its claim to be lost, nor, by its clock, past its end."""
    lost = facts.steps.lost()
    for entry in facts.sent:
        run = entry.details["runs"][0]
        sent = f"the commit of step {entry.details['step']!r} was sent in run {run}"
        if lost.get(run, entry.at) < entry.at:
            yield entry.at, f"{sent}, whose claim was lost"
        if not facts.steps.is_forced(run) and not facts.steps.has_claim(run, entry.at):
            yield entry.at, f"{sent} without a claim"


#: By name: what finds its violations, and the precondition.
STEP_ROW_INVARIANTS: Final[dict[str, tuple[Any, Any]]] = {
    "own row of a step": (_own_row, lambda facts: bool(facts.receipts)),
    "kept of its receipt": (_kept_of_receipt, lambda facts: bool(facts.receipts) and bool(facts.steps.kept)),
    "no step after its receipt": (
        _not_again,
        lambda facts: any(each.details["step"] for each in facts.rows.history.of("receipt-found")),
    ),
    "step committed in time": (
        _in_time,
        lambda facts: bool(facts.sent) and _STANDSTILLS.isdisjoint(facts.rows.history.counts),
    ),
}
