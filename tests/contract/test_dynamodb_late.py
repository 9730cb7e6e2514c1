"""Requests and answers that are late: what arrives after its time changes nothing that is younger than it."""

import threading
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from idempotent_tasks import DynamoDBStore, StoreUnavailableError
from idempotent_tasks.core.records import Busy, Finished, Released, Renewed, Superseded, reservation_owner
from tests.contract.conftest import MakeStore, MovableClock
from tests.support.guarding import KEY, done, grant, request_by
from tests.testbed.wire import Answer, Fault, Forward, Wire, shift_date

LEASE = 30
RETENTION = 3600
BOUND_SECONDS = 10.0

Late = Callable[[float], Fault]


@pytest.fixture
def late(clock: MovableClock) -> Late:
    """Makes a fault: the request is carried out, and its answer is seen so many seconds later."""

    def after(seconds: float) -> Fault:
        def fault(forward: Forward) -> Answer | None:
            reply = shift_date(clock.offset_seconds)(forward)
            clock.advance(seconds)
            return reply

        return fault

    return after


@pytest.fixture
def moved(make_store: MakeStore, dynamodb: DynamoDBStore, wire: Wire, clock: MovableClock) -> DynamoDBStore:
    """The store of a worker whose clock, and DynamoDB's with it, moves as the test says."""
    store = make_store(clock=clock)
    grant(store, key="shop.charge#other")
    wire.clear()
    return store


def late_request(wire: Wire, ask: Callable[[], object], *, which: int = 1) -> Callable[[], None]:
    """Send a request that stays on its way when its connection ends, and return what lets it arrive.

    Args:
        wire: what it is sent through.
        ask: sends the request.
        which: of several writes that ``ask`` sends.
    """
    arrive, arrived = threading.Event(), threading.Event()

    def pass_on(forward: Forward) -> None:
        arrive.wait(BOUND_SECONDS)
        forward()
        arrived.set()

    def held(forward: Forward) -> None:
        threading.Thread(target=pass_on, args=(forward,), daemon=True).start()

    wire.break_nth("UpdateItem", wire.operations().count("UpdateItem") + which, held)
    with pytest.raises(StoreUnavailableError):
        ask()

    def let_it_arrive() -> None:
        arrive.set()
        assert arrived.wait(BOUND_SECONDS), "the request did not arrive"

    return let_it_arrive


@pytest.mark.parametrize("crashed", [False, True], ids=["by the run", "for the dead"])
def test_a_claim_request_older_than_the_release_takes_nothing(
    dynamodb: DynamoDBStore, wire: Wire, crashed: bool
) -> None:
    """The first try of a claim lands when the run of the second is over: the key stays free."""
    grant(dynamodb, key="shop.charge#other")
    land = late_request(wire, lambda: dynamodb.claim(request_by()))
    assert dynamodb.release(grant(dynamodb), "ValueError", crashed=crashed) == Released()
    released = dynamodb.get(KEY)
    land()
    assert dynamodb.get(KEY) == released
    assert grant(dynamodb, "two").fence == released.fence + 1


def test_a_claim_request_older_than_the_release_of_an_unseen_claim(dynamodb: DynamoDBStore, wire: Wire) -> None:
    """So it is where no answer was seen at all."""
    grant(dynamodb, key="shop.charge#other")
    first = late_request(wire, lambda: dynamodb.claim(request_by()))
    claim = grant(dynamodb)
    assert dynamodb.release(type(claim).unseen(claim.request), "Unseen", began=False) == Released()
    first()
    assert dynamodb.get(KEY).free
    assert grant(dynamodb, "two").attempt == 1


def test_a_claim_request_older_than_a_reservation_takes_nothing(dynamodb: DynamoDBStore, wire: Wire) -> None:
    """The first try of a run lands when that run has reserved the key for its retry: the retry finds no other run."""
    grant(dynamodb, key="shop.charge#other")
    land = late_request(wire, lambda: dynamodb.claim(request_by(task_id="id-one")))
    assert dynamodb.release(grant(dynamodb, task_id="id-one"), "Retry", nothing_done=True) == Released()
    grant(dynamodb, reservation_owner("id-one"), task_id="id-one")
    reserved = dynamodb.get(KEY)
    land()
    assert dynamodb.get(KEY) == reserved
    retried = grant(dynamodb, "two", task_id="id-one")
    assert (retried.runs, retried.attempt) == (1, 1)


def test_a_delivery_whose_clock_is_behind_takes_its_reservation(dynamodb: DynamoDBStore, raw: Any, wire: Wire) -> None:
    """By less than a second, which no answer corrects: it asks once more."""
    grant(dynamodb, reservation_owner("id-one"), task_id="id-one")
    raw.update_item(
        TableName=dynamodb.table,
        Key={"id": {"S": KEY}},
        UpdateExpression="SET claimed_at = claimed_at + :ahead",
        ExpressionAttributeValues={":ahead": {"N": "900"}},
    )
    wire.clear()
    claim = grant(dynamodb, task_id="id-one")
    assert (claim.runs, claim.attempt) == (1, 1)
    assert wire.operations().count("UpdateItem") == 2


def expire(store: DynamoDBStore, raw: Any) -> None:
    """Let the record be past its time, as if nobody had deleted it since."""
    raw.update_item(
        TableName=store.table,
        Key={"id": {"S": KEY}},
        UpdateExpression="SET expiration = :past",
        ExpressionAttributeValues={":past": {"N": "1"}},
    )


@pytest.mark.parametrize("since", ["released", "committed", "expired"])
@pytest.mark.parametrize("old", ["missing", "outcome", "claim"])
def test_a_claim_request_older_than_a_fresh_start_takes_nothing(
    dynamodb: DynamoDBStore, raw: Any, wire: Wire, old: str, since: str
) -> None:
    """It was to start the key afresh too; what another has started since counts, and its next run is no first one."""
    grant(dynamodb, key="shop.charge#other")
    if old != "missing":
        claim = grant(dynamodb, "old")
        if old == "outcome":
            dynamodb.commit(claim, done(), RETENTION)
        expire(dynamodb, raw)
    land = late_request(wire, lambda: dynamodb.claim(request_by()), which=2 if old == "claim" else 1)
    claim = grant(dynamodb, "two")
    assert claim.runs == 1
    if since == "released":
        dynamodb.release(claim, "ValueError")
    else:
        dynamodb.commit(claim, done(), RETENTION)
    if since == "expired":
        expire(dynamodb, raw)
        assert grant(dynamodb, "three").runs == 1
    before = dynamodb.get(KEY)
    land()
    assert dynamodb.get(KEY) == before
    if since == "released":
        assert grant(dynamodb, "three").runs == 2


@pytest.mark.parametrize("ask", ["renew", "commit"])
def test_a_renewal_or_commit_older_than_the_release_changes_nothing(
    dynamodb: DynamoDBStore, wire: Wire, ask: str
) -> None:
    """What a dead process had on its way does not hold, or finish, the key again."""
    claim = grant(dynamodb)
    calls = {
        "renew": lambda: dynamodb.renew(claim, LEASE, RETENTION),
        "commit": lambda: dynamodb.commit(claim, done(), RETENTION),
    }
    land = late_request(wire, calls[ask])
    dynamodb.release(claim, "WorkerLostError", crashed=True)
    released = dynamodb.get(KEY)
    land()
    assert dynamodb.get(KEY) == released
    assert isinstance(dynamodb.commit(claim, done(), RETENTION), Superseded)


def test_a_renewal_older_than_another_shortens_nothing(dynamodb: DynamoDBStore, wire: Wire) -> None:
    """It would end the claim under its body, which knows of the later end."""
    claim = grant(dynamodb)
    land = late_request(wire, lambda: dynamodb.renew(claim, LEASE, RETENTION))
    answer = dynamodb.renew(claim, LEASE, RETENTION)
    assert isinstance(answer, Renewed)
    land()
    assert dynamodb.get(KEY).in_progress_expiration == answer.claim.in_progress_expiration


def test_a_claimer_whose_clock_is_behind_asks_once_more(
    dynamodb: DynamoDBStore, wire: Wire, refusal_read: list[str]
) -> None:
    """It is refused by the time of the release, sees it, and asks after it, without waiting."""
    dynamodb.release(grant(dynamodb), "Retry")
    released = dynamodb.get(KEY)
    dynamodb.forget(KEY)
    dynamodb.restore(replace(released, in_progress_expiration=int(dynamodb.clock.now() + 5) * 1000))
    wire.clear()
    grant(dynamodb, "two")
    assert wire.operations() == ["UpdateItem", *refusal_read, "UpdateItem"]


def test_a_grant_of_an_earlier_try_that_is_over_is_none(
    moved: DynamoDBStore, wire: Wire, clock: MovableClock, late: Late
) -> None:
    """The own token in a refusal says who holds the key, not for how long: the claim is renewed if it is still ours."""
    grant(moved)
    wire.break_nth("UpdateItem", wire.operations().count("UpdateItem") + 1, late(LEASE + 5))
    wire.break_all(clock.shift)
    claim = grant(moved, unresolved_seconds=2 * RETENTION)
    assert claim.expires_at == pytest.approx(clock.now() + LEASE, abs=2)
    assert moved.get(KEY).expiration == pytest.approx(clock.now() + 2 * RETENTION, abs=3)
    assert isinstance(moved.claim(request_by("two")), Busy)


def test_a_grant_of_an_earlier_try_that_another_took_over_is_none(
    moved: DynamoDBStore, wire: Wire, clock: MovableClock
) -> None:
    """It is answered with what the other made of the key."""
    grant(moved)

    def taken_over(forward: Forward) -> Answer | None:
        reply = shift_date(clock.offset_seconds)(forward)
        clock.advance(LEASE + 5)
        moved.commit(grant(moved, "two"), done(), RETENTION)
        return reply

    ordinal = wire.operations().count("UpdateItem") + 1
    wire.break_nth("UpdateItem", ordinal, taken_over)
    wire.break_all(clock.shift)
    assert isinstance(moved.claim(request_by()), Finished)


@pytest.mark.parametrize("name", ["renew", "commit"])
def test_a_write_that_is_answered_late_is_reckoned_again(
    moved: DynamoDBStore, wire: Wire, clock: MovableClock, late: Late, name: str
) -> None:
    """A process that stood still for two hours leaves no renewal that is over, and no outcome that has expired."""
    claim = grant(moved)
    wire.break_nth("UpdateItem", wire.operations().count("UpdateItem") + 1, late(2 * RETENTION))
    wire.break_all(clock.shift)
    if name == "renew":
        answer = moved.renew(claim, LEASE, RETENTION)
        assert isinstance(answer, Renewed)
        assert answer.claim.expires_at == pytest.approx(clock.now() + LEASE, abs=2)
    else:
        moved.commit(claim, done(), RETENTION)
        assert moved.get(KEY).expiration == pytest.approx(clock.now() + RETENTION, abs=3)
        assert isinstance(moved.claim(request_by("two")), Finished)


def test_a_commit_in_time_costs_one(moved: DynamoDBStore, wire: Wire) -> None:
    """Nothing is written twice where no time has passed."""
    claim = grant(moved)
    wire.clear()
    moved.commit(claim, done(), RETENTION)
    assert wire.operations() == ["UpdateItem"]
