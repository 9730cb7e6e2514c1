"""What DynamoDB bills for the protocol, by the sizes of real items; the figures of docs/discussion/cost.md.

The rules are AWS's (https://docs.aws.amazon.com/amazondynamodb/latest/developerguide/CapacityUnitCalculations.html and
read-write-operations.html there): a write costs a unit for each KB of the item before or after it, whichever is
larger, also where its condition fails.
"""

import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from math import ceil
from pathlib import Path
from typing import Any

import pytest

from idempotent_tasks import DynamoDBStore
from idempotent_tasks.liveness import current_process
from idempotent_tasks.records import Claim
from tests.support.guarding import done, grant, wish
from tests.support.wire import Wire

PAGE = Path(__file__).parents[2] / "docs" / "discussion" / "cost.md"
KEY = f"shop.charge#{'0123456789abcdef' * 4}"
RETENTION = 86_400.0
KILOBYTE = 1024
#: The bytes of the result's JSON text, by the heading of its column.
RESULTS = {"100 B": 100, "1 KB": KILOBYTE, "10 KB": 10 * KILOBYTE, "100 KB": 100 * KILOBYTE}
#: The requests that what happens consists of, by the heading of its row.
HAPPENINGS = {
    "first run": ("claim", "commit"),
    "replay": ("replay",),
    "deferral": ("busy", "note"),
    "renewal": ("renewal",),
    "note of what follows": ("dispatch",),
}


def size_of(item: Mapping[str, Mapping[str, Any]]) -> int:
    """Return an item's bytes: names and values, each number about half a byte a digit and one more."""
    return sum(len(name.encode()) + _value_size(value) for name, value in item.items())


def _value_size(value: Mapping[str, Any]) -> int:
    ((kind, held),) = value.items()
    match kind:
        case "S":
            return len(held.encode())
        case "N":
            return ceil(len(held.strip("-0")) / 2) + 1
        case "SS":
            return sum(len(each.encode()) for each in held)
        case "M":
            return 3 + sum(1 + len(name.encode()) + _value_size(each) for name, each in held.items())
    raise AssertionError(f"no rule for {kind}")


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
        self.units[name] = ceil(max(before, self.size()) / KILOBYTE)

    def size(self) -> int:
        """Return the bytes of the record's item."""
        read = self.raw.get_item(TableName=self.store.table, Key={"id": {"S": KEY}}, ConsistentRead=True)
        return size_of(read.get("Item", {}))


def claimed_by(owner: str) -> dict[str, Any]:
    """Return a delivery's wish as a worker makes it."""
    return {
        "owner": owner * 32,
        "key": KEY,
        "retention_seconds": RETENTION,
        "task_id": f"8ea60c75-5640-44be-b0b4-bf62f271a43{owner}",
        "worker": "celery@ip-10-0-12-34.eu-west-1.compute.internal",
        "process": current_process(os.getpid()),
    }


def measure(store: DynamoDBStore, raw: Any, wire: Wire, result_bytes: int) -> dict[str, int]:
    """Return the write units of each step in the life of one record."""
    meter = Meter(store, raw, wire)
    held: list[Claim] = []
    meter.step("claim", lambda: held.append(grant(store, **claimed_by("1"))))
    meter.step("renewal", lambda: store.renew(held[0], 30, RETENTION))
    meter.step("busy", lambda: store.claim(wish(**claimed_by("2"))))
    meter.step("note", lambda: store.note_deferral(KEY, "8ea60c75-5640-44be-b0b4-bf62f271a432", 0))
    meter.step("commit", lambda: store.commit(held[0], done(f'"{"x" * (result_bytes - 2)}"'), RETENTION))
    meter.step("dispatch", lambda: store.note_dispatch(KEY, "8ea60c75-5640-44be-b0b4-bf62f271a431"))
    meter.step("replay", lambda: store.claim(wish(**claimed_by("2"))))
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
