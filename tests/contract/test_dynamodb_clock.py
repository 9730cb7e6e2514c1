"""Workers whose clocks are wrong: every claim lives and dies by DynamoDB's time."""

import time

import pytest

from idempotent_tasks import DynamoDBStore
from idempotent_tasks.clock import SystemClock
from idempotent_tasks.records import Busy, Finished, Renewed
from tests.contract.conftest import MakeStore, MovableClock
from tests.support.guarding import KEY, done, grant, wish
from tests.support.wire import Answer, Forward, Wire, shift_date

LEASE = 30
RETENTION = 3600
#: A ``Date`` names whole seconds.
RESOLUTION = 1.5

each_skew = pytest.mark.parametrize("skew_seconds", [600, -600], ids=["ahead", "behind"])


def skewed(make_store: MakeStore, skew_seconds: int) -> DynamoDBStore:
    """Return the store of a worker whose clock is wrong by this much."""
    clock = MovableClock()
    clock.advance(skew_seconds)
    return make_store(clock=clock)


@each_skew
def test_a_live_claim_is_respected(dynamodb: DynamoDBStore, make_store: MakeStore, skew_seconds: int) -> None:
    """A clock that is ten minutes ahead takes over no claim that has half a minute to live."""
    claim = grant(dynamodb)
    answer = skewed(make_store, skew_seconds).claim(wish("two"))
    assert isinstance(answer, Busy)
    assert answer.until == claim.expires_at


@each_skew
def test_a_lease_is_in_servers_time(dynamodb: DynamoDBStore, make_store: MakeStore, skew_seconds: int) -> None:
    """What the worker writes down is neither ten minutes late nor over before it began."""
    store = skewed(make_store, skew_seconds)
    claim = grant(store)
    record = store.get(KEY)
    assert claim.expires_at == pytest.approx(time.time() + LEASE, abs=RESOLUTION)
    assert record.expiration == pytest.approx(time.time() + RETENTION, abs=RESOLUTION + 1)
    assert (record.claimed_at or 0) / 1000 == pytest.approx(time.time(), abs=RESOLUTION)
    assert claim.fence / 1000 == pytest.approx(time.time(), abs=RESOLUTION)
    assert isinstance(dynamodb.claim(wish("two")), Busy)
    renewed = store.renew(claim, LEASE * 2, RETENTION)
    assert isinstance(renewed, Renewed)
    assert renewed.claim.expires_at == pytest.approx(time.time() + LEASE * 2, abs=RESOLUTION)
    store.commit(claim, done(), RETENTION)
    assert (store.get(KEY).completed_at or 0) / 1000 == pytest.approx(time.time(), abs=RESOLUTION)


@each_skew
def test_a_dead_claim_is_taken_over(
    dynamodb: DynamoDBStore, make_store: MakeStore, wire: Wire, skew_seconds: int
) -> None:
    """A clock that is ten minutes behind waits no longer than the others."""
    grant(dynamodb)
    wire.break_all(shift_date(LEASE + 2))
    assert grant(skewed(make_store, skew_seconds), "two").attempt == 2


@each_skew
def test_an_outcome_lives_its_retention(
    dynamodb: DynamoDBStore, make_store: MakeStore, wire: Wire, skew_seconds: int
) -> None:
    """A wrong clock neither forgets a result early nor replays one that has expired."""
    dynamodb.commit(grant(dynamodb), done(), 300)
    assert isinstance(skewed(make_store, skew_seconds).claim(wish("two")), Finished)
    wire.break_all(shift_date(303))
    grant(skewed(make_store, skew_seconds), "three")


@each_skew
def test_two_wrong_clocks_agree(make_store: MakeStore, dynamodb: DynamoDBStore, skew_seconds: int) -> None:
    """Workers that are twenty minutes apart see one claim end at the same moment."""
    one, two = skewed(make_store, skew_seconds), skewed(make_store, -skew_seconds)
    claim = grant(one)
    answer = two.claim(wish("two"))
    assert isinstance(answer, Busy)
    assert answer.until == claim.expires_at
    # Each corrects no more than it must, so that one lags the server and the other leads it.
    assert one.clock.now() == pytest.approx(two.clock.now(), abs=2 * RESOLUTION)


@each_skew
def test_a_clock_that_is_set_while_the_worker_runs(
    dynamodb: DynamoDBStore, make_store: MakeStore, skew_seconds: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first claim after the machine's clock jumped by ten minutes takes over nothing early either."""
    store = make_store(clock=SystemClock())
    grant(store, key="shop.charge#other")
    grant(dynamodb)
    right = time.time
    monkeypatch.setattr(time, "time", lambda: right() + skew_seconds)
    assert isinstance(store.claim(wish("two")), Busy)


def test_a_clock_that_fell_behind_makes_no_stillborn_claim(dynamodb: DynamoDBStore, make_store: MakeStore) -> None:
    """A worker that stood still with its machine sees from the grant that time has passed, and mends its claim."""
    clock = MovableClock()
    store = make_store(clock=clock)
    grant(store, key="shop.charge#other")
    clock.advance(-600)
    claim = grant(store)
    assert claim.expires_at == pytest.approx(time.time() + LEASE, abs=RESOLUTION)
    answer = dynamodb.claim(wish("two"))
    assert isinstance(answer, Busy)
    assert answer.until == claim.expires_at


def test_a_claim_whose_answer_shows_that_it_is_over_asks_again(
    dynamodb: DynamoDBStore, make_store: MakeStore, wire: Wire
) -> None:
    """Where another worker took the stillborn claim before it was mended, the key is busy."""
    clock = MovableClock()
    store = make_store(clock=clock)
    grant(store, key="shop.charge#other")
    clock.advance(-600)
    wire.clear()

    def take_first(forward: Forward) -> Answer:
        grant(dynamodb, "two")
        return forward()

    wire.break_nth("UpdateItem", 2, take_first)
    answer = store.claim(wish("one"))
    assert isinstance(answer, Busy)
    assert answer.holder.owner == "two"


@each_skew
def test_a_clock_that_was_set_is_corrected_by_the_next_answer(
    dynamodb: DynamoDBStore, make_store: MakeStore, skew_seconds: int
) -> None:
    """Any answer of DynamoDB after the jump puts the time right."""
    clock = MovableClock()
    store = make_store(clock=clock)
    grant(store)
    clock.advance(skew_seconds)
    store.get(KEY)
    assert store.clock.now() == pytest.approx(time.time(), abs=RESOLUTION)
