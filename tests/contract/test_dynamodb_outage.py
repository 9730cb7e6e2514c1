"""DynamoDB is away for longer than a claim lives: what its process keeps is stored later, if nobody was there first."""

from collections.abc import Callable, Iterator

import pytest

from idempotent_tasks import DynamoDBStore, Status
from idempotent_tasks.core.guard import Replayed, Returned
from idempotent_tasks.core.processes import Process, running_as
from idempotent_tasks.core.unrecorded import UnrecordedOutcomes
from tests.contract.conftest import MakeStore, MovableClock
from tests.support.guarding import KEY, Bench, ManualOutcomes
from tests.testbed.wire import Answer, Fault, Forward, Wire, internal_error, lose_answer, refuse, shift_date

LEASE_SECONDS = 30
#: How many tries of the background are not answered.
TRIES = 3


@pytest.fixture
def outcomes(clock: MovableClock) -> Iterator[ManualOutcomes]:
    """What the process keeps, on the test's clock; the process is that of the test."""
    process = Process()
    process.clock = clock
    with running_as(process):
        manual = ManualOutcomes()
        kept: UnrecordedOutcomes = manual
        process.provide(UnrecordedOutcomes, kept)
        yield manual


@pytest.fixture
def bench(make_store: MakeStore, dynamodb: DynamoDBStore, clock: MovableClock, outcomes: ManualOutcomes) -> Bench:
    """Deliveries to the store of a worker whose clock, and DynamoDB's with it, moves as the test says."""
    return Bench(make_store(clock=clock))


def end_in_an_outage(bench: Bench, wire: Wire, clock: MovableClock, fault: Fault) -> Callable[[], None]:
    """Run a body during which DynamoDB goes away, until its run gives up; return what brings DynamoDB back later."""
    tried = 0

    def fail(forward: Forward) -> Answer | None:
        return fault(lambda: shift_date(clock.offset_seconds)(forward) or Answer(500, b""))

    def go_away(_: object) -> str:
        wire.break_all(fail)
        return "done"

    assert bench.deliver(value=go_away, lease_seconds=LEASE_SECONDS) == Returned("done")
    assert bench.events() == ["Claimed", "Unrecorded"]

    def come_back() -> None:
        nonlocal tried
        wire.heal()

        def decide(forward: Forward) -> Answer | None:
            nonlocal tried
            tried += 1
            return fail(forward) if tried <= TRIES else clock.shift(forward)

        wire.break_all(decide)

    return come_back


@pytest.mark.parametrize("fault", [refuse, internal_error, lose_answer], ids=["refused", "500", "answers lost"])
def test_the_outcome_is_stored_when_dynamodb_is_back(
    bench: Bench, outcomes: ManualOutcomes, wire: Wire, clock: MovableClock, fault: Fault
) -> None:
    """The claim has expired long ago, and its owner is still the last: the condition of the write is met."""
    come_back = end_in_an_outage(bench, wire, clock, fault)
    clock.advance(10 * LEASE_SECONDS)
    come_back()
    outcomes.try_on()
    assert bench.events() == ["Claimed", "Unrecorded", "RecordedLate"]
    assert bench.deliver("two") == Replayed("done")
    assert bench.ran == ["one"]


def test_another_run_that_was_first_keeps_its_key(
    bench: Bench, outcomes: ManualOutcomes, wire: Wire, clock: MovableClock, make_store: MakeStore
) -> None:
    """The late write is refused, and the other's outcome stays."""
    come_back = end_in_an_outage(bench, wire, clock, refuse)
    clock.advance(LEASE_SECONDS)
    come_back()
    wire.heal()
    wire.break_all(clock.shift)
    other = Bench(make_store(clock=clock))
    assert other.deliver("two", "other") == Returned("other")
    outcomes.try_on()
    assert bench.events() == ["Claimed", "Unrecorded", "Superseded"]
    record = other.store.get(KEY)
    assert (record.status, record.data, record.owner) == (Status.COMPLETED, '"other"', "two")


def test_a_deleted_record_is_not_put_back(
    bench: Bench, outcomes: ManualOutcomes, wire: Wire, clock: MovableClock, dynamodb: DynamoDBStore
) -> None:
    """Somebody who deletes the record in the outage wants the key to run again; nothing is stored."""
    come_back = end_in_an_outage(bench, wire, clock, refuse)
    come_back()
    wire.heal()
    wire.break_all(clock.shift)
    dynamodb.forget(KEY)
    outcomes.try_on()
    assert bench.events() == ["Claimed", "Unrecorded", "Unrecorded"]
    assert bench.deliver("two") == Returned("done")
