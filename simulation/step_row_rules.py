"""Rows that steps write, held against a history: each commits with the result that its record comes to have."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

from simulation.history import Entry
from simulation.receipt_rules import ReceiptRows
from simulation.step_rules import StepFacts, StepName

__all__ = ["STEP_ROW_INVARIANTS", "StepRows"]

#: What may come between a look at a claim and the ``COMMIT`` that follows it.
_STANDSTILLS: Final = frozenset({"child-stopped", "machine-frozen", "stopped-in-transaction", "stopped-in-keep"})

Found = Iterator[tuple[float, str]]


@dataclass(frozen=True, slots=True)
class StepRows:
    """What a history has of steps, and of the receipts that some of them have."""

    steps: StepFacts
    rows: ReceiptRows

    @property
    def receipts(self) -> dict[StepName, Entry]:
        """The first receipt of each step."""
        found: dict[StepName, Entry] = {}
        for each in self.rows.receipts:
            if each.details["step"]:
                found.setdefault(StepName(each.details["key"], each.details["generation"], each.details["step"]), each)
        return found


def _own_row(facts: StepRows) -> Found:
    """With the receipt of a step commits the one row of its function, which has returned and not handed over."""
    handed_over = {(each.details["run"], each.details["name"]) for each in facts.rows.history.of("step-handed-over")}
    done = {(each.details["run"], each.details["name"]): each for each in reversed(facts.steps.done)}
    for step, receipt in facts.receipts.items():
        own = facts.rows.rows_with(receipt)
        runs = [each.details["run"] for each in own]
        returned = done.get((runs[0], step.name)) if runs else None
        if len(own) != 1:
            yield receipt.at, f"{step} was committed with rows of the runs {runs}"
        elif returned is None or returned.at > receipt.at:
            yield receipt.at, f"{step} was committed, and its function has not returned in run {runs[0]}"
        elif (runs[0], step.name) in handed_over:
            yield receipt.at, f"{step} was committed, and its function has handed run {runs[0]} over"


def _kept_of_receipt(facts: StepRows) -> Found:
    """What the record has of a step that writes a row is the result in its receipt, which was there first."""
    receipts = facts.receipts
    for step, kept in facts.steps.kept.items():
        if step not in facts.steps.with_rows:
            continue
        receipt = receipts.get(step)
        if receipt is None or receipt.at > kept.entry.at:
            yield kept.entry.at, f"{step} is kept without a receipt"
        elif (value := facts.steps.value_of(receipt.details["data"], receipt.details["codec"])) != kept.value:
            yield kept.entry.at, f"{step} is kept as {kept.value!r}, and its receipt has {value!r}"


def _not_again(facts: StepRows) -> Found:
    """No function of a step begins whose receipt of that generation is there."""
    receipts = facts.receipts
    for entry in facts.steps.ran:
        step = StepName(entry.details["key"], entry.details["generation"], entry.details["name"])
        receipt = receipts.get(step)
        if entry.details["row"] and receipt is not None and receipt.at < entry.at:
            yield entry.at, f"{step} ran in run {entry.details['run']} although it has a receipt"


def _in_time(facts: StepRows) -> Found:
    """No step's ``COMMIT`` is sent by a run that knows its claim to be lost, nor, by its clock, past its end."""
    lost = facts.steps.lost()
    for entry in _sent(facts):
        run = entry.details["runs"][0]
        if lost.get(run, entry.at) < entry.at:
            yield entry.at, f"the commit of step {entry.details['step']!r} was sent in run {run}, whose claim was lost"
        if not facts.steps.is_forced(run) and not facts.steps.has_claim(run, entry.at):
            yield entry.at, f"the commit of step {entry.details['step']!r} was sent in run {run} without a claim"


def _sent(facts: StepRows) -> list[Entry]:
    return [each for each in facts.rows.history.of("commit-sent") if each.details["step"] and each.details["runs"]]


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
        lambda facts: bool(_sent(facts)) and _STANDSTILLS.isdisjoint(facts.rows.history.counts),
    ),
}
