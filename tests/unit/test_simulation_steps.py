"""The invariants of bodies with steps, on histories that are written by hand."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from hashlib import sha256
from types import MappingProxyType
from typing import Any, Final

import pytest

from idempotent_tasks.core.records import KeptSteps
from simulation.calls import Call
from simulation.checker import check
from simulation.history import Entry, History, step_in
from simulation.scheduler import START
from simulation.step_row_rules import STEP_ROW_INVARIANTS
from simulation.step_rules import STEP_INVARIANTS

#: No fault.
NOTHING: Final[Mapping[str, int]] = MappingProxyType({})


class TestWhatIsFound:
    """By the invariants, in histories that no shipped code plays."""

    def found(self, *entries: Entry, calls: Sequence[Call] = (), counts: Mapping[str, int] = NOTHING) -> list[str]:
        """Return the invariants that a history violates."""
        in_order = sorted(entries, key=lambda entry: entry.at)
        history = History(0, "steps", in_order, list(calls), dict(counts), ended=True)
        return [each.invariant for each in check(history) if each.invariant in STEP_INVARIANTS]

    def test_a_run_with_a_step_and_another_that_gets_its_result(self) -> None:
        """Nothing is found."""
        assert self.found(*run(1), *step(1, 2.0), *run(2, "b", at=5.0), returned(2, 6.0, value="charge/1")) == []

    def test_a_step_that_is_kept_and_runs_again(self) -> None:
        """And its result is another one."""
        again = [ran(2, 6.0), returned(2, 6.2, value="charge/2")]
        found = self.found(*run(1), *step(1, 2.0), *run(2, "b", at=5.0), *again, counts={"answer-lost": 1})
        assert found == ["step once", "one value of a step"]

    def test_a_result_that_is_not_kept(self) -> None:
        """As where the store did not answer."""
        assert self.found(*run(1), ran(1, 2.0), returned(1, 2.2)) == ["one value of a step"]

    def test_a_step_after_its_claim(self) -> None:
        """It has expired, or somebody else has the key, or the run was told that it is lost."""
        assert self.found(*run(1), ran(1, 14.0)) == ["step's claim"]
        assert self.found(*run(1), *run(2, "b", at=5.0), ran(1, 6.0)) == ["step's claim"]
        told = Entry(1.5, "Lost", {"key": KEY, "process": PROCESS})
        assert self.found(*run(1), told, ran(1, 2.0)) == ["step's claim"]

    def test_steps_that_are_lost(self) -> None:
        """Within a generation; and an outcome, or another generation, that has any."""
        kept = [*run(1), *step(1, 2.0)]
        assert self.found(*kept, written(3.0, item())) == ["steps survive"]
        assert self.found(*kept, written(3.0, item(status="COMPLETED"))) == []
        assert self.found(*kept, written(3.0, item(status="COMPLETED", steps=["charge/1"]))) == ["steps survive"]
        anew = item("b", fence=9, generation=2, steps=["charge/1"])
        assert "steps survive" in self.found(*kept, written(3.0, {}), written(4.0, anew))

    def test_a_rerun_that_does_not_ask(self) -> None:
        """Or whose answer was another one; or a first run that asks."""
        asked = [entry("step-asked", 2, 5.5, rerun=True), entry("step-answered", 2, 5.6, answer="NotDone")]
        rerun = [*run(1), *run(2, "b", at=5.0), replace_details(ran(2, 6.0), rerun=True)]
        assert self.found(*rerun, *asked) == []
        assert self.found(*rerun, asked[0]) == ["step asked first"]
        assert self.found(*run(1), entry("step-asked", 1, 1.5, rerun=False)) == ["step asked first"]

    def test_an_effect_that_happens_twice(self) -> None:
        """Unless a person has decided to run the body again."""
        charged = [entry("step-charged", 1, at) for at in (2.0, 3.0)]
        assert self.found(*run(1), *charged) == ["one effect of a step"]
        resolved = Entry(2.5, "resolved", {"key": KEY, "done": None, "written": True})
        assert self.found(*run(1), *charged, resolved) == []

    def test_a_step_that_is_kept_for_a_run_without_its_claim(self) -> None:
        """Its late write would have the successor's step be done."""
        taken, late = item("b", fence=2), item("b", fence=2, steps=["charge/1"])
        assert self.found(*run(1), ran(1, 2.0), written(5.0, taken), written(6.0, late)) == ["kept by the holder"]

    def test_an_answer_that_is_not_true(self) -> None:
        """The next run would do the step again."""
        call = Call("keep_step", KEY, "a", START + 2.0, data="charge", ended_at=START + 3.0, answer=KeptSteps())
        assert self.found(*run(1), ran(1, 1.5), calls=(call,)) == ["step answered"]
        assert self.found(*run(1), *step(1, 2.0), calls=(call,)) == []

    def test_a_steps_own_item(self) -> None:
        """It is written before it is named, is not replaced then, and is not read before."""
        named, own = written(2.5, item(elsewhere=["charge"])), own_item(2.3, "charge/1")
        read = Entry(6.0, "step-read", {**step_in(ITEM), "by": PROCESS})
        assert self.found(*run(1), ran(1, 2.0), own, named, read) == []
        assert "step's own item" in self.found(*run(1), ran(1, 2.0), replace(own, at=2.6), named, read)
        assert self.found(*run(1), ran(1, 2.0), own, read) == ["step's own item"]
        replaced = own_item(3.0, "charge/2")
        assert self.found(*run(1), ran(1, 2.0), own, named, read, replaced) == ["step's own item"]

    def test_a_body_that_goes_on_after_it_was_ended(self) -> None:
        """With another step, or with an outcome; or keeps its key."""
        ended = entry("step-ended", 1, 2.0, why="StepUnkept", is_lost=False)
        assert self.found(*run(1), ended) == []
        assert self.found(*run(1), ended, ran(1, 2.5)) == ["ended in a step"]
        assert self.found(*run(1), ended, written(3.0, item(status="COMPLETED"))) == ["ended in a step"]
        over = Entry(4.0, "ended", {"process": PROCESS})
        assert self.found(*run(1), ended, over) == ["ended in a step"]
        release = Call("release", KEY, "a", START + 3.0)
        assert self.found(*run(1), ended, over, calls=(release,)) == []

    def test_a_result_for_other_arguments(self) -> None:
        """It is not of this call."""
        other = replace_details(returned(2, 6.0, value="charge/1"), inputs=1)
        assert self.found(*run(1), *step(1, 2.0), *run(2, "b", at=5.0), other) == ["step's arguments"]

    @pytest.mark.parametrize(("counts", "is_found"), [({}, True), ({"answer-lost": 1}, False)])
    def test_a_step_that_is_done_and_not_kept(self, counts: dict[str, int], *, is_found: bool) -> None:
        """Only a fault may bring that about."""
        done = [ran(1, 2.0), entry("step-done", 1, 2.1, value="charge/1")]
        others = [ran(2, 6.0), *step(2, 7.0, name="ship"), *run(3, "c", at=8.0), returned(3, 9.0, value="ship/2")]
        found = self.found(*run(1), *done, *run(2, "b", at=5.0), *others, counts=counts)
        assert ("calm step" in found) is is_found


class TestRows:
    """What is found of steps that write rows."""

    def found(self, *entries: Entry, counts: Mapping[str, int] = NOTHING) -> list[str]:
        """Return the invariants about rows that a history violates."""
        in_order = sorted(entries, key=lambda entry: entry.at)
        history = History(0, "steps", in_order, [], dict(counts), ended=True)
        return [each.invariant for each in check(history) if each.invariant in STEP_ROW_INVARIANTS]

    def test_a_step_with_its_row(self) -> None:
        """Nothing is found, also where a later run keeps it."""
        assert self.found(*run(1), *row(1, 2.0), *kept_row(1, 2.5)) == []
        assert self.found(*run(1), *row(1, 2.0), *run(2, "b", at=5.0), *kept_row(2, 6.0, "charge/1")) == []

    def test_a_row_of_a_function_that_has_not_returned(self) -> None:
        """Or that has handed its run over; and a receipt without the row."""
        called, done, *committed = row(1, 2.0)
        assert self.found(*run(1), called, *committed) == ["own row of a step"]
        handed_over = Entry(2.04, "step-handed-over", {"run": 1, "name": "charge"})
        assert self.found(*run(1), called, done, handed_over, *committed) == ["own row of a step"]
        assert self.found(*run(1), called, done, *committed[:-1]) == ["own row of a step"]

    def test_a_record_with_another_result_than_the_receipt(self) -> None:
        """Or with one before the receipt is there."""
        other = [*run(2, "b"), *kept_row(2, 6.0)]
        assert self.found(*run(1), *row(1, 2.0), *other, counts={"child-stopped": 1}) == ["kept of its receipt"]
        assert self.found(*run(1), *kept_row(1, 1.5), *row(1, 2.0)) == ["kept of its receipt"]

    def test_a_step_beside_its_receipt(self) -> None:
        """Whose row was looked at."""
        looked = Entry(5.5, "receipt-found", {"key": KEY, "step": "charge", "generation": 1, "process": PROCESS})
        again = ran(2, 6.0, row=True)
        found = self.found(*run(1), *row(1, 2.0), *run(2, "b", at=5.0), looked, again)
        assert found == ["no step after its receipt"]

    def test_a_commit_without_a_claim(self) -> None:
        """It has expired, or was known to be lost; a process that stands still knows neither."""
        late = row(1, 14.0)
        assert self.found(*run(1), *late) == ["step committed in time"]
        assert self.found(*run(1), *late, counts={"child-stopped": 1}) == []
        told = Entry(1.5, "Lost", {"key": KEY, "process": PROCESS})
        assert self.found(*run(1), told, *row(1, 2.0)) == ["step committed in time"]


PROCESS = "machine-0/101"
KEY = "steps#1"
ITEM = f"{KEY}#1#{sha256(b'charge').hexdigest()[:16]}"


def replace_details(of: Entry, **details: Any) -> Entry:
    """Return an entry with other details."""
    return replace(of, details={**of.details, **details})


def wire(value: str) -> dict[str, Any]:
    """Return a step as it lies in a record."""
    return {"codec": {"S": "json"}, "inputs": {"S": "0"}, "data": {"S": json.dumps({"value": value})}}


def item(
    owner: str = "a",
    status: str = "INPROGRESS",
    *,
    fence: int = 1,
    generation: int = 1,
    steps: list[str] | None = None,
    elsewhere: list[str] | None = None,
) -> dict[str, Any]:
    """Return a record as an item."""
    numbers = {"fence": fence, "generation": generation, "in_progress_expiration": int((START + 11.0) * 1000)}
    here = {value.split("/")[0]: {"M": wire(value)} for value in steps or ()}
    kept: dict[str, Any] = {"steps": {"M": here}} if here else {}
    if elsewhere:
        kept["steps_elsewhere"] = {"SS": [sha256(name.encode()).hexdigest()[:16] for name in elsewhere]}
    return {
        "status": {"S": status},
        "owner": {"S": owner},
        **{name: {"N": str(each)} for name, each in numbers.items()},
        **kept,
    }


def written(at: float, record: dict[str, Any]) -> Entry:
    """Return a write of the record."""
    return Entry(at, "written", {"key": KEY, "item": record, "by": PROCESS})


def own_item(at: float, value: str) -> Entry:
    """Return a write of the step's own item."""
    record = {**wire(value), "step": {"S": "charge"}}
    return Entry(at, "step-written", {**step_in(ITEM), "item": record, "by": PROCESS})


def run(number: int, owner: str = "a", *, at: float = 1.0) -> list[Entry]:
    """Return a run that begins at a time, with the steps that runs before it have kept."""
    about = {"run": number, "key": KEY, "owner": owner, "id": f"id-{number}", "process": PROCESS, "task": "steps"}
    more = {"fence": number, "lock": None, "order": "1", "number": number, "grant": number, "attempt": 1}
    steps = {1: None, 2: ["charge/1"], 3: ["ship/2"]}[number] if at > 1.0 else None
    claimed = written(at - 0.2, item(owner, fence=number, steps=steps))
    return [claimed, Entry(at, "began", {**about, **more, "rerun": number > 1})]


def entry(kind: str, run: int, at: float, **details: Any) -> Entry:
    """Return what a run notes of its step."""
    about = {"key": KEY, "generation": 1, "name": "charge", "owner": "abc"[run - 1], "inputs": 0}
    return Entry(at, kind, {**about, "run": run, "process": PROCESS, **details})


def ran(run: int, at: float, name: str = "charge", *, row: bool = False) -> Entry:
    """Return that the function of a step is called."""
    return entry("step-ran", run, at, name=name, value=f"{name}/{run}", rerun=False, row=row)


def returned(run: int, at: float, value: str | None = None) -> Entry:
    """Return that a body gets the result of a step."""
    value = value or f"charge/{run}"
    return entry("step-returned", run, at, name=value.split("/")[0], value=value)


def row(run: int, at: float) -> list[Entry]:
    """Return a step that runs, writes a row, and commits."""
    about = {"key": KEY, "step": "charge", "generation": 1, "fence": run, "process": PROCESS, "transaction": run}
    outcome = {"status": "COMPLETED", "data": wire(f"charge/{run}")["data"]["S"], "codec": "json", "following": []}
    return [
        ran(run, at, row=True),
        entry("step-done", run, at + 0.05, value=f"charge/{run}", row=True),
        Entry(at + 0.06, "commit-sent", {"key": KEY, "step": "charge", "process": PROCESS, "runs": [run]}),
        Entry(at + 0.07, "receipt-committed", {**about, **outcome}),
        Entry(at + 0.08, "row-committed", {**about, "run": run}),
    ]


def kept_row(run: int, at: float, value: str | None = None) -> list[Entry]:
    """Return the write by which a run keeps a step with a row, whose function it may not have called."""
    return [written(at, item("abc"[run - 1], fence=run, steps=[value or f"charge/{run}"]))]


def step(run: int, at: float, name: str = "charge") -> list[Entry]:
    """Return a step that runs, is kept, and is returned."""
    value, owner = f"{name}/{run}", "abc"[run - 1]
    done, kept = entry("step-done", run, at + 0.05, name=name, value=value), item(owner, fence=run, steps=[value])
    return [ran(run, at, name), done, written(at + 0.1, kept), returned(run, at + 0.2, value)]
