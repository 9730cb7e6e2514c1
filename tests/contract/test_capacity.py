"""What DynamoDB bills for the protocol, by the sizes of real items; the figures of docs/explanation/cost.md."""

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

import pytest

from idempotent_tasks import DynamoDBStore
from idempotent_tasks.core.records import Claim, KeptSteps, Step
from idempotent_tasks.core.store import MOST_NOTED
from tests.support.capacity import KEY, KILOBYTE, RETENTION, claimed_by, read_units, size_of, token_of, write_units
from tests.support.guarding import done, grant, request_by
from tests.testbed.wire import Answer, Fault, Forward, Request, Wire

PAGE = Path(__file__).parents[2] / "docs" / "explanation" / "cost.md"
#: The bytes of the result's JSON text, by the heading of its column.
RESULTS = {"100 B": 100, "1 KB": KILOBYTE, "10 KB": 10 * KILOBYTE, "100 KB": 100 * KILOBYTE}
#: The epoch milliseconds at which a copy is due: as many digits as any.
DUE = 1_812_345_678_901
#: The requests that what happens consists of, by the heading of its row.
HAPPENINGS = {
    "first run": ("claim", "commit"),
    "replay": ("replay",),
    "deferral": ("busy", "note"),
    "renewal": ("renewal",),
    "note of what follows": ("dispatch",),
}
#: A row of the table of steps: how many, the size of each, requests and write units of a first run, and of a rerun its
#: read units, too.
STEP_ROW = r"^\| (\d+ \| [\d.]+ KB(?: \| [\d,]+){5}) \|$"
STEPS = (3, 10, 50)
STEP_RESULTS = {"0.2 KB": 205, "1 KB": KILOBYTE, "2 KB": 2 * KILOBYTE}


@dataclass
class Meter:
    """Counts the write units of each step, by the record's item before and after it."""

    store: DynamoDBStore
    raw: Any
    wire: Wire
    #: Write units, by the name of the step.
    units: dict[str, int] = field(default_factory=dict)

    def step(self, name: str, call: Callable[[], object]) -> None:
        """Take a step, which must be one write."""
        before = self.size()
        self.wire.clear()
        call()
        assert self.wire.operations() == ["UpdateItem"], name
        self.units[name] = write_units(max(before, self.size()))

    def size(self) -> int:
        """Return the bytes of the record's item."""
        read = self.raw.get_item(TableName=self.store.table, Key={"id": {"S": KEY}}, ConsistentRead=True)
        return size_of(read.get("Item", {}))


def measure(store: DynamoDBStore, raw: Any, wire: Wire, result_bytes: int) -> dict[str, int]:
    """Return the write units of each step in the life of one record."""
    meter = Meter(store, raw, wire)
    held: list[Claim] = []
    meter.step("claim", lambda: held.append(grant(store, **claimed_by("1"))))
    meter.step("renewal", lambda: store.renew(held[0], 30, RETENTION))
    meter.step("busy", lambda: store.claim(request_by(**claimed_by("2"))))
    meter.step("note", lambda: store.note_deferral(KEY, held[0].owner, token_of(0), DUE))
    meter.step("commit", lambda: store.commit(held[0], done(f'"{"x" * (result_bytes - 2)}"'), RETENTION))
    meter.step("dispatch", lambda: store.note_dispatch(KEY, "8ea60c75-5640-44be-b0b4-bf62f271a431"))
    meter.step("replay", lambda: store.claim(request_by(**claimed_by("2"))))
    return meter.units


@pytest.mark.parametrize("dynamodb_endpoint", ["ministack"], indirect=True)
def test_the_page_gives_the_units_that_the_protocol_costs(dynamodb: DynamoDBStore, raw: Any, wire: Wire) -> None:
    """Each figure of the table is what items of that size cost by the rules."""
    rows = {name: [len(steps)] for name, steps in HAPPENINGS.items()}
    for result_bytes in RESULTS.values():
        dynamodb.forget(KEY)
        units = measure(dynamodb, raw, wire, result_bytes)
        for name, steps in HAPPENINGS.items():
            rows[name].append(sum(units[step] for step in steps))
    page = PAGE.read_text(encoding="utf-8")
    assert f"| | requests | {' | '.join(RESULTS)} |" in page
    shown = {
        name: [int(cell) for cell in cells.split("|")]
        for name, cells in re.findall(r"^\| ([a-z ]+) \|([\d| ]+)\|$", page, re.MULTILINE)
    }
    assert shown == rows


@pytest.mark.parametrize("dynamodb_endpoint", ["ministack"], indirect=True)
def test_the_page_gives_the_bytes_of_a_record(dynamodb: DynamoDBStore, raw: Any, wire: Wire) -> None:
    """What a record holds beside the result fits under the figure of the page, and comes near it."""
    meter = Meter(dynamodb, raw, wire)
    dynamodb.commit(grant(dynamodb, **claimed_by("1")), done('""'), RETENTION)
    (shown,) = re.findall(r"about ([\d,]+) bytes beside its result", PAGE.read_text(encoding="utf-8"))
    assert abs(meter.size() - int(shown.replace(",", ""))) < 100  # names of machines differ


@pytest.mark.parametrize("dynamodb_endpoint", ["ministack"], indirect=True)
def test_the_page_gives_the_units_of_a_crowded_key(dynamodb: DynamoDBStore, raw: Any, wire: Wire) -> None:
    """What a duplicate costs on a record that notes as many waiting messages as it may; one more is not noted."""
    meter = Meter(dynamodb, raw, wire)
    claim = grant(dynamodb, **claimed_by("1"))
    for number in range(MOST_NOTED):
        dynamodb.note_deferral(KEY, claim.owner, token_of(number), DUE)
    full = meter.size()
    meter.step("busy", lambda: dynamodb.claim(request_by(**claimed_by("2"))))
    meter.step("note", lambda: dynamodb.note_deferral(KEY, claim.owner, token_of(MOST_NOTED), DUE))
    assert meter.size() == full
    text = " ".join(PAGE.read_text(encoding="utf-8").split())
    ((refused, deferral),) = re.findall(r"refused claim costs (\d+) units, a deferral (\d+)", text)
    assert meter.units["busy"] == int(refused)
    assert meter.units["busy"] + meter.units["note"] == int(deferral)


class Bill:
    """What is billed for the requests on a wire."""

    def __init__(self, store: DynamoDBStore, raw: Any, wire: Wire) -> None:
        self.store = store
        self.raw = raw
        self.wire = wire
        self.clear()
        wire.decide_by(self.decide)

    def clear(self) -> None:
        """Begin a new bill."""
        self.writes, self.reads, self.requests = 0, 0, 0

    def decide(self, request: Request) -> Fault:
        """Let a request through, and add its units by the bytes of its item before and after it."""
        key = request.body.get("Key") or {"id": request.body["Item"]["id"]}

        def pass_through(forward: Forward) -> Answer:
            before = self.size(key)
            reply = forward()
            self.requests += 1
            if request.operation == "GetItem":
                self.reads += read_units(before)
            else:
                self.writes += write_units(max(before, self.size(key)))
            return reply

        return pass_through

    def size(self, key: dict[str, Any]) -> int:
        """Return the bytes of an item."""
        return size_of(self.raw.get_item(TableName=self.store.table, Key=key, ConsistentRead=True).get("Item", {}))


def stepped(store: DynamoDBStore, owner: str, count: int, result_bytes: int) -> Claim:
    """Run a body of so many steps under a claim of its own, up to its outcome; it keeps those that it does not find."""
    claim = grant(store, **claimed_by(owner))
    kept = claim.steps
    step = Step(inputs="0123456789abcdef" * 2, codec="json", data=f'"{"x" * (result_bytes - 2)}"')
    for name in (f"charge {number}" for number in range(10, 10 + count)):
        if name not in kept:
            answer = store.keep_step(claim, name, step, kept)
            assert isinstance(answer, KeptSteps)
            kept = answer
        elif name not in kept.here:
            assert store.kept_step(claim, name) == step
    return claim


@pytest.mark.parametrize("dynamodb_endpoint", ["ministack"], indirect=True)
def test_the_page_gives_the_units_of_steps(dynamodb: DynamoDBStore, raw: Any, wire: Wire) -> None:
    """Of a first run, and of a rerun that finds every step of one that left no outcome."""
    bill, rows = Bill(dynamodb, raw, wire), []
    for count, (name, result_bytes) in product(STEPS, STEP_RESULTS.items()):
        dynamodb.forget(KEY)
        bill.clear()
        dynamodb.commit(stepped(dynamodb, "1", count, result_bytes), done('""'), RETENTION)
        first = [bill.requests, bill.writes]
        dynamodb.forget(KEY)
        dynamodb.release(stepped(dynamodb, "1", count, result_bytes), "TimeoutError")
        bill.clear()
        dynamodb.commit(stepped(dynamodb, "2", count, result_bytes), done('""'), RETENTION)
        rows.append([str(count), name, *map(str, [*first, bill.requests, bill.writes, bill.reads])])
    page = PAGE.read_text(encoding="utf-8")
    shown = [[cell.strip() for cell in row.split("|")] for row in re.findall(STEP_ROW, page, re.MULTILINE)]
    assert shown == rows
