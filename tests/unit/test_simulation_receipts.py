"""The invariants of bodies with rows, on histories that are written by hand."""

import json
from typing import Any

from simulation.checker import check
from simulation.history import Entry, History
from simulation.receipt_rules import RECEIPT_INVARIANTS


class TestWhatIsFound:
    """By the invariants, in histories that no shipped code plays."""

    def found(self, *entries: Entry, task: str = "rows", counts: dict[str, int] | None = None) -> list[str]:
        """Return the invariants that a history of one message violates."""
        published = Entry(0.0, "published", {"id": "id-1", "task": task})
        in_order = sorted([published, *entries], key=lambda entry: entry.at)
        history = History(0, task, in_order, counts=counts or {}, ended=True)
        return [each.invariant for each in check(history) if each.invariant in RECEIPT_INVARIANTS]

    def test_a_run_with_its_row(self) -> None:
        """Nothing is found."""
        assert self.found(*run(1), *committed(3.0, run=1), outcome(4.0, "1"), reported(5.0, 1)) == []

    def test_rows_of_two_runs(self) -> None:
        """In one generation, whoever looked for a receipt."""
        entries = [*run(1), *committed(1.5, run=1), looked(1.6), *run(2), *committed(3.5, run=2)]
        assert "rows once" in self.found(*entries)

    def test_rows_of_a_failure(self) -> None:
        """It was to be rolled back."""
        entries = [*run(1), *committed(3.0, run=1, status="FAILED"), looked(3.5)]
        assert self.found(*entries) == ["rows once"]

    def test_rows_of_an_earlier_start(self) -> None:
        """A zombie's."""
        later = committed(3.0, run=1, generation=8)
        assert self.found(*run(1), *later, *committed(4.0, run=1)) == ["rows in order"]

    def test_an_outcome_without_a_receipt(self) -> None:
        """Or with another outcome, or one of another generation, or that was there later."""
        late = committed(3.0, run=1)
        assert self.found(*run(1), *late, outcome(2.0, "1")) == ["outcome of receipt"]
        assert self.found(*run(1), *late, outcome(4.0, "2")) == ["outcome of receipt"]
        assert self.found(*run(1), *late, outcome(4.0, "1", generation=8)) == ["outcome of receipt"]

    def test_rows_of_a_run_that_has_not_returned(self) -> None:
        """Or that was handed over, or of which some are missing."""
        began, *_, over = run(1)
        assert self.found(began, over, *committed(3.0, run=1)) == ["own rows"]
        assert self.found(*run(1), Entry(1.15, "retries", {"run": 1}), *committed(3.0, run=1)) == ["own rows"]
        assert self.found(*run(1, rows=2), *committed(3.0, run=1)) == ["own rows"]

    def test_a_result_without_its_rows(self) -> None:
        """Or without a receipt."""
        assert self.found(*run(1), reported(5.0, 1)) == ["reported rows"]
        receipt, _ = committed(3.0, run=1)
        assert self.found(*run(1), receipt, reported(5.0, 1)) == ["reported rows"]

    def test_what_follows_and_was_not_sent(self) -> None:
        """Although its task was told; or under another id; or that no receipt has."""
        entries = [*run(1), *committed(3.0, run=1, follows="a"), Entry(4.0, "Replayed", {"key": KEY, "task_id": "b"})]
        name = f"{KEY}/then/1"
        assert self.found(*entries) == ["what follows"]
        assert self.found(*entries, Entry(6.0, "followed", {"of": name, "id": "a"})) == []
        assert self.found(*entries, Entry(6.0, "followed", {"of": name, "id": "b"})) == ["what follows"] * 2
        other = Entry(7.0, "followed", {"of": f"{KEY}/then/2", "id": "c"})
        assert self.found(*entries, Entry(6.0, "followed", {"of": name, "id": "a"}), other) == ["what follows"]

    def test_a_body_beside_a_receipt(self) -> None:
        """Or a question, or a decision that is left to a person."""
        entries = [*run(1), *committed(1.5, run=1), looked(1.6)]
        assert self.found(*entries, *run(2)) == ["no body after"]
        asked = Entry(3.0, "asked", {"key": KEY, "grant": 2, "id": "id-1", "rerun": True, "owner": "a"})
        assert self.found(*entries, claimed(2.0, 2), asked) == ["no body after"]
        parked = claimed(3.0, 2, parked_at={"N": "3"})
        assert self.found(*entries, claimed(2.0, 2), parked) == ["no body after"]

    def test_a_body_that_runs_again_at_once(self) -> None:
        """Although somebody is to be asked about its first try."""
        again = Entry(1.5, "began", {**run(1)[1].details, "run": 2, "key": "rows-parks#1"})
        first = Entry(1.0, "began", {**again.details, "run": 1})
        deadlock = {"deadlock-at-commit": 1}
        assert self.found(first, again, task="rows-parks", counts=deadlock) == ["once a claim"]

    def test_a_wait_that_is_too_long(self) -> None:
        """For another transaction's row."""
        waits = {"key": KEY, "step": "", "fence": 1, "process": PROCESS}
        assert self.found(*run(1), Entry(0.9, "waits", {**waits, "seconds": 5.0})) == []
        assert self.found(*run(1), Entry(0.9, "waits", {**waits, "seconds": 6.0})) == ["limited wait"]


KEY = "rows#1"
PROCESS = "machine-0/101"
GENERATION = 7


def claimed(at: float, fence: int, **more: Any) -> Entry:
    """Return the write of a claim of the key."""
    numbers = {"fence": {"N": str(fence)}, "generation": {"N": str(GENERATION)}}
    item = {"status": {"S": "INPROGRESS"}, "owner": {"S": "a"}, **numbers, **more}
    return Entry(at, "written", {"key": KEY, "item": item, "by": PROCESS})


def outcome(at: float, data: str, generation: int = GENERATION) -> Entry:
    """Return the write of an outcome."""
    item = {"status": {"S": "COMPLETED"}, "data": {"S": data}, "generation": {"N": str(generation)}}
    return Entry(at, "written", {"key": KEY, "item": item, "by": PROCESS})


def run(number: int, rows: int = 1) -> list[Entry]:
    """Return a run that returns, in the seconds that begin with its number."""
    about = {"run": number, "key": KEY, "owner": "a", "id": "id-1", "process": PROCESS, "task": "rows"}
    more = {"fence": number, "lock": None, "order": "1", "number": number, "grant": number, "attempt": 1}
    return [
        claimed(number - 0.2, number),
        Entry(float(number), "began", {**about, **more, "rerun": number > 1}),
        Entry(number + 0.1, "returns", {"run": number, "rows": rows}),
        Entry(number + 0.2, "over", about),
    ]


def looked(at: float) -> Entry:
    """Return a look that has found a receipt."""
    return Entry(
        at, "receipt-found", {"key": KEY, "step": "", "fence": 9, "generation": GENERATION, "process": PROCESS}
    )


def committed(
    at: float, run: int, generation: int = GENERATION, status: str = "COMPLETED", follows: str | None = None
) -> list[Entry]:
    """Return a receipt and a row of a run, which were committed together."""
    about = {"key": KEY, "step": "", "generation": generation, "fence": run, "process": PROCESS}
    about["transaction"] = int(at * 10)
    signature = {"args": [run, f"{KEY}/then/{run}"], "options": {"task_id": follows}}
    following = [] if follows is None else [json.dumps(signature)]
    receipt = {**about, "status": status, "data": str(run), "codec": "json", "following": following}
    return [Entry(at, "receipt-committed", receipt), Entry(at + 0.01, "row-committed", {**about, "run": run})]


def reported(at: float, value: int) -> Entry:
    """Return what the key's delivery reports as its result."""
    return Entry(at, "reported", {"id": "id-1", "process": PROCESS, "status": "SUCCESS", "value": value, "error": None})
