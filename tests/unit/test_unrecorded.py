"""Outcomes that could not be recorded in time: tried on in the process, until they count or another run does."""

from collections.abc import Callable
from dataclasses import replace
from itertools import repeat
from typing import Any

import pytest
from billiard.pool import EX_OK, EX_RECYCLE
from celery.worker import state

from idempotent_tasks import events
from idempotent_tasks.core import unrecorded
from idempotent_tasks.core.guard import Replayed, Returned
from idempotent_tasks.core.processes import Process, running_as, this_process
from idempotent_tasks.core.records import Status
from idempotent_tasks.core.unrecorded import UnrecordedOutcomes
from idempotent_tasks.errors import RecordCorruptError, StoreMisconfiguredError, StoreUnavailableError
from idempotent_tasks.testing import FakeClock, MemoryStore
from idempotent_tasks.worker import signals
from tests.support.guarding import KEY, Bench, Interrupt, ManualOutcomes, grant, make_guard
from tests.support.stores import FaultyStore, Step, down, lost_answer

#: A claim of the tests lives for half a minute.
LEASE_SECONDS = 30.0
#: The end of their outages, in seconds after the outcome was given up.
BACK_SECONDS = 60.0


@pytest.fixture
def outage(store: MemoryStore, clock: FakeClock, outcomes: ManualOutcomes) -> Bench:
    """Deliveries to a store that takes no outcome until `BACK_SECONDS` after the claim of the first has ended."""
    back_at = clock.now() + LEASE_SECONDS + BACK_SECONDS
    return Bench(FaultyStore(store, commit=repeat(until(clock, back_at))))


def until(clock: FakeClock, back_at: float, error: Exception | None = None) -> Step:
    """Fail before a time."""

    def step(call: Callable[[], Any]) -> Any:
        if clock.now() < back_at:
            raise error or StoreUnavailableError("made to fail")
        return call()

    return step


def test_an_outage_longer_than_the_claim_ends_with_the_outcome_on_record(
    outage: Bench, outcomes: ManualOutcomes, store: MemoryStore
) -> None:
    """Nobody has taken the key: the outcome of the run counts, and its duplicate replays it."""
    assert outage.deliver() == Returned("done")
    outcomes.try_on()
    assert outage.events() == ["Claimed", "Unrecorded", "RecordedLate"]
    assert outage.the(events.Unrecorded).kept
    late = outage.the(events.RecordedLate)
    assert late.fence == store.get(KEY).fence
    assert BACK_SECONDS <= late.seconds < BACK_SECONDS + 10
    assert outage.deliver("two") == Replayed("done")
    assert outage.ran == ["one"]


def test_a_failure_for_good_is_tried_on_too(outage: Bench, outcomes: ManualOutcomes, store: MemoryStore) -> None:
    """So is what the body has made of its message's continuation."""

    def fail(run: Any) -> None:
        run.continuation = "its own"
        raise ZeroDivisionError

    outage.deliver(value=fail, guard=outage.guard(store_failures=(ZeroDivisionError,)))
    outcomes.try_on()
    record = store.get(KEY)
    assert (record.status, record.continuation) == (Status.FAILED, "its own")


def test_a_run_that_took_the_key_is_left_alone(
    outage: Bench, outcomes: ManualOutcomes, store: MemoryStore, clock: FakeClock
) -> None:
    """Another run holds the key when the store is back: the late outcome is dropped, and an event says so."""
    outage.deliver()
    clock.advance(LEASE_SECONDS)
    holder = grant(store, "two")
    outcomes.try_on()
    assert outage.events() == ["Claimed", "Unrecorded", "Superseded"]
    assert (store.get(KEY).status, store.get(KEY).owner) == (Status.INPROGRESS, holder.owner)


def test_another_runs_outcome_stays(
    outage: Bench, outcomes: ManualOutcomes, store: MemoryStore, clock: FakeClock
) -> None:
    """Another run has finished the key: the first outcome on record is the only one."""
    outage.deliver()
    clock.advance(LEASE_SECONDS)
    other = Bench(store)
    assert other.deliver("two", "other") == Returned("other")
    outcomes.try_on()
    assert outage.events()[-1] == "Superseded"
    assert store.get(KEY).data == '"other"'


def test_an_outcome_on_record_whose_answers_were_lost_is_recorded(
    store: MemoryStore, outcomes: ManualOutcomes, clock: FakeClock
) -> None:
    """The first try had landed: there is nothing left to do, and observers hear of it."""
    back_at = clock.now() + LEASE_SECONDS

    def step(call: Callable[[], Any]) -> Any:
        return (lost_answer() if clock.now() < back_at else lambda inner: inner())(call)

    bench = Bench(FaultyStore(store, commit=repeat(step)))
    bench.deliver()
    outcomes.try_on()
    assert bench.events() == ["Claimed", "Unrecorded", "RecordedLate"]


@pytest.mark.parametrize("action", ["release", "forget"])
def test_what_an_operator_has_freed_stays_free(
    outage: Bench, outcomes: ManualOutcomes, store: MemoryStore, clock: FakeClock, action: str
) -> None:
    """A key that was released, or whose record was deleted, meanwhile is to run again: no late outcome comes back."""
    outage.deliver()
    clock.advance(LEASE_SECONDS)
    if action == "release":
        store.release(grant(store, "two"), "by hand")
    else:
        store.forget(KEY)
    outcomes.try_on()
    first, last = [event for event in outage.seen if isinstance(event, events.Unrecorded)]
    assert first.kept
    assert (last.kept, last.reason) == (False, "Released" if action == "release" else "Vanished")
    assert outage.deliver("three") == Returned("done")
    assert outage.ran == ["one", "three"]


def test_an_outcome_that_would_have_expired_is_given_up(
    outage: Bench, outcomes: ManualOutcomes, store: MemoryStore
) -> None:
    """Whoever comes after its retention wants a run of their own, and no outcome that is late by more than that."""
    outage.deliver(retention_seconds=BACK_SECONDS / 2)
    outcomes.try_on()
    assert outage.seen[-1] == replace(outage.seen[-2], reason="Expired", kept=False)  # type: ignore[call-arg]
    assert store.get(KEY).status is Status.INPROGRESS


@pytest.mark.parametrize("error", [StoreMisconfiguredError("no permission"), RecordCorruptError("odd")], ids=repr)
def test_a_refusal_is_tried_on_and_holds_up_nobody(
    store: MemoryStore, outcomes: ManualOutcomes, clock: FakeClock, error: Exception
) -> None:
    """A key whose outcome is refused may need a person; those of other keys are stored meanwhile."""
    refusing = Bench(FaultyStore(store, commit=repeat(until(clock, clock.now() + 300, error))))
    refusing.deliver()
    back_at = clock.now() + LEASE_SECONDS + BACK_SECONDS
    away = Bench(FaultyStore(store, commit=repeat(until(clock, back_at))))
    away.deliver(key="another")
    outcomes.try_on()
    assert away.the(events.RecordedLate).seconds < BACK_SECONDS + 10
    assert refusing.the(events.RecordedLate).seconds > BACK_SECONDS + 10


def test_a_store_that_stays_away_holds_up_no_other(
    store: MemoryStore, outcomes: ManualOutcomes, clock: FakeClock
) -> None:
    """The outcome that got no answer is the last to be tried again: another key, or store, comes first."""
    benches = []
    for key, seconds in (("one", 400), ("two", 120), ("three", 120)):
        benches.append(Bench(FaultyStore(store, commit=repeat(until(clock, clock.now() + seconds)))))
        benches[-1].deliver(key=key)
    outcomes.try_on()
    slow, *quick = [bench.the(events.RecordedLate).seconds for bench in benches]
    assert max(quick) < 110
    assert slow > 300


def test_tries_are_few(store: MemoryStore, outcomes: ManualOutcomes, clock: FakeClock) -> None:
    """Some a second from a process, whatever it keeps: an outage is no time for more requests than that."""
    back_at = clock.now() + 20 * LEASE_SECONDS + BACK_SECONDS
    faulty = FaultyStore(store, commit=repeat(until(clock, back_at)))
    bench = Bench(faulty)
    for number in range(20):
        bench.deliver(key=f"order-{number}")
    seconds, before = back_at - clock.now(), len(faulty.calls)
    outcomes.try_on()
    assert bench.events().count("RecordedLate") == 20
    assert 2 * seconds < len(faulty.calls) - before < 12 * seconds


def test_a_stores_bug_ends_the_tries_of_one_outcome(
    store: MemoryStore, outcomes: ManualOutcomes, clock: FakeClock
) -> None:
    """An error that no store may raise is logged and said; the thread goes on with the others."""
    first_bug_at = clock.now() + LEASE_SECONDS

    def step(call: Callable[[], Any]) -> Any:
        return down(ZeroDivisionError() if clock.now() > first_bug_at else None)(call)

    buggy = Bench(FaultyStore(store, commit=repeat(step)))
    buggy.deliver()
    other = Bench(FaultyStore(store, commit=repeat(until(clock, clock.now() + LEASE_SECONDS + 5))))
    other.deliver(key="another")
    outcomes.try_on()
    assert buggy.seen[-1] == replace(buggy.seen[-2], reason="ZeroDivisionError", kept=False)  # type: ignore[call-arg]
    assert other.events()[-1] == "RecordedLate"


@pytest.mark.parametrize(("most", "value"), [("MOST_OUTCOMES", 1), ("MOST_BYTES", 10)])
def test_too_many_are_not_kept(
    outage: Bench, outcomes: ManualOutcomes, monkeypatch: pytest.MonkeyPatch, most: str, value: int
) -> None:
    """Beyond the bounds the newest is not kept, as its event says; the others are stored."""
    monkeypatch.setattr(unrecorded, most, value)
    outage.deliver("one", "first")
    outage.deliver("two", "second", key="another")
    assert [event.kept for event in outage.seen if isinstance(event, events.Unrecorded)] == [True, False]
    outcomes.try_on()
    assert outage.the(events.RecordedLate).key == KEY


def test_an_interrupt_keeps_it_once(store: MemoryStore, outcomes: ManualOutcomes, clock: FakeClock) -> None:
    """The commit is made again after a soft time limit that came too late; one outcome is tried on."""
    bench = Bench(FaultyStore(store, commit=repeat(until(clock, clock.now() + 300))))
    interrupts = iter([Interrupt()])

    def observe(event: events.Event) -> None:
        bench.seen.append(event)
        if isinstance(event, events.Unrecorded):
            for interrupt in interrupts:
                raise interrupt

    assert bench.deliver(guard=make_guard(bench.store, observe)) == Returned("done")
    outcomes.try_on()
    assert bench.the(events.RecordedLate)


def test_a_machine_without_threads_keeps_nothing(
    outage: Bench, outcomes: ManualOutcomes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The delivery has its result all the same, and the last event says that nobody tries on."""

    def refuse() -> Any:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(outcomes, "_spawn", refuse)
    assert outage.deliver() == Returned("done")
    assert [event.kept for event in outage.seen if isinstance(event, events.Unrecorded)] == [True, False]
    outcomes.finish(0)
    assert len(outage.seen) == 3


def test_a_thread_of_the_process_stores_it(store: MemoryStore, clock: FakeClock) -> None:
    """The thread is started for the first outcome, ends after the last, and is started again."""
    process = Process()
    process.clock = clock
    with running_as(process):
        for owner, key in (("one", "first"), ("two", "second")):
            bench = Bench(FaultyStore(store, commit=repeat(until(clock, clock.now() + 300))))
            bench.deliver(owner, key=key)
            process.own(UnrecordedOutcomes).finish(seconds=30)
            assert bench.events() == ["Claimed", "Unrecorded", "RecordedLate"]


class TestTheEndOfAProcess:
    """A process that ends warm waits a little for its outcomes; those that are left are given up."""

    @pytest.fixture(autouse=True)
    def short(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Wait for nothing: no thread works here."""
        monkeypatch.setattr(signals, "FINISH_SECONDS", 0.0)

    @pytest.mark.parametrize("exitcode", [EX_OK, EX_RECYCLE])
    def test_of_a_pool(self, outage: Bench, exitcode: int) -> None:
        """At a warm shutdown, and when a process is replaced after its last task."""
        outage.deliver()
        signals.finish_outcomes_of_child(exitcode=exitcode)
        assert outage.seen[-1] == replace(outage.seen[-2], reason="ProcessEnds", kept=False)  # type: ignore[call-arg]

    def test_that_is_terminated(self, outage: Bench) -> None:
        """A child that was sent SIGTERM has no time to wait."""
        outage.deliver()
        signals.finish_outcomes_of_child(exitcode=-241)
        assert outage.events() == ["Claimed", "Unrecorded"]

    @pytest.mark.parametrize("terminates", [None, False])
    def test_of_a_worker(self, outage: Bench, monkeypatch: pytest.MonkeyPatch, terminates: bool | None) -> None:
        """A worker whose bodies run in its own process, at a warm shutdown."""
        monkeypatch.setattr(state, "should_terminate", terminates)
        outage.deliver()
        signals.finish_outcomes()
        assert outage.seen[-1] == replace(outage.seen[-2], reason="ProcessEnds", kept=False)  # type: ignore[call-arg]

    @pytest.mark.parametrize("exitcode", [True, 0])
    def test_of_a_worker_that_terminates(self, outage: Bench, monkeypatch: pytest.MonkeyPatch, exitcode: int) -> None:
        """A cold shutdown waits for nothing, whatever its exit code."""
        monkeypatch.setattr(state, "should_terminate", exitcode)
        outage.deliver()
        signals.finish_outcomes()
        assert outage.events() == ["Claimed", "Unrecorded"]

    def test_without_outcomes(self, outcomes: ManualOutcomes) -> None:
        """There is nothing to wait for."""
        assert this_process().own(UnrecordedOutcomes) is outcomes
        outcomes.finish(seconds=3600)
