"""Each moment at which the wire between a worker and its store can break, counted by effects on disk."""

import threading

import pytest

from tests.integration.conftest import MakeRig
from tests.support.rig import Rig
from tests.testbed.brokers import CHILD_LOSS_SECONDS
from tests.testbed.wire import Fault, Wire, cut, hold, hold_answer, internal_error, lose_answer, refuse, throttle

BY_ORDER = {"idempotency": {"key": "order"}}
#: A claim lives for two minutes: longer than any test waits.
LONG = {"time_limit": 120, **BY_ORDER}
#: A claim lives for three seconds, renewed after each one.
BRIEF = {"idempotency": {"key": "order", "lease": 3}}
CLAIM, SECOND = 1, 2

pytestmark = [
    pytest.mark.parametrize("broker", ["redis"], indirect=True),
    pytest.mark.parametrize("dynamodb_endpoint", ["ministack"], indirect=True),
]


def warmed_up(rig: Rig, wire: Wire) -> Rig:
    """Start a worker whose only child has made its client; the requests of that are forgotten."""
    rig.start_worker(1)
    assert rig.result(rig.send("charge", "warm-up", 1)) == 1
    wire.clear()
    return rig


@pytest.mark.parametrize("fault", [cut, throttle, internal_error], ids=["cut", "throttled", "500"])
@pytest.mark.parametrize("ordinal", [CLAIM, SECOND], ids=["claim", "commit"])
def test_one_bad_answer_costs_one_try(make_guarded: MakeRig, wire: Wire, fault: Fault, ordinal: int) -> None:
    """A claim or a commit whose answer broke off, or was an error, is tried again: one run, no deferral."""
    rig = warmed_up(make_guarded(wire.endpoint, tasks={"charge": LONG}), wire)
    wire.break_nth("UpdateItem", ordinal, fault)
    published = rig.send("charge", "ord-1", 17)
    assert rig.result(published) == 17
    assert wire.operations().count("UpdateItem") == 3
    assert rig.journal.count("effect", key="ord-1") == rig.journal.count("Committed", id=published.id) == 1
    assert rig.journal.count("Deferred") == rig.journal.count("Superseded") == rig.journal.count("Unrecorded") == 0


@pytest.mark.parametrize(("task", "fault"), [("retry", lose_answer), ("fail", throttle)], ids=["lost", "throttled"])
def test_release_without_an_answer(make_guarded: MakeRig, wire: Wire, task: str, fault: Fault) -> None:
    """A body asks for a retry, or raises: its release is tried again before the retry is published, and no crash."""
    rig = warmed_up(make_guarded(wire.endpoint, tasks={task: LONG}), wire)
    wire.break_nth("UpdateItem", SECOND, fault)
    assert rig.result(rig.send(task, "ord-1", 1)) == 2
    assert rig.journal.count("effect", key="ord-1") == 1
    assert rig.journal.count("Deferred") == 0
    assert [each["attempt"] for each in rig.journal.entries("started", key="ord-1")] == [1, 1]


@pytest.mark.parametrize("fault", [lose_answer, throttle], ids=["lost", "throttled"])
def test_renewal_without_an_answer(make_guarded: MakeRig, wire: Wire, fault: Fault) -> None:
    """A renewal that was not answered is made again before the claim ends: the body is not run by its duplicate."""
    rig = warmed_up(make_guarded(wire.endpoint, visibility_seconds=30, tasks={"charge": BRIEF}), wire)
    wire.break_nth("UpdateItem", SECOND, fault)
    rig.journal.shut("before-effect")
    published = rig.send("charge", "ord-1", 17)
    rig.journal.wait_for("Renewed", id=published.id, times=2)
    rig.start_worker(1)
    duplicate = rig.send("charge", "ord-1", 18)
    rig.journal.wait_for("Deferred", id=duplicate.id)
    rig.journal.open("before-effect")
    assert [rig.result(published), rig.result(duplicate)] == [17, 17]
    assert rig.journal.count("effect", key="ord-1") == 1
    assert rig.journal.count("Lost") == 0


def test_commit_that_fails_until_the_claim_ends(make_guarded: MakeRig, wire: Wire) -> None:
    """The publisher has the result, `Unrecorded` is observed, and the outcome is stored when the wire is mended."""
    rig = warmed_up(make_guarded(wire.endpoint, visibility_seconds=30, tasks={"charge": BRIEF}), wire)
    wire.break_when(lambda _, ordinal: ordinal > CLAIM, internal_error)
    published = rig.send("charge", "ord-1", 17)
    assert rig.result(published) == 17
    assert rig.journal.count("Unrecorded", id=published.id) == 1
    wire.heal()
    rig.journal.wait_for("RecordedLate", id=published.id)
    assert rig.result(rig.send("charge", "ord-1", 18)) == 17
    assert rig.journal.count("effect", key="ord-1") == 1


@pytest.mark.parametrize("ordinal", [CLAIM, SECOND], ids=["claim", "commit"])
def test_answer_later_than_the_read_timeout(make_guarded: MakeRig, wire: Wire, ordinal: int) -> None:
    """The write was applied, and its answer comes when nobody listens any more: the key is not blocked by it."""
    rig = warmed_up(make_guarded(wire.endpoint, visibility_seconds=30, tasks={"charge": LONG}), wire)
    never = threading.Event()
    wire.break_nth("UpdateItem", ordinal, hold_answer(never))
    published = rig.send("charge", "ord-1", 17)
    assert rig.result(published) == 17
    never.set()
    assert rig.journal.count("effect", key="ord-1") == rig.journal.count("Committed", id=published.id) == 1
    assert rig.result(rig.send("charge", "ord-1", 18)) == 17


def test_claim_that_lands_after_it_was_given_up(make_guarded: MakeRig, wire: Wire) -> None:
    """A claim that was under way for longer than its delivery waited is given back by the message's next delivery."""
    tasks = {"charge": {"idempotency": {"key": "order", "lease": 12}}}
    rig = warmed_up(make_guarded(wire.endpoint, visibility_seconds=30, tasks=tasks), wire)
    late = threading.Event()
    wire.break_nth("UpdateItem", CLAIM, hold(late))
    wire.break_all(refuse)
    published = rig.send("charge", "ord-1", 17)
    rig.journal.wait_for("Deferred", id=published.id, reason="StoreUnavailableError")
    wire.heal()
    late.set()
    assert rig.result(published) == 17
    assert rig.journal.count("Released", id=published.id, reason="Unseen") == 1
    assert rig.journal.count("Deferred", id=published.id, reason="busy") == 0
    assert rig.journal.count("effect", key="ord-1") == rig.journal.count("Committed", id=published.id) == 1


def test_child_that_dies_in_an_outage(make_guarded: MakeRig, wire: Wire) -> None:
    """The parent releases for its dead child when the store is back: the redelivery runs long before the claim ends."""
    rig = make_guarded(wire.endpoint, visibility_seconds=CHILD_LOSS_SECONDS, tasks={"charge": LONG})
    worker = rig.start_worker()
    rig.journal.shut("before-effect")
    published = rig.send("charge", "ord-1", 17)
    held = rig.journal.wait_for("at-gate")
    with wire.outage():
        worker.kill_child(held["pid"])
        rig.journal.open("before-effect")
        rig.journal.wait_for("Deferred", id=published.id, reason="StoreUnavailableError")
    assert rig.result(published) == 17
    assert rig.journal.count("effect") == 1
    assert [each["attempt"] for each in rig.journal.entries("started")] == [1, 2]


def test_worker_that_dies_in_an_outage(make_guarded: MakeRig, wire: Wire) -> None:
    """Nobody is left to release: the redelivery waits out the outage, then the claim. One effect, not lost."""
    rig = make_guarded(wire.endpoint, tasks={"charge": BRIEF})
    worker = rig.start_worker(1)
    rig.journal.shut("before-effect")
    published = rig.send("charge", "ord-1", 17)
    rig.journal.wait_for("at-gate")
    with wire.outage():
        worker.kill()
        rig.journal.open("before-effect")
        rig.start_worker()
        rig.journal.wait_for("Deferred", id=published.id, reason="StoreUnavailableError")
    assert rig.result(published) == 17
    assert rig.journal.count("effect") == 1
