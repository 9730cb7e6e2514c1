"""The invariants of bodies with writes, on histories that are written by hand."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from idempotent_tasks.core.records import Committed
from simulation.atomic_rules import ATOMIC_INVARIANTS
from simulation.calls import Call
from simulation.checker import check
from simulation.history import Entry, History
from simulation.scheduler import START


class TestWhatIsFound:
    """By the invariants, in histories that no shipped code plays."""

    def found(self, *entries: Entry, calls: Sequence[Call] = ()) -> list[str]:
        """Return the invariants that a history violates."""
        in_order = sorted(entries, key=lambda entry: entry.at)
        history = History(0, "writes", in_order, list(calls), ended=True)
        return [each.invariant for each in check(history) if each.invariant in ATOMIC_INVARIANTS]

    def test_a_run_with_its_writes(self) -> None:
        """Nothing is found."""
        assert self.found(*run(1), *transaction(3.0, run=1), reported(4.0, value=1)) == []

    def test_writes_without_a_record(self) -> None:
        """Or without an outcome, or beside that of another key."""
        record, *applied = transaction(3.0, run=1)
        assert self.found(*run(1), *applied) == ["writes once"]
        held = replace(record, details={**record.details, "item": item("a", status="INPROGRESS")})
        assert self.found(*run(1), held, *applied) == ["writes once"]
        other = replace(record, details={**record.details, "key": "writes#2"})
        assert "writes once" in self.found(*run(1), other, *applied)

    def test_writes_of_two_runs(self) -> None:
        """Of one key, whose record did not begin anew."""
        late = written(5.0, item("b", status="INPROGRESS"))
        entries = [*run(1), *transaction(3.0, run=1), *run(2, owner="b"), late, *transaction(6.0, run=2, owner="b")]
        assert self.found(*entries) == ["writes once"]

    def test_an_outcome_without_writes(self) -> None:
        """Or without some of them."""
        record, *applied = transaction(3.0, run=1)
        assert self.found(*run(1), record) == ["outcome with writes"]
        assert self.found(*run(1), record, applied[0]) == ["outcome with writes"]

    def test_a_zombie(self) -> None:
        """Its successor has the key."""
        taken = written(2.5, item("b", status="INPROGRESS"))
        assert self.found(*run(1), taken, cancelled(2.7), *transaction(3.0, run=1)) == ["zombie's writes"]

    def test_a_refusal_that_is_none(self) -> None:
        """The writes took effect, or their key is held still."""
        failed = reported(4.0, error="AtomicWriteError")
        assert self.found(*run(1), *transaction(3.0, run=1), failed) == ["refused writes"]
        assert self.found(*run(1), failed) == ["refused writes"]
        assert self.found(*run(1), written(3.0, item(None, status="INPROGRESS")), failed) == []

    def test_a_result_without_writes(self) -> None:
        """Unless the body has handed over to a retry, or the result is another run's."""
        assert self.found(*run(1), reported(4.0, value=1)) == ["reported writes"]
        assert self.found(*run(1), Entry(1.5, "handed-over", {"id": "id-1"}), reported(4.0, value=1)) == []
        assert self.found(*run(1), reported(4.0, value=2)) == []

    def test_a_report_without_an_answer(self) -> None:
        """Whatever it says, but for the outcome on record."""
        unanswered = Call("commit_with", KEY, "a", START + 3.0, ended_at=START + 3.5)
        failed = reported(4.0, error="StoreUnavailableError")
        assert self.found(*run(1), failed, calls=[unanswered]) == ["unanswered writes"]
        answered = replace(unanswered, answer=Committed())
        assert self.found(*run(1), failed, calls=[answered]) == []
        stored = transaction(3.2, run=1)
        assert self.found(*run(1), *stored, reported(4.0, value=1), calls=[unanswered]) == []

    def test_a_renewal_beside_a_transaction(self) -> None:
        """It would get into its way."""
        tries = [Call("commit_with", KEY, "a", START + at, ended_at=START + at + 2) for at in (3.0, 6.0, 9.0)]
        renewed = Call("renew", KEY, "a", START + 5.5)
        assert self.found(*run(1), calls=[*tries, renewed]) == ["no renewal"]
        assert self.found(*run(1), calls=[*tries, replace(renewed, called_at=START + 2.0)]) == []


KEY = "writes#1"
PROCESS = "machine-0/101"


def item(owner: str | None, status: str) -> dict[str, Any]:
    """Return a record as an item."""
    own = {} if owner is None else {"owner": {"S": owner}}
    kept = {"expiration": {"N": str(int(START) + 100_000)}, "completed_at": {"N": str(int(START * 1000))}}
    return {"status": {"S": status}, "fence": {"N": "1"}, **kept, **own}


def written(at: float, record: dict[str, Any], **more: Any) -> Entry:
    """Return a write of the record."""
    return Entry(at, "written", {"key": KEY, "item": record, "by": PROCESS, **more})


def run(number: int, owner: str = "a") -> list[Entry]:
    """Return a run that returns two writes, in the seconds that begin with its number."""
    about = {"run": number, "key": KEY, "owner": owner, "id": f"id-{number}", "process": PROCESS, "task": "writes"}
    more = {"fence": number, "lock": None, "order": "1", "number": number, "grant": number, "attempt": 1}
    return [
        Entry(number - 0.5, "delivered", {"process": PROCESS, "id": f"id-{number}"}),
        *([written(number - 0.2, item(owner, "INPROGRESS"))] if number == 1 else []),
        Entry(float(number), "began", {**about, **more, "rerun": number > 1}),
        Entry(number + 0.1, "returns-writes", {"run": number, "key": KEY, "writes": 2}),
        Entry(number + 0.2, "over", about),
    ]


def transaction(at: float, run: int, owner: str = "a") -> list[Entry]:
    """Return what a transaction of a run has written: the record, and two items."""
    marks = {"run": {"N": str(run)}}
    applied = {"transaction": run, "table": "tills", "item": marks, "by": PROCESS}
    return [
        written(at, item(owner, "COMPLETED"), transaction=run),
        Entry(at + 0.01, "applied", {**applied, "name": KEY}),
        Entry(at + 0.02, "applied", {**applied, "name": f"{KEY}/{run}"}),
    ]


def cancelled(at: float) -> Entry:
    """Return a transaction that was cancelled."""
    return Entry(at, "cancelled", {"key": KEY, "owner": "a", "codes": ("ConditionalCheckFailed",), "by": PROCESS})


def reported(at: float, *, value: int | None = None, error: str | None = None) -> Entry:
    """Return what the delivery of the first run reports: a result, or an error."""
    status = "SUCCESS" if error is None else "FAILURE"
    return Entry(at, "reported", {"id": "id-1", "process": PROCESS, "status": status, "value": value, "error": error})
