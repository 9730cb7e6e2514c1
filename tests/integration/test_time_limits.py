"""Time limits from everywhere: how long they let a claim live, and what a soft one may and may not interrupt."""

import threading

import pytest
from celery.exceptions import SoftTimeLimitExceeded, TimeLimitExceeded
from celery.result import AsyncResult

from idempotent_tasks import DynamoDBStore, Record, Status
from tests.integration.conftest import MakeRig
from tests.support.rig import Rig
from tests.testbed.wire import Answer, Fault, Forward, Wire

GRACE_SECONDS = 7.0
BY_ORDER = {"key": "order", "grace": GRACE_SECONDS}

pytestmark = pytest.mark.parametrize("broker", ["redis"], indirect=True)
on_ministack = pytest.mark.parametrize("dynamodb_endpoint", ["ministack"], indirect=True)


def record_of(rig: Rig, store: DynamoDBStore, published: AsyncResult) -> Record:
    """Return the record of a delivery that has claimed its key, or will within seconds."""
    return store.get(rig.journal.wait_for("Claimed", id=published.id)["key"])


def life_of(record: Record) -> float:
    """Return how long after its claim a record's key is held, in seconds."""
    assert record.claimed_at is not None
    return record.held_until - record.claimed_at / 1000


def answer_late(until: threading.Event) -> Fault:
    """Let the server apply the request, and keep its answer back until an event is set."""

    def late(forward: Forward) -> Answer | None:
        reply = forward()
        return reply if until.wait(30) else None

    return late


def test_limits_of_call_task_and_app(make_guarded: MakeRig, store: DynamoDBStore) -> None:
    """A claim lives for the call's limit, else the task's, else the app's, whatever the worker's, plus the grace."""
    tasks = {"charge": {"idempotency": BY_ORDER}, "add": {"time_limit": 60, "idempotency": {"grace": GRACE_SECONDS}}}
    rig = make_guarded(tasks=tasks, settings={"task_time_limit": 100})
    rig.journal.shut("before-effect")
    rig.journal.shut("add-1-2")
    rig.start_worker(3, "--time-limit", "200")
    called = rig.send("charge", "ord-1", time_limit=40, soft_time_limit=30)
    # Messages that name no limit, as other programs publish them: the worker finds it out.
    declared = rig.app.send_task("add", (1, 2), time_limit=None)
    neither = rig.app.send_task("charge", ("ord-2",), time_limit=None)
    limits = {called: 40, declared: 60, neither: 100}
    for published, limit in limits.items():
        assert life_of(record_of(rig, store, published)) == pytest.approx(limit + GRACE_SECONDS, abs=2)
    rig.journal.open("before-effect")
    rig.journal.open("add-1-2")
    assert [rig.result(published) for published in limits] == [None, 3, None]
    assert rig.journal.count("Renewed") == 0


@pytest.mark.parametrize(("options", "limit"), [(["--time-limit", "200"], 200 + GRACE_SECONDS), ([], 60)])
def test_limit_of_the_command_line(
    make_guarded: MakeRig, store: DynamoDBStore, options: list[str], limit: float
) -> None:
    """Where nothing else says anything the worker's ``--time-limit`` counts; without any limit it is a lease."""
    rig = make_guarded(tasks={"charge": {"idempotency": BY_ORDER}})
    rig.journal.shut("before-effect")
    rig.start_worker(1, *options)
    published = rig.send("charge", "ord-1", 17)
    assert life_of(record_of(rig, store, published)) == pytest.approx(limit, abs=2)
    rig.journal.open("before-effect")
    assert rig.result(published) == 17


def test_threads_enforce_no_limit(make_guarded: MakeRig, store: DynamoDBStore) -> None:
    """A body on threads outlives every limit that somebody set, and its claim is renewed for as long."""
    policy = {"key": "order", "lease": 2, "grace": 0}
    rig = make_guarded(tasks={"charge": {"time_limit": 1, "idempotency": policy}}, settings={"task_time_limit": 1})
    rig.journal.shut("before-effect")
    rig.start_worker(1, "--time-limit", "1", pool="threads")
    published = rig.send("charge", "ord-1", 17, time_limit=1)
    rig.journal.wait_for("Renewed", id=published.id, times=5)
    assert life_of(record_of(rig, store, published)) > 3
    rig.journal.open("before-effect")
    assert rig.result(published) == 17
    assert rig.journal.count("started") == rig.journal.count("effect") == 1


@on_ministack
def test_no_renewal_reaches_past_the_hard_limit(make_guarded: MakeRig, wire: Wire) -> None:
    """A leased claim is renewed up to the hard limit, by when the body is dead, and not further."""
    policy = {"key": "order", "lease": 2, "grace": 0}
    rig = make_guarded(wire.endpoint, tasks={"charge": {"time_limit": 3, "idempotency": policy}})
    rig.journal.shut("before-effect")
    rig.start_worker(1)
    published = rig.send("charge", "ord-1", 17)
    with pytest.raises(TimeLimitExceeded):
        rig.result(published)
    rig.journal.wait_for("Released")
    written = [request.body.get("ExpressionAttributeValues", {}) for request in wire.requests]
    (claimed_at,) = (int(values[":claimed_at"]["N"]) for values in written if ":claimed_at" in values)
    # A release, which names its reason, writes its own time.
    kept = [values for values in written if ":in_progress_expiration" in values and ":error" not in values]
    ends = [int(values[":in_progress_expiration"]["N"]) for values in kept]
    # In milliseconds, of which each number may lose a part.
    assert max(ends) - claimed_at == pytest.approx(3000, abs=2)


def test_soft_limit_in_the_body_frees_the_key(make_guarded: MakeRig) -> None:
    """A body that its soft limit ends has released its key: the next delivery runs."""
    rig = make_guarded(tasks={"charge": {"idempotency": BY_ORDER}})
    rig.journal.shut("before-effect")
    rig.start_worker(1)
    published = rig.send("charge", "ord-1", 17, soft_time_limit=1)
    with pytest.raises(SoftTimeLimitExceeded):
        rig.result(published)
    rig.journal.open("before-effect")
    assert rig.result(rig.send("charge", "ord-1", 17)) == 17
    assert [each["attempt"] for each in rig.journal.entries("started")] == [1, 1]
    assert rig.journal.count("Deferred") == 0
    assert rig.journal.count("effect") == 1


@on_ministack
def test_soft_limit_in_the_claim_loses_nothing(make_guarded: MakeRig, store: DynamoDBStore, wire: Wire) -> None:
    """A claim whose answer is awaited when the soft limit comes is given back, and the delivery comes again."""
    rig = make_guarded(wire.endpoint, tasks={"charge": {"idempotency": BY_ORDER}})
    rig.start_worker(1)
    wire.clear()
    proceed = threading.Event()
    wire.break_nth("UpdateItem", 1, answer_late(proceed))
    published = rig.send("charge", "ord-1", 17, soft_time_limit=1)
    key = rig.journal.wait_for("Deferred", id=published.id, reason="SoftTimeLimitExceeded")["key"]
    proceed.set()
    assert rig.journal.count("started") == 0
    assert rig.journal.count("Released", id=published.id) == 1
    assert rig.result(published) == 17
    assert rig.journal.count("Claimed") == rig.journal.count("effect") == 1
    assert rig.journal.count("Deferred") == 1
    assert store.get(key).status is Status.COMPLETED


@on_ministack
def test_soft_limit_in_the_commit_loses_no_result(make_guarded: MakeRig, store: DynamoDBStore, wire: Wire) -> None:
    """The body has returned when the soft limit comes: its result is committed all the same, and once."""
    rig = make_guarded(wire.endpoint, tasks={"charge": {"idempotency": BY_ORDER}})
    rig.start_worker(1)
    wire.clear()
    proceed = threading.Event()
    wire.break_nth("UpdateItem", 2, answer_late(proceed))
    published = rig.send("charge", "ord-1", 17, soft_time_limit=1)
    key = rig.journal.wait_for("Committed", id=published.id)["key"]
    proceed.set()
    assert rig.result(published) == 17
    assert published.state == "SUCCESS"
    assert wire.operations().count("UpdateItem") == 3
    assert rig.journal.count("Committed") == rig.journal.count("effect") == 1
    assert (store.get(key).status, store.get(key).data) == (Status.COMPLETED, "17")
