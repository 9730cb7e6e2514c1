"""The guard from the end of a body to the end of its claim: what renews meanwhile, what is tried, and what is told."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace
from itertools import repeat
from typing import Any

import pytest

from idempotent_tasks import events
from idempotent_tasks.core.guard import Replayed, Returned
from idempotent_tasks.core.lease import LeaseTerms, RunContext
from idempotent_tasks.core.records import Busy
from idempotent_tasks.core.retry import COMMIT_RETRY_SECONDS
from idempotent_tasks.errors import ResultEncodingError, StoreMisconfiguredError, StoreUnavailableError
from idempotent_tasks.testing import FakeClock, MemoryStore
from tests.support.guarding import KEY, Bench, Broken, Keeping, ManualRenewer, done, grant, make_guard, request_by
from tests.support.stores import FaultyStore, MemoryBucket, SlowBucket, down, lost_answer, meanwhile, passes

LEASE = 4.0


@pytest.fixture
def renewer() -> ManualRenewer:
    """A renewer that renews when time passes in `Renewing`."""
    return ManualRenewer()


def keeping(bench: Bench, renewer: ManualRenewer, longest: float | None = None) -> Keeping:
    """Return what keeps a claim of the bench with the renewer, for so many seconds at most."""
    term = LeaseTerms(lease_seconds=LEASE, renewed=True, longest_seconds=longest)

    def keep(run: RunContext) -> AbstractContextManager[None]:
        return renewer.renewing(run, bench.store, term, bench.seen.append)

    return keep


def passing(clock: FakeClock, renewer: ManualRenewer, seconds: float) -> None:
    """Let time pass in which the renewer works."""
    end = clock.now() + seconds
    while clock.now() < end:
        clock.advance(min(LEASE / 8, end - clock.now()))
        renewer.renew_due()


def others_wait(bench: Bench) -> None:
    """Have another delivery meet the key held."""
    assert isinstance(bench.guard().deliver(request_by("other"), lambda _: "stolen"), Busy)


def test_an_upload_that_outlasts_a_lease_is_renewed(bench: Bench, clock: FakeClock, renewer: ManualRenewer) -> None:
    """The lease lives as long as our own work: the body runs once although its result takes six seconds to store."""

    def wait() -> None:
        passing(clock, renewer, 6)
        others_wait(bench)

    guard = bench.guard(keeping(bench, renewer), bucket=SlowBucket(wait))
    assert bench.deliver(value="x" * 100, guard=guard, lease_seconds=LEASE) == Returned("x" * 100)
    assert "Lost" not in bench.events()
    assert bench.events()[-1] == "Committed"


def test_a_result_that_is_slow_to_write_is_renewed(bench: Bench, clock: FakeClock, renewer: ManualRenewer) -> None:
    """So it is where the result's own code takes long."""

    class Slow(dict[str, Any]):
        def items(self) -> Any:
            passing(clock, renewer, 6)
            others_wait(bench)
            return super().items()

    bench.deliver(value=Slow(paid=True), guard=bench.guard(keeping(bench, renewer)), lease_seconds=LEASE)
    assert "Lost" not in bench.events()
    assert bench.ran == ["one"]


@pytest.mark.parametrize("error", [StoreUnavailableError("throttled"), StoreMisconfiguredError("too large")], ids=repr)
def test_a_commit_is_tried_while_the_claim_is_renewed(
    broken: Broken, clock: FakeClock, renewer: ManualRenewer, error: Exception
) -> None:
    """A large outcome may be throttled for longer than a lease, while the small renewals pass."""
    well_at = clock.now() + 20

    def throttled(call: Callable[[], Any]) -> Any:
        passing(clock, renewer, 0.5)
        if clock.now() < well_at:
            raise error
        return call()

    bench = broken(commit=repeat(throttled))
    guard = bench.guard(keeping(bench, renewer))
    assert bench.deliver(guard=guard, lease_seconds=LEASE) == Returned("done")
    assert bench.events()[-1] == "Committed"


@pytest.mark.parametrize(("longest", "most"), [(None, COMMIT_RETRY_SECONDS), (15.0, 15.0)], ids=["no limit", "limit"])
def test_a_commit_that_is_never_taken_ends(
    broken: Broken, clock: FakeClock, renewer: ManualRenewer, longest: float | None, most: float
) -> None:
    """Renewals that pass do not keep a run in its slot indefinitely; nor do they past its hard limit."""

    def refused(call: Callable[[], Any]) -> Any:
        passing(clock, renewer, 0.2)
        raise StoreMisconfiguredError("too large")

    begun = clock.now()
    bench = broken(commit=repeat(refused))
    guard = bench.guard(keeping(bench, renewer, longest))
    assert bench.deliver(guard=guard, lease_seconds=LEASE) == Returned("done")
    assert bench.the(events.Unrecorded).reason == "StoreMisconfiguredError"
    assert most - 2 < clock.now() - begun <= most + 0.5


def test_an_outage_ends_with_the_lease(broken: Broken, clock: FakeClock, renewer: ManualRenewer) -> None:
    """A claim that cannot be renewed either is over after its lease, and so are the tries, at 5 s at least."""

    def away(call: Callable[[], Any]) -> Any:
        passing(clock, renewer, 0.1)
        raise StoreUnavailableError("away")

    begun = clock.now()
    bench = broken(commit=repeat(away), renew=repeat(down()))
    assert bench.deliver(guard=bench.guard(keeping(bench, renewer)), lease_seconds=LEASE) == Returned("done")
    assert 4 < clock.now() - begun <= 5.5


@pytest.mark.parametrize("landed", ["answered", "answer lost"])
def test_a_renewal_that_meets_our_own_commit_is_no_loss(
    store: MemoryStore, clock: FakeClock, renewer: ManualRenewer, landed: str
) -> None:
    """It finds no claim any more, because the run has ended it."""

    def committed(call: Callable[[], Any]) -> Any:
        answer = call()
        passing(clock, renewer, LEASE / 2)
        if landed == "answer lost":
            raise StoreUnavailableError
        return answer

    bench = Bench(FaultyStore(store, commit=[committed]))
    runs: list[RunContext] = []
    guard = bench.guard(keeping(bench, renewer))
    assert bench.deliver(value=runs.append, guard=guard, lease_seconds=LEASE) == Returned(None)
    assert isinstance(bench.store, FaultyStore)
    assert "renew" in bench.store.calls
    assert bench.events() == ["Claimed", "Committed"]
    assert not runs[0].lost


def test_a_renewal_that_meets_our_own_release_is_no_loss(
    bench: Bench, clock: FakeClock, renewer: ManualRenewer
) -> None:
    """A body that handed its key over, for a retry, and runs on for a while is told of no loss."""

    def body(run: RunContext) -> None:
        run.hand_over("Retry")
        passing(clock, renewer, LEASE)

    bench.deliver(value=body, guard=bench.guard(keeping(bench, renewer)), lease_seconds=LEASE)
    assert bench.events() == ["Claimed", "Released"]


def test_a_claim_that_is_lost_during_an_upload_is_told_and_the_commit_decides(
    bench: Bench, store: MemoryStore, clock: FakeClock, renewer: ManualRenewer
) -> None:
    """The renewal finds another owner before the commit is tried: a real loss."""

    def wait() -> None:
        clock.advance(LEASE + 1)
        store.commit(grant(store, "other"), done('"of the other"'), 3600)
        renewer.renew_due()

    guard = bench.guard(keeping(bench, renewer), bucket=SlowBucket(wait))
    assert bench.deliver(guard=guard, lease_seconds=LEASE) == Replayed("of the other")
    assert bench.events() == ["Claimed", "Lost", "Superseded", "Replayed"]


def test_an_outcome_of_a_run_that_was_released_is_not_recorded(bench: Bench, store: MemoryStore) -> None:
    """Somebody freed the key under the body: its result is returned, and there is no holder to wait for."""

    def body(run: RunContext) -> str:
        store.release(run.claim, "by hand")
        return "done"

    assert bench.deliver(value=body) == Returned("done")
    assert bench.events() == ["Claimed", "Unrecorded"]
    assert bench.the(events.Unrecorded).reason == "Released"
    assert store.get(KEY).free
    assert bench.deliver("two", "second") == Returned("second")


def test_an_outcome_after_a_takeover_that_failed_is_recorded(
    bench: Bench, store: MemoryStore, clock: FakeClock
) -> None:
    """The successor's body raised, and nobody has the key: the late run claims it again for its outcome."""

    def body(run: RunContext) -> str:
        clock.advance(31)
        with pytest.raises(KeyError):
            bench.deliver("two", KeyError())
        return "late"

    assert bench.deliver("one", body) == Returned("late")
    assert bench.events() == ["Claimed", "Claimed", "Released", "Committed"]
    assert store.get(KEY).runs == 0
    assert bench.deliver("three") == Replayed("late")


@pytest.mark.parametrize("who", ["holder", "outcome"])
def test_an_outcome_after_two_takeovers(broken: Broken, store: MemoryStore, clock: FakeClock, who: str) -> None:
    """The second one is quicker than the late run's new claim: that one's outcome counts, now or later."""
    others = Bench(store)

    def take() -> None:
        claim = grant(store, "three")
        if who == "outcome":
            store.commit(claim, done('"third"'), 3600)

    def body(run: RunContext) -> str:
        clock.advance(31)
        with pytest.raises(KeyError):
            others.deliver("two", KeyError())
        return "late"

    bench = broken(claim=[passes, meanwhile(take)])
    verdict = bench.deliver("one", body)
    if who == "outcome":
        assert verdict == Replayed("third")
    else:
        assert isinstance(verdict, Busy)
    assert "Superseded" in bench.events()


def test_an_outcome_whose_new_claim_gets_no_answer(broken: Broken, store: MemoryStore, clock: FakeClock) -> None:
    """It is kept, and given up where the key is free: whoever comes next runs."""
    others = Bench(store)

    def body(run: RunContext) -> str:
        clock.advance(31)
        with pytest.raises(KeyError):
            others.deliver("two", KeyError())
        return "late"

    bench = broken(claim=[passes, *repeat(down(), 200)])
    assert bench.deliver("one", body) == Returned("late")
    assert bench.the(events.Unrecorded).kept


def test_each_claim_ends_once_for_who_counts(broken: Broken) -> None:
    """An outcome that cannot be written, and is not recorded either, is no release beside that."""
    bench = broken(commit=repeat(down()))
    with pytest.raises(ResultEncodingError):
        bench.deliver(value={1, 2})
    assert bench.events() == ["Claimed", "Unrecorded"]


def test_what_ends_a_run_before_its_commit_is_told(bench: Bench, store: MemoryStore) -> None:
    """An outcome that cannot even be written, for want of memory, is not recorded, and the claim is left to expire."""

    class Huge(MemoryBucket):
        def put(self, data: bytes, expires_at: float) -> str:
            raise MemoryError

    guard = bench.guard(bucket=Huge(above_bytes=0))
    with pytest.raises(MemoryError):
        bench.deliver(guard=guard)
    assert bench.events() == ["Claimed", "Unrecorded"]
    assert not store.get(KEY).free


@pytest.mark.parametrize("trouble", ["answer lost", "lost"])
def test_a_release_that_finds_nothing_is_told_all_the_same(broken: Broken, store: MemoryStore, trouble: str) -> None:
    """Who counts the claims in flight misses no end."""
    steps = {"answer lost": lost_answer(), "lost": meanwhile(lambda: store.forget(KEY))}
    bench = broken(release=[steps[trouble]])
    with pytest.raises(KeyError):
        bench.deliver(value=KeyError())
    assert bench.events() == ["Claimed", "Released"]
    assert bench.the(events.Released).reason.startswith("KeyError")


def test_an_interrupt_before_the_body_takes_back_its_attempt(store: MemoryStore, clock: FakeClock) -> None:
    """The body did not begin: neither is its claim a crash, nor are those before it forgotten."""
    for owner in ("dead", "too"):
        grant(store, owner)
        clock.advance(31)
    bench = Bench(store)

    def announce(event: events.Event) -> None:
        bench.seen.append(event)
        if isinstance(event, events.Claimed) and event.task_id == "id-one":
            raise Stop

    class Stop(Exception):  # noqa: N818 - as a soft time limit is named
        pass

    guard = make_guard(store, announce, keeps)
    guard = replace(guard, store=replace(guard.store, interrupts=(Stop,)))
    bench.deliver(guard=guard)
    assert bench.ran == []
    assert store.get(KEY).attempt == 2
    assert bench.events() == ["Claimed", "Released"]
    bench.deliver("two")
    assert [event.attempt for event in bench.seen if isinstance(event, events.Claimed)] == [3, 3]


def keeps(_: RunContext) -> AbstractContextManager[None]:
    """Never be asked to keep."""
    raise AssertionError("the body began")
