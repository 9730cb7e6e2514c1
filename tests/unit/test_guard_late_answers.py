"""The guard where an answer arrives late: no body begins, and no outcome is kept, by a time that has passed."""

from itertools import repeat

import pytest

from idempotent_tasks.core.guard import Replayed, Returned, Unclaimed
from idempotent_tasks.core.lease import RunContext
from idempotent_tasks.core.records import Busy, Renewed, Status
from idempotent_tasks.testing import FakeClock, MemoryStore
from tests.support.guarding import KEY, Broken, done, grant, request_by
from tests.support.stores import FaultyStore, lost_answer, meanwhile, stands_still


@pytest.fixture
def begun() -> list[float]:
    """How long the claims of the bodies that began had to live, in seconds."""
    return []


def body(begun: list[float], clock: FakeClock) -> object:
    """Return a body that notes how long its claim lives."""

    def note(run: RunContext) -> str:
        begun.append(run.claim.expires_at - clock.now())
        return "done"

    return note


@pytest.mark.parametrize("pause", [29, 30, 31, 7200])
def test_a_grant_that_is_over_when_it_arrives_is_renewed(
    broken: Broken, clock: FakeClock, begun: list[float], pause: int
) -> None:
    """The process stood still before it saw the answer; nobody took the key, so it is claimed for a whole lease."""
    bench = broken(claim=[stands_still(clock, pause)])
    assert bench.deliver(value=body(begun, clock)) == Returned("done")
    assert begun == [pytest.approx(30, abs=0.01)]
    assert bench.events() == ["Claimed", "Committed"]


def test_a_grant_that_has_time_costs_no_renewal(broken: Broken, clock: FakeClock) -> None:
    """An answer of some seconds is nothing special."""
    bench = broken(claim=[stands_still(clock, 5)])
    bench.deliver()
    assert isinstance(bench.store, FaultyStore)
    assert bench.store.calls == ["claim", "commit"]


@pytest.mark.parametrize("finish", [False, True], ids=["running", "finished"])
def test_a_late_grant_of_a_key_that_another_took_is_none(
    broken: Broken, clock: FakeClock, store: MemoryStore, finish: bool
) -> None:
    """The body does not begin beside, or after, the one that took the key over."""

    def takeover() -> None:
        other = grant(store, "other")
        if finish:
            store.commit(other, done('"of the other"'), 3600)

    bench = broken(claim=[stands_still(clock, 31)], renew=[meanwhile(takeover)])
    verdict = bench.deliver()
    assert verdict == Replayed("of the other") if finish else isinstance(verdict, Busy)
    assert bench.ran == []


def test_a_repeated_claim_is_held_against_the_time_too(
    broken: Broken, clock: FakeClock, store: MemoryStore, begun: list[float]
) -> None:
    """The first answer was lost, and its repetition was seen when the claim was over: its own token is no grant."""
    bench = broken(claim=[lost_answer(), stands_still(clock, 31)])
    assert bench.deliver(value=body(begun, clock)) == Returned("done")
    assert begun == [pytest.approx(30, abs=0.01)]
    assert store.get(KEY).status is Status.COMPLETED


def test_a_renewal_of_a_late_grant_may_be_late_itself(broken: Broken, clock: FakeClock, begun: list[float]) -> None:
    """It is renewed again."""
    bench = broken(claim=[stands_still(clock, 31)], renew=[stands_still(clock, 40)])
    assert bench.deliver(value=body(begun, clock)) == Returned("done")
    assert begun == [pytest.approx(30, abs=0.01)]


def test_grants_that_are_always_late_begin_no_body(broken: Broken, clock: FakeClock) -> None:
    """A store whose every answer outlasts the claim that it grants is none to claim from."""
    bench = broken(claim=repeat(stands_still(clock, 31)), renew=repeat(stands_still(clock, 31)))
    assert isinstance(bench.deliver(), Unclaimed)
    assert bench.ran == []


def test_a_late_grant_that_was_released_is_claimed_again(broken: Broken, clock: FakeClock, store: MemoryStore) -> None:
    """Somebody freed the key of what looked dead: the delivery claims as anybody would."""
    freed = meanwhile(lambda: store.release(grant(store), "HolderEnded", crashed=True))
    bench = broken(claim=[stands_still(clock, 31)], renew=[freed])
    assert bench.deliver() == Returned("done")
    assert bench.ran == ["one"]


def test_an_outcome_whose_time_had_passed_is_kept_from_its_answer_on(
    broken: Broken, clock: FakeClock, store: MemoryStore
) -> None:
    """A record that is put back by a process that stood still is not expired at birth."""
    gone = meanwhile(lambda: store.forget(KEY))
    bench = broken(commit=[gone], restore=[stands_still(clock, 7200)])
    assert bench.deliver() == Returned("done")
    assert store.get(KEY).expiration >= clock.now() + 3600
    assert bench.deliver("two") == Replayed("done")


def test_a_late_claim_of_ones_own_is_no_outcome(broken: Broken, store: MemoryStore, clock: FakeClock) -> None:
    """An early request of the claim, long on its way, lands before the outcome is put back: it is committed to."""
    bench = broken(
        commit=[meanwhile(lambda: store.forget(KEY))], restore=[meanwhile(lambda: store.claim(request_by()))]
    )
    assert bench.deliver() == Returned("done")
    assert bench.events() == ["Claimed", "Committed"]
    assert store.get(KEY).status is Status.COMPLETED
    clock.advance(60)
    assert bench.deliver("two") == Replayed("done")


def test_the_tests_own_step_answers_late(store: MemoryStore, clock: FakeClock) -> None:
    """The call is carried out, and its answer is seen after the pause."""
    faulty: FaultyStore = FaultyStore(store, renew=[stands_still(clock, 9)])
    before = clock.now()
    assert isinstance(faulty.renew(grant(store), 30, 3600), Renewed)
    assert clock.now() == before + 9
    assert store.get(KEY).held_until == before + 30
