"""The guard's ordinary outcomes: run and commit, replay, busy, mismatch, failure, crash loop."""

import logging
from typing import Any

import pytest
from celery.exceptions import Ignore, Reject, Retry

from idempotent_tasks import events
from idempotent_tasks.core.encoding import NONE
from idempotent_tasks.core.guard import Replayed, Returned
from idempotent_tasks.core.lease import RunContext
from idempotent_tasks.core.records import Busy, Status
from idempotent_tasks.errors import (
    CrashLoopError,
    PayloadMismatchError,
    ResultEncodingError,
    ResultUnavailableError,
)
from idempotent_tasks.events import log_event
from idempotent_tasks.testing import FakeClock, MemoryStore
from tests.support.guarding import KEY, Bench, deliver, done, grant, make_guard, request_by
from tests.support.stores import FaultyStore, meanwhile

SECRET = "4111111111111111"


def test_a_first_run_claims_runs_and_commits(bench: Bench, store: MemoryStore) -> None:
    """The body runs once, and its outcome is the key's."""
    assert bench.deliver(value={"paid": True}) == Returned({"paid": True})
    record = store.get(KEY)
    assert record.status is Status.COMPLETED
    assert record.data == '{"paid": true}'
    assert (record.task, record.task_id, record.worker) == ("shop.charge", "id-one", "worker@host")
    assert bench.events() == ["Claimed", "Committed"]


def test_a_first_run_costs_two_calls_and_a_replay_one(store: MemoryStore) -> None:
    """Claim and commit; then the claim's refusal brings the result."""
    counted = FaultyStore(store)
    bench = Bench(counted)
    bench.deliver()
    assert counted.calls == ["claim", "commit"]
    bench.deliver("two")
    assert counted.calls == ["claim", "commit", "claim"]


def test_a_second_delivery_replays(bench: Bench) -> None:
    """The body does not run again, whichever task id the delivery carries."""
    bench.deliver("one", "paid")
    assert bench.deliver("two", "another") == Replayed("paid")
    assert bench.ran == ["one"]
    assert bench.the(events.Replayed).holder_task_id == "id-one"


@pytest.mark.parametrize("value", [None, 0, "", [], {}, False], ids=repr)
def test_a_falsy_result_replays_as_itself(bench: Bench, value: Any) -> None:
    """What is nothing to Python is still the key's outcome."""
    assert bench.deliver("one", value) == Returned(value)
    assert bench.deliver("two", "another") == Replayed(value)
    assert bench.ran == ["one"]


def test_the_events_name_the_delivery(bench: Bench) -> None:
    """Every event carries task, task id and key; claim and commit carry the fence."""
    bench.deliver()
    for event in bench.seen:
        assert (event.task, event.task_id, event.key) == ("shop.charge", "id-one", KEY)
    assert bench.the(events.Claimed).attempt == 1
    assert bench.the(events.Claimed).fence == bench.the(events.Committed).fence
    assert bench.the(events.Committed).replayable


def test_a_run_knows_its_key_fence_and_attempt(bench: Bench, store: MemoryStore) -> None:
    """What a body passes downstream is what the record says."""
    told: list[Any] = []
    bench.deliver(value=lambda run: told.append((run.key, run.fence, run.attempt, run.lost)))
    assert told == [(KEY, store.get(KEY).fence, 1, False)]


def test_a_later_run_has_a_larger_fence(bench: Bench, clock: FakeClock) -> None:
    """Fences grow over failures, crashes, expiry and deletion."""
    fences: list[int] = []

    def note(run: RunContext) -> None:
        fences.append(run.fence)
        raise KeyError

    for owner in ("one", "two"):
        with pytest.raises(KeyError):
            bench.deliver(owner, note)
    grant(bench.store, "crashed")
    clock.advance(31)
    with pytest.raises(KeyError):
        bench.deliver("three", note)
    clock.advance(3_700)
    bench.store.forget(KEY)  # type: ignore[attr-defined]
    with pytest.raises(KeyError):
        bench.deliver("four", note)
    assert fences == sorted(set(fences))


def test_a_running_key_is_busy(bench: Bench, clock: FakeClock) -> None:
    """A duplicate is told until when, the body does not run, and the holder is left alone."""
    holder = grant(bench.store, "holder")
    verdict = bench.deliver("two")
    assert isinstance(verdict, Busy)
    assert verdict.until == clock.now() + 30
    assert verdict.holder.owner == "holder"
    assert bench.ran == bench.events() == []
    assert bench.store.get(KEY).owner == holder.owner


def test_a_dead_holders_claim_is_taken_over(bench: Bench, clock: FakeClock) -> None:
    """The claim of a worker that vanished expires, and the next delivery runs the body as attempt 2."""
    grant(bench.store, "dead")
    clock.advance(30.002)
    assert bench.deliver("two") == Returned("done")
    assert bench.the(events.Claimed).attempt == 2


def test_an_expired_outcome_is_run_again(bench: Bench, clock: FakeClock) -> None:
    """After the retention the key starts again."""
    bench.deliver("one", "old")
    clock.advance(3_602)
    assert bench.deliver("two", "new") == Returned("new")
    assert bench.ran == ["one", "two"]


def test_waiting_returns_the_holders_result(bench: Bench, clock: FakeClock, store: MemoryStore) -> None:
    """``on_busy="wait"`` polls until the holder has finished, and costs a call each half second."""
    holder = grant(store, "holder")
    quiet = meanwhile(lambda: None)
    polled = FaultyStore(store, claim=[quiet, quiet, meanwhile(lambda: store.commit(holder, done(), 3600))])
    bench.store = polled
    start = clock.now()
    assert bench.deliver("two", guard=bench.guard(on_busy="wait")) == Replayed("done")
    assert polled.calls == ["claim"] * 3
    assert clock.now() == start + 1.0


def test_waiting_takes_over_a_holder_that_died(bench: Bench, clock: FakeClock) -> None:
    """The waiting delivery runs the body once the claim has expired."""
    grant(bench.store, "dead", lease_seconds=3)
    assert bench.deliver("two", guard=bench.guard(on_busy="wait")) == Returned("done")


def test_waiting_ends(bench: Bench, clock: FakeClock) -> None:
    """After ``wait_timeout`` the delivery is busy like any other, and no second of it is exceeded."""
    grant(bench.store, "holder")
    start = clock.now()
    assert isinstance(bench.deliver("two", guard=bench.guard(on_busy="wait", wait_timeout=3.2)), Busy)
    assert clock.now() == pytest.approx(start + 3.2)


def test_without_wait_nothing_waits(bench: Bench, clock: FakeClock) -> None:
    """``wait_timeout`` counts under ``on_busy="wait"`` only."""
    grant(bench.store, "holder")
    start = clock.now()
    assert isinstance(bench.deliver("two", guard=bench.guard(on_busy="defer", wait_timeout=60)), Busy)
    assert clock.now() == start


@pytest.mark.parametrize("finished", [True, False])
def test_another_payload_fails(bench: Bench, finished: bool) -> None:
    """One key with two payloads is an error of the caller, whether the first is done or still running."""
    holder = grant(bench.store, "holder", validation="five-euros")
    if finished:
        bench.store.commit(holder, done(), 3600)
    with pytest.raises(PayloadMismatchError) as caught:
        bench.deliver("two", validation="six-euros")
    assert (caught.value.task, caught.value.key) == ("shop.charge", KEY)
    assert bench.ran == []
    assert bench.events() == ["Mismatched"]


@pytest.mark.parametrize("error", [KeyError("x"), Retry(), Ignore(), Reject(), GeneratorExit()], ids=repr)
def test_whatever_the_body_raises_releases_the_key(bench: Bench, error: BaseException) -> None:
    """The exception comes out as it was; the next delivery runs at once, and no attempt is counted."""
    with pytest.raises(type(error)) as caught:
        bench.deliver("one", error)
    assert caught.value is error
    assert bench.the(events.Released).reason == type(error).__name__
    assert bench.deliver("two") == Returned("done")
    assert [event.attempt for event in bench.seen if isinstance(event, events.Claimed)] == [1, 1]


def test_an_unwritable_result_completes_the_key(bench: Bench) -> None:
    """The effect has happened: the task reports the error, and no delivery runs the body again."""
    with pytest.raises(ResultEncodingError) as caught:
        bench.deliver("one", {1, 2})
    assert (caught.value.task, caught.value.key) == ("shop.charge", KEY)
    record = bench.store.get(KEY)
    assert (record.status, record.codec, record.data) == (Status.COMPLETED, NONE, None)
    assert not bench.the(events.Committed).replayable
    with pytest.raises(ResultUnavailableError, match="result of type set"):
        bench.deliver("two")
    assert bench.ran == ["one"]


def test_a_result_that_is_too_large_is_returned_and_not_stored(clock: FakeClock) -> None:
    """Only a replay notices that the result did not fit."""
    bench = Bench(MemoryStore(clock=clock, max_data_bytes=100))
    assert bench.deliver("one", "x" * 99) == Returned("x" * 99)
    assert not bench.the(events.Committed).replayable
    with pytest.raises(ResultUnavailableError, match="101 bytes"):
        bench.deliver("two")
    assert bench.ran == ["one"]


def test_a_crash_loop_ends(bench: Bench, clock: FakeClock) -> None:
    """After ``max_crashes`` runs that ended nothing, a delivery fails instead of killing another worker."""
    guard = bench.guard(max_crashes=3)
    for dead in ("one", "two", "three"):
        grant(bench.store, dead)
        clock.advance(31)
    with pytest.raises(CrashLoopError, match="3 times in a row") as caught:
        bench.deliver("four", guard=guard)
    assert (caught.value.task, caught.value.key) == ("shop.charge", KEY)
    assert bench.ran == []
    assert bench.the(events.CrashLooped).crashes == 3


def test_the_last_attempt_before_a_crash_loop_runs(bench: Bench, clock: FakeClock) -> None:
    """``max_crashes`` crashes are allowed, not one less."""
    for dead in ("one", "two"):
        grant(bench.store, dead)
        clock.advance(31)
    assert bench.deliver("three", guard=bench.guard(max_crashes=3)) == Returned("done")


def test_a_crash_loop_can_be_tried_again(bench: Bench, clock: FakeClock) -> None:
    """The failed delivery frees the key and its count, so that publishing again after a repair works."""
    grant(bench.store, "dead")
    clock.advance(31)
    with pytest.raises(CrashLoopError):
        bench.deliver("two", guard=bench.guard(max_crashes=1))
    assert bench.deliver("three", guard=bench.guard(max_crashes=1)) == Returned("done")


@pytest.mark.parametrize("clean_end", [KeyError("x"), Retry()], ids=repr)
def test_a_clean_end_resets_the_count(bench: Bench, clock: FakeClock, clean_end: BaseException) -> None:
    """Crashes count in a row: a run that failed in an orderly way starts the count again."""
    for _ in range(3):
        grant(bench.store, "dead")
        clock.advance(31)
        with pytest.raises(type(clean_end)):
            bench.deliver("orderly", clean_end, guard=bench.guard(max_crashes=2))


def test_a_key_that_was_handed_over_is_not_committed(bench: Bench) -> None:
    """A body that frees its key itself, to publish a successor, leaves the outcome to that one."""

    def body(run: RunContext) -> str:
        run.hand_over("Retry")
        run.hand_over("Retry")
        return "not mine"

    assert bench.deliver("one", body) == Returned("not mine")
    assert bench.events() == ["Claimed", "Released"]
    assert bench.deliver("two") == Returned("done")


def test_nothing_of_the_payload_is_logged(store: MemoryStore, caplog: pytest.LogCaptureFixture) -> None:
    """Results appear in no log record, however a delivery ends."""
    bench = Bench(store)
    guard = make_guard(store, log_event)
    with caplog.at_level(logging.DEBUG):
        bench.deliver("one", SECRET, guard=guard)
        bench.deliver("two", SECRET, guard=guard)
        with pytest.raises(ResultEncodingError) as unwritable:
            bench.deliver("three", {SECRET}, guard=guard, key="other")
        with pytest.raises(ResultUnavailableError) as unavailable:
            bench.deliver("four", guard=guard, key="other")
    assert len(caplog.messages) == 6
    for text in (*caplog.messages, str(unwritable.value), str(unavailable.value)):
        assert SECRET not in text


def test_an_unknown_codec_fails_the_replay(bench: Bench) -> None:
    """A result that this version cannot read is not run again."""
    outcome = done()
    bench.store.commit(grant(bench.store), type(outcome)(status=Status.COMPLETED, codec="cbor", data=b"x"), 3600)
    with pytest.raises(ResultUnavailableError, match="unknown codec 'cbor'"):
        bench.deliver("two")
    assert bench.ran == []


def test_two_keys_do_not_meet(bench: Bench) -> None:
    """A claim holds its own key only."""
    grant(bench.store, "holder")
    assert bench.deliver("two", key="shop.charge#18") == Returned("done")
    assert deliver(bench.guard(), request_by("three", key="shop.charge#18"), lambda run: "again") == Replayed("done")
