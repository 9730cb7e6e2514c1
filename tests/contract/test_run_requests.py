"""What a rerun and a fresh start cost: requests on the wire, and bytes of the item; the figures of two pages."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from celery import Celery

from idempotent_tasks import Done, DynamoDBStore, Idempotency, IdempotentTask, NotDone
from idempotent_tasks.core.records import Finished, reservation_owner
from tests.contract.conftest import MakeStore, MovableClock
from tests.support.capacity import KEY as LONG_KEY
from tests.support.capacity import claimed_by, size_of
from tests.support.guarding import KEY, done, grant, request_by
from tests.support.inline import InlineWorker
from tests.support.shop import raising
from tests.testbed.wire import Wire

COST = Path(__file__).parents[2] / "docs" / "explanation" / "cost.md"
LEASE = 30
RETENTION = 3600


@pytest.fixture
def store(make_store: MakeStore, dynamodb: DynamoDBStore, wire: Wire, clock: MovableClock) -> DynamoDBStore:
    """A store that this process has used before, whose clock, and DynamoDB's with it, moves as the test says."""
    wire.break_all(clock.shift)
    store = make_store(clock=clock)
    grant(store, key="shop.charge#other")
    return store


def missing(store: DynamoDBStore, clock: MovableClock) -> None:
    """Leave no record."""


def released(store: DynamoDBStore, clock: MovableClock) -> None:
    """Leave a run that failed."""
    store.release(grant(store), "ValueError")


def run_out(store: DynamoDBStore, clock: MovableClock) -> None:
    """Leave a run whose claim is over."""
    grant(store)
    clock.advance(LEASE + 2)


def reserved(store: DynamoDBStore, clock: MovableClock) -> None:
    """Leave a run that failed, and a reservation."""
    released(store, clock)
    grant(store, reservation_owner("id-two"), task_id="id-two")


def expired_outcome(store: DynamoDBStore, clock: MovableClock) -> None:
    """Leave an outcome whose time is over."""
    store.commit(grant(store), done(), RETENTION)
    clock.advance(RETENTION + 3)


def expired_claim(store: DynamoDBStore, clock: MovableClock) -> None:
    """Leave a run without an outcome whose time is over."""
    grant(store)
    clock.advance(RETENTION + 3)


@dataclass(frozen=True)
class Case:
    """A record that a claim meets, and what that claim is."""

    leave: Callable[[DynamoDBStore, MovableClock], None]
    runs: int
    writes: int = 1


CASES = [
    Case(missing, runs=1),
    Case(released, runs=2),
    Case(run_out, runs=2),
    Case(reserved, runs=2),
    Case(expired_outcome, runs=1),
    Case(expired_claim, runs=1, writes=2),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.leave.__name__)
def test_what_a_claim_costs(
    store: DynamoDBStore, clock: MovableClock, wire: Wire, refusal_read: list[str], case: Case
) -> None:
    """One write, as a first run's; a second one only for a record without an outcome that has expired."""
    case.leave(store, clock)
    # Not the faults, which move the server's time.
    wire.requests.clear()
    claim = grant(store, "two")
    again = [*refusal_read, "UpdateItem"] * (case.writes - 1)
    assert (claim.runs, wire.operations()) == (case.runs, ["UpdateItem", *again])
    store.commit(claim, done(), RETENTION)
    assert wire.operations().count("UpdateItem") == case.writes + 1
    wire.requests.clear()
    assert isinstance(store.claim(request_by("three")), Finished)
    assert wire.operations() == ["UpdateItem", *refusal_read]
    assert store.get(KEY).runs == 0


REREAD = "re-read"
#: The requests of each delivery of a key; a refusal without the item is read again.
COSTS: dict[str, tuple[dict[str, Any], list[list[str]]]] = {
    "run again": ({}, [["UpdateItem"] * 2, ["UpdateItem"] * 2, ["UpdateItem", REREAD]]),
    "asked: done": (
        {"recover": lambda record: Done("paid"), "settle": 0},
        [["UpdateItem"] * 2, ["UpdateItem", "GetItem", "UpdateItem"], ["UpdateItem", REREAD]],
    ),
    "asked: not done": (
        {"recover": lambda record: NotDone(), "settle": 0},
        [["UpdateItem"] * 2, ["UpdateItem", "GetItem", "UpdateItem"], ["UpdateItem", REREAD]],
    ),
    "parked": (
        {"on_rerun": "park"},
        [["UpdateItem"] * 2, ["UpdateItem"] * 3, ["UpdateItem", REREAD, "UpdateItem", REREAD]],
    ),
}


@pytest.mark.parametrize("way", COSTS)
def test_what_a_delivery_costs(
    store: DynamoDBStore, clock: MovableClock, wire: Wire, refusal_read: list[str], way: str
) -> None:
    """A run that fails, a rerun, and a delivery after it: asking costs one read, of reruns only, parking one write."""
    options, costs = COSTS[way]
    queue = f"queue-{uuid4().hex}"
    app = Celery("shop", broker="memory://", set_as_current=False)
    app.conf.update(idempotency_store=store, task_default_queue=queue)
    app.set_current()
    worker = InlineWorker(app, queue)
    bodies = iter([raising(TimeoutError()), lambda _: "paid"])

    def charge() -> Any:
        return next(bodies)(None)

    policy = Idempotency(**options)
    task = app.task(charge, name="shop.charge", base=IdempotentTask, shared=False, idempotency=policy)
    for cost in costs:
        wire.requests.clear()
        task.apply_async(task_id="one")
        worker.run_next()
        clock.advance(2)
        expected = [each for name in cost for each in (refusal_read if name == REREAD else [name])]
        assert wire.operations() == expected
    worker.close()


@pytest.mark.parametrize("dynamodb_endpoint", ["ministack"], indirect=True)
def test_the_page_gives_the_bytes_of_a_record_without_an_outcome(dynamodb: DynamoDBStore, raw: Any) -> None:
    """What it holds beyond that of an outcome: the count, and who was before."""

    def size() -> int:
        read = raw.get_item(TableName=dynamodb.table, Key={"id": {"S": LONG_KEY}}, ConsistentRead=True)
        return size_of(read["Item"])

    claim = grant(dynamodb, **claimed_by("1"))
    first = size()
    dynamodb.release(claim, "")
    claim = grant(dynamodb, **claimed_by("2"))
    second = size()
    dynamodb.commit(claim, done('""'), RETENTION)
    text = " ".join(COST.read_text(encoding="utf-8").split())
    ((of_first, of_second),) = re.findall(r"Until it has an outcome it has (\d+) more, and (\d+) where a run", text)
    assert abs(first - size() - int(of_first)) < 10
    assert abs(second - size() - int(of_second)) < 10
