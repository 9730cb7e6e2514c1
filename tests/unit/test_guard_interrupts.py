"""The guard when something outside, such as a soft time limit, raises into it at each of its steps."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import pytest

from idempotent_tasks import events
from idempotent_tasks.core.guard import Interrupted, Replayed, Returned
from idempotent_tasks.core.lease import RunContext
from idempotent_tasks.core.records import Status
from idempotent_tasks.events import Event
from idempotent_tasks.testing import FakeClock, MemoryStore
from tests.support.guarding import KEY, Bench, Interrupt, done, grant, make_guard
from tests.support.stores import FaultyStore, down, lost_answer, meanwhile


def test_before_the_claim_lands(store: MemoryStore) -> None:
    """The delivery is over before its body began, and the key is free for the next."""
    bench = Bench(FaultyStore(store, claim=[down(Interrupt())]))
    verdict = bench.deliver()
    assert isinstance(verdict, Interrupted)
    assert isinstance(verdict.error, Interrupt)
    assert bench.ran == []
    assert bench.deliver("two") == Returned("done")


def test_after_the_claim_landed_unseen(store: MemoryStore) -> None:
    """The claim was granted, only its answer was cut off: it is given back instead of blocking the key."""
    bench = Bench(FaultyStore(store, claim=[lost_answer(Interrupt())]))
    assert isinstance(bench.deliver(), Interrupted)
    assert bench.ran == []
    assert bench.the(events.Released).reason == "Interrupt"
    assert bench.deliver("two") == Returned("done")


def test_while_waiting_for_a_holder(store: MemoryStore) -> None:
    """A wait is cut short, and the holder keeps its claim."""
    grant(store, "holder")
    quiet = meanwhile(lambda: None)
    bench = Bench(FaultyStore(store, claim=[quiet, quiet, down(Interrupt())]))
    assert isinstance(bench.deliver(guard=bench.guard(on_busy="wait")), Interrupted)
    assert store.get(KEY).owner == "holder"
    assert store.get(KEY).in_progress_expiration != 0


def test_between_the_claim_and_the_body(store: MemoryStore) -> None:
    """An interrupt that arrives while the claim is announced does not leave the key held by nobody."""
    bench = Bench(store)

    def announce(event: Event) -> None:
        bench.seen.append(event)
        if isinstance(event, events.Claimed):
            raise Interrupt

    guard = make_guard(store, announce)
    with suppress(Interrupt):
        assert isinstance(bench.deliver(guard=guard), Interrupted)
    assert bench.ran == []
    assert store.get(KEY).free


def test_in_the_body(bench: Bench) -> None:
    """The body's time is up: the interrupt comes out and the key is free."""
    with pytest.raises(Interrupt):
        bench.deliver(value=Interrupt())
    assert bench.the(events.Released).reason == "Interrupt"
    assert bench.deliver("two") == Returned("done")


def raising() -> None:
    """Be interrupted."""
    raise Interrupt


def test_a_body_that_handles_its_interrupt_returns(bench: Bench) -> None:
    """What the body makes of it is its own business."""

    def body(run: RunContext) -> str:
        with suppress(Interrupt):
            raising()
        return "in time"

    assert bench.deliver(value=body) == Returned("in time")
    assert bench.deliver("two") == Replayed("in time")


def test_right_after_the_body(bench: Bench, store: MemoryStore) -> None:
    """The body has returned: its result is committed although the interrupt came before the commit."""

    @contextmanager
    def keeping(run: RunContext) -> Iterator[None]:
        yield
        raise Interrupt

    assert bench.deliver(guard=bench.guard(keeping)) == Returned("done")
    assert store.get(KEY).status is Status.COMPLETED


@contextmanager
def interrupted_at_its_end(_: RunContext) -> Iterator[None]:
    """Be interrupted while the last renewal is waited for, whatever the body has done."""
    try:
        yield
    finally:
        raise Interrupt


def test_right_after_a_body_that_raised(bench: Bench, store: MemoryStore) -> None:
    """What the body raised stands: a retry that is on its way must not be reported as a failure."""
    with pytest.raises(ZeroDivisionError):
        bench.deliver(guard=bench.guard(interrupted_at_its_end), value=ZeroDivisionError())
    assert bench.the(events.Released).reason == "ZeroDivisionError"
    assert store.get(KEY).free


def test_a_renewers_own_error_after_the_body_comes_out(bench: Bench, store: MemoryStore) -> None:
    """Only interrupts come too late to mean anything; the outcome, which was on record before, stays."""

    @contextmanager
    def keeping(run: RunContext) -> Iterator[None]:
        yield
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        bench.deliver(guard=bench.guard(keeping))
    assert bench.events() == ["Claimed", "Committed"]
    assert store.get(KEY).status is Status.COMPLETED


def test_before_the_commit_lands(store: MemoryStore) -> None:
    """The result is not lost: the commit is tried again."""
    bench = Bench(FaultyStore(store, commit=[down(Interrupt())]))
    assert bench.deliver() == Returned("done")
    assert bench.deliver("two") == Replayed("done")


def test_after_the_commit_landed_unseen(store: MemoryStore) -> None:
    """The repeated commit finds its own outcome."""
    bench = Bench(FaultyStore(store, commit=[lost_answer(Interrupt())]))
    assert bench.deliver() == Returned("done")
    assert bench.events() == ["Claimed", "Committed"]


def test_while_a_superseding_result_is_read(store: MemoryStore, clock: FakeClock) -> None:
    """The repeated commit is superseded like the first, and the other's result is returned."""

    def takeover() -> None:
        clock.advance(31)
        store.commit(grant(store, "other"), done('"of the other"'), 3600)

    bench = Bench(FaultyStore(store, commit=[meanwhile(takeover)]))
    interrupts: Iterator[Any] = iter([Interrupt()])

    def announce(event: Event) -> None:
        bench.seen.append(event)
        for interrupt in interrupts if isinstance(event, events.Superseded) else ():
            raise interrupt

    guard = make_guard(bench.store, announce)
    assert bench.deliver(guard=guard) == Replayed("of the other")


def test_before_the_release_lands(store: MemoryStore) -> None:
    """The key is freed all the same, and the body's own error comes out."""
    bench = Bench(FaultyStore(store, release=[down(Interrupt())]))
    with pytest.raises(KeyError, match="mine"):
        bench.deliver(value=KeyError("mine"))
    assert bench.deliver("two") == Returned("done")


def test_after_the_release_landed_unseen(store: MemoryStore) -> None:
    """A key that was freed once stays free, also for who took it meanwhile."""
    bench = Bench(FaultyStore(store, release=[lost_answer(Interrupt())]))
    with pytest.raises(KeyError, match="mine"):
        bench.deliver(value=KeyError("mine"))
    assert store.get(KEY).free


def test_in_the_release_of_an_interrupted_claim(store: MemoryStore) -> None:
    """Being cut short twice in a row still frees the key."""
    bench = Bench(FaultyStore(store, claim=[lost_answer(Interrupt())], release=[down(Interrupt())]))
    assert isinstance(bench.deliver(), Interrupted)
    assert store.get(KEY).free


def test_the_process_may_end_anywhere(store: MemoryStore) -> None:
    """What is no interrupt is not held back by a commit; the record then says that the run did not finish."""
    bench = Bench(FaultyStore(store, commit=[down(SystemExit())]))
    with pytest.raises(SystemExit):
        bench.deliver()
    assert store.get(KEY).status is Status.INPROGRESS
