"""How long claims live, and their renewal: after a third of the lease, never past the limit, never after the end."""

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from itertools import repeat
from typing import Any

import pytest

from idempotent_tasks import events
from idempotent_tasks.core.guard import Returned
from idempotent_tasks.core.lease import DEFAULT_LEASE_SECONDS, LeaseRenewer, LeaseTerms, RunContext, lease_terms
from idempotent_tasks.core.policy import Idempotency
from idempotent_tasks.core.records import Busy
from idempotent_tasks.core.retry import time_left
from idempotent_tasks.errors import StoreMisconfiguredError, StoreUnavailableError
from idempotent_tasks.events import Event
from idempotent_tasks.testing import FakeClock, MemoryStore
from tests.support.guarding import KEY, TERMS, Bench, ManualRenewer, done, grant, request_by, start, unseen
from tests.support.stores import FaultyStore, down, lost_answer, stands_still


@pytest.fixture
def renewer() -> LeaseRenewer:
    """A renewer that the test drives."""
    return ManualRenewer()


@pytest.fixture
def counted(store: MemoryStore) -> FaultyStore:
    """The store, with its calls counted."""
    return FaultyStore(store)


def renewals(store: FaultyStore) -> int:
    """Return how many renewals the store was asked for."""
    return store.calls.count("renew")


@pytest.mark.parametrize(
    ("policy", "hard_limit", "term"),
    [
        pytest.param(
            Idempotency(), 30.0, LeaseTerms(lease_seconds=35, renewed=False, longest_seconds=35), id="limit-plus-grace"
        ),
        pytest.param(
            Idempotency(grace=0), 30.0, LeaseTerms(lease_seconds=30, renewed=False, longest_seconds=30), id="no-grace"
        ),
        pytest.param(
            Idempotency(),
            None,
            LeaseTerms(lease_seconds=DEFAULT_LEASE_SECONDS, renewed=True, longest_seconds=None),
            id="no-limit",
        ),
        pytest.param(
            Idempotency(lease=9), None, LeaseTerms(lease_seconds=9, renewed=True, longest_seconds=None), id="lease-only"
        ),
        pytest.param(
            Idempotency(lease=9),
            30.0,
            LeaseTerms(lease_seconds=9, renewed=True, longest_seconds=35),
            id="lease-and-limit",
        ),
        pytest.param(
            Idempotency(lease=90),
            30.0,
            LeaseTerms(lease_seconds=35, renewed=False, longest_seconds=35),
            id="lease-too-long",
        ),
    ],
)
def test_how_long_a_claim_lives(policy: Idempotency, hard_limit: float | None, term: LeaseTerms) -> None:
    """An enforced limit needs no renewal; a lease, or a body that nothing limits, does."""
    assert lease_terms(policy, hard_limit) == term


def test_a_short_body_costs_no_renewal(renewer: LeaseRenewer, counted: FaultyStore, clock: FakeClock) -> None:
    """A task of one second is over long before a third of its lease."""
    run = start(counted)
    with renewer.renewing(run, counted, TERMS, unseen):
        clock.advance(1)
        assert renewer.renew_due() == pytest.approx(19)
    assert renewals(counted) == 0


def test_a_claim_is_renewed_at_a_third_of_its_lease(
    renewer: LeaseRenewer, counted: FaultyStore, clock: FakeClock
) -> None:
    """Then it lives a whole lease from that moment, and so on."""
    run = start(counted)
    seen: list[Event] = []
    with renewer.renewing(run, counted, TERMS, seen.append):
        clock.advance(19.9)
        renewer.renew_due()
        assert renewals(counted) == 0
        for number in (1, 2, 3):
            clock.advance(20.1)
            assert renewer.renew_due() == pytest.approx(20)
            assert renewals(counted) == number
            assert run.claim.expires_at == pytest.approx(clock.now() + 60, abs=0.001)
            record = counted.get(KEY)
            assert record.in_progress_expiration == run.claim.in_progress_expiration
            assert record.expiration > run.claim.expires_at
    assert seen == [events.Renewed(task="shop.charge", task_id="id-one", key=KEY, worker="worker@host")] * 3
    assert not run.lost


def test_a_claim_is_never_prolonged_past_the_hard_limit(
    renewer: LeaseRenewer, counted: FaultyStore, clock: FakeClock
) -> None:
    """By then the body is dead, and the next delivery must not wait for it."""
    begin, run = clock.now(), start(counted, lease=9)
    term = LeaseTerms(lease_seconds=9, renewed=True, longest_seconds=12)
    with renewer.renewing(run, counted, term, unseen):
        clock.advance(3)
        renewer.renew_due()
        assert run.claim.expires_at == pytest.approx(begin + 12, abs=0.001)
        for _ in range(5):
            clock.advance(3)
            renewer.renew_due()
        assert run.claim.expires_at == pytest.approx(begin + 12, abs=0.001)
        assert renewer.renew_due() is None


def test_the_time_that_the_claim_itself_took_counts(
    renewer: LeaseRenewer, counted: FaultyStore, clock: FakeClock
) -> None:
    """An answer that was long on its way moves neither the limit nor the first renewal."""
    begin, run = clock.now(), start(counted, lease=9)
    clock.advance(2.5)
    with renewer.renewing(run, counted, LeaseTerms(lease_seconds=9, renewed=True, longest_seconds=12), unseen):
        assert renewer.renew_due() == pytest.approx(0.5, abs=0.001)
        for _ in range(5):
            clock.advance(3)
            renewer.renew_due()
    assert run.claim.expires_at == pytest.approx(begin + 12, abs=0.001)


def test_an_outage_shorter_than_the_lease_is_survived(
    renewer: LeaseRenewer, store: MemoryStore, clock: FakeClock
) -> None:
    """After a failed renewal the next try comes soon, so that the claim outlives the outage."""
    run = start(store)
    begin = clock.now()

    def outage(call: Callable[[], Any]) -> Any:
        if clock.now() < begin + 55:
            raise StoreUnavailableError
        return call()

    faulty = FaultyStore(store, renew=repeat(outage))
    with renewer.renewing(run, faulty, TERMS, unseen):
        while clock.now() < begin + 58:
            pause = renewer.renew_due()
            assert pause is not None
            clock.advance(pause)
        assert run.claim.expires_at > begin + 110
    assert not run.lost
    assert renewals(faulty) < 20


@pytest.mark.parametrize("error", [StoreMisconfiguredError("no permission"), StoreUnavailableError("down")], ids=repr)
def test_a_failed_renewal_is_tried_again(
    renewer: LeaseRenewer, store: MemoryStore, clock: FakeClock, error: Exception
) -> None:
    """Whatever the store's trouble is, the body goes on and so do the tries."""
    faulty = FaultyStore(store, renew=[down(error)])
    run = start(faulty)
    with renewer.renewing(run, faulty, TERMS, unseen):
        clock.advance(20)
        assert renewer.renew_due() == pytest.approx(3)
        clock.advance(3.001)
        renewer.renew_due()
        assert run.claim.expires_at == pytest.approx(clock.now() + 60, abs=0.001)


def test_a_renewals_answer_lost_is_renewed_again(renewer: LeaseRenewer, store: MemoryStore, clock: FakeClock) -> None:
    """The repetition is the owner's own and is granted."""
    faulty = FaultyStore(store, renew=[lost_answer()])
    run = start(faulty)
    with renewer.renewing(run, faulty, TERMS, unseen):
        clock.advance(20)
        renewer.renew_due()
        clock.advance(3.001)
        renewer.renew_due()
    assert not run.lost
    assert run.claim.expires_at == pytest.approx(clock.now() + 60, abs=0.001)


def test_a_lost_claim_is_announced_once(renewer: LeaseRenewer, counted: FaultyStore, clock: FakeClock) -> None:
    """The body can ask whether its claim is gone; nothing is renewed for it any more."""
    run = start(counted, lease=5)
    seen: list[Event] = []
    with renewer.renewing(run, counted, TERMS, seen.append):
        clock.advance(21)
        other = grant(counted, "other")
        assert renewer.renew_due() is None
        assert run.lost
        clock.advance(60)
        assert renewer.renew_due() is None
    assert seen == [events.Lost(task="shop.charge", task_id="id-one", key=KEY, worker="worker@host")]
    assert renewals(counted) == 1
    assert counted.get(KEY).owner == other.owner


def test_a_renewal_that_is_answered_after_its_own_end_is_renewed_again(
    renewer: LeaseRenewer, store: MemoryStore, clock: FakeClock
) -> None:
    """Such an answer renews nothing, and is told as nothing: the next try follows at once."""
    faulty = FaultyStore(store, renew=[stands_still(clock, 61)])
    run = start(faulty)
    seen: list[Event] = []
    with renewer.renewing(run, faulty, TERMS, seen.append):
        clock.advance(21)
        assert renewer.renew_due() == pytest.approx(20, abs=0.01)
    assert run.claim.expires_at == pytest.approx(clock.now() + 60, abs=0.01)
    assert [type(event) for event in seen] == [events.Renewed]
    assert not run.lost


def test_a_renewal_that_is_answered_after_its_own_end_may_be_a_loss(
    renewer: LeaseRenewer, store: MemoryStore, clock: FakeClock
) -> None:
    """Another delivery took the key meanwhile."""

    def late(call: Callable[[], Any]) -> Any:
        answer = call()
        clock.advance(61)
        grant(store, "other")
        return answer

    faulty = FaultyStore(store, renew=[late])
    run = start(faulty)
    seen: list[Event] = []
    with renewer.renewing(run, faulty, TERMS, seen.append):
        clock.advance(21)
        renewer.renew_due()
    assert [type(event) for event in seen] == [events.Lost]
    assert run.lost


@pytest.mark.parametrize("late", [10, 30])
def test_the_next_renewal_is_due_by_the_claims_end(
    renewer: LeaseRenewer, store: MemoryStore, clock: FakeClock, late: int
) -> None:
    """An answer that was long on its way, or that shows another time, leaves less of the lease than was asked for."""
    faulty = FaultyStore(store, renew=[stands_still(clock, late)])
    run = start(faulty)
    with renewer.renewing(run, faulty, TERMS, unseen):
        clock.advance(20.001)
        pause = renewer.renew_due()
        assert renewals(faulty) == (1 if late < 20 else 2)
        assert pause == pytest.approx(20 - late if late < 20 else 20, abs=0.01)


def test_a_renewal_that_hangs_leaves_time_for_two_more(
    renewer: LeaseRenewer, store: MemoryStore, clock: FakeClock
) -> None:
    """It is waited for during a third of the lease at most, whatever the client's own time-outs are."""
    told: list[float] = []

    def hang(call: Callable[[], Any]) -> Any:
        told.append(time_left())
        raise StoreUnavailableError

    faulty = FaultyStore(store, renew=[hang])
    with renewer.renewing(start(faulty), faulty, TERMS, unseen):
        clock.advance(21)
        renewer.renew_due()
    assert told == [pytest.approx(20)]


def test_a_finished_claim_is_not_reopened(renewer: LeaseRenewer, counted: FaultyStore, clock: FakeClock) -> None:
    """A renewal after the commit changes no outcome."""
    run = start(counted)
    with renewer.renewing(run, counted, TERMS, unseen):
        counted.commit(run.claim, done(), 3600)
        clock.advance(21)
        renewer.renew_due()
    assert counted.get(KEY).data == '"done"'
    assert run.lost


def test_a_run_that_was_handed_over_is_renewed_no_more(
    renewer: LeaseRenewer, counted: FaultyStore, clock: FakeClock
) -> None:
    """A body may go on after ``retry(throw=False)``, whose claim is released: a renewal would only be refused."""
    run = start(counted)
    with renewer.renewing(run, counted, TERMS, unseen):
        run.hand_over("Retry")
        clock.advance(21)
        renewer.renew_due()
    assert renewals(counted) == 0
    assert not run.lost


def test_nothing_is_renewed_after_the_block(renewer: LeaseRenewer, counted: FaultyStore, clock: FakeClock) -> None:
    """Also not where the body raised."""
    run = start(counted)
    with pytest.raises(KeyError), renewer.renewing(run, counted, TERMS, unseen):
        raise KeyError
    clock.advance(30)
    assert renewer.renew_due() is None
    assert renewals(counted) == 0


def test_a_block_that_ended_is_not_renewed_by_a_late_look(
    renewer: LeaseRenewer, counted: FaultyStore, clock: FakeClock
) -> None:
    """The renewer found two claims due, and the second one's block ended while it renewed the first."""
    blocks: dict[str, ExitStack] = {owner: ExitStack() for owner in ("one", "two")}

    def end_the_other(event: Event) -> None:
        blocks["two" if event.key == "one" else "one"].close()

    for owner, block in blocks.items():
        block.enter_context(renewer.renewing(start(counted, owner, key=owner), counted, TERMS, end_the_other))
    clock.advance(21)
    renewer.renew_due()
    assert renewals(counted) == 1
    for block in blocks.values():
        block.close()


def test_claims_are_renewed_side_by_side(renewer: LeaseRenewer, counted: FaultyStore, clock: FakeClock) -> None:
    """One renewer serves every thread of a process; the next look is at the claim that is due first."""
    first, second = start(counted, "one", key="a"), start(counted, "two", key="b", lease=30)
    short = replace(TERMS, lease_seconds=30)
    with renewer.renewing(first, counted, TERMS, unseen), renewer.renewing(second, counted, short, unseen):
        assert renewer.renew_due() == pytest.approx(10)
        clock.advance(10.001)
        renewer.renew_due()
        assert renewals(counted) == 1
        clock.advance(10.001)
        renewer.renew_due()
        assert renewals(counted) == 3


def test_one_stores_bug_does_not_stop_the_others(renewer: LeaseRenewer, store: MemoryStore, clock: FakeClock) -> None:
    """An error that no store may raise costs its own claim, not those of the whole process."""
    faulty = FaultyStore(store, renew=repeat(down(ZeroDivisionError())))
    first, second = start(faulty, "one", key="a"), start(store, "two", key="b")
    with renewer.renewing(first, faulty, TERMS, unseen), renewer.renewing(second, store, TERMS, unseen):
        clock.advance(21)
        for _ in range(2):
            renewer.renew_due()
        assert second.claim.expires_at == pytest.approx(clock.now() + 60, abs=0.001)


def test_a_guard_keeps_its_claim_with_a_renewer(renewer: LeaseRenewer, counted: FaultyStore, clock: FakeClock) -> None:
    """A body longer than its lease commits under the renewed claim, and no other delivery ran."""
    bench = Bench(counted)

    def body(run: RunContext) -> str:
        for _ in range(10):
            clock.advance(20.1)
            renewer.renew_due()
            assert isinstance(bench.guard().deliver(request_by("other"), lambda _: "stolen"), Busy)
        return "done"

    guard = bench.guard(lambda run: renewer.renewing(run, counted, TERMS, unseen))
    assert bench.deliver(value=body, guard=guard, lease_seconds=60) == Returned("done")
    assert renewals(counted) == 10
