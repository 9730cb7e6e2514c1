"""Workers whose clocks are wrong: every claim lives and dies by DynamoDB's time."""

import itertools
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace

import pytest

from idempotent_tasks import DynamoDBStore, StoreMisconfiguredError, StoreUnavailableError
from idempotent_tasks.core.clock import SystemClock
from idempotent_tasks.core.records import Busy, Finished, Renewed
from tests.contract.conftest import MakeStore, MovableClock
from tests.support.guarding import KEY, done, grant, request_by
from tests.testbed.wire import Answer, Fault, Forward, Selector, Wire, refuse, shift_date

#: Makes an answer one that is not DynamoDB's own.
Change = Callable[[Answer | None], Answer | None]

LEASE = 30
RETENTION = 3600
#: A ``Date`` names whole seconds.
RESOLUTION = 1.5
#: By how much the machine's clock falls behind while the machine is stopped.
STOOD_STILL = 600


def without(*names: str) -> Change:
    """Leave headers out of an answer."""
    return lambda reply: (
        reply and replace(reply, headers=tuple(pair for pair in reply.headers if pair[0].lower() not in names))
    )


def having(name: str, value: str) -> Change:
    """Add a header to an answer, in place of one of the same name."""

    def changed(reply: Answer | None) -> Answer | None:
        rest = without(name.lower())(reply)
        return rest and replace(rest, headers=(*rest.headers, (name, value)))

    return changed


FOREIGN: dict[str, Change] = {
    "no-request-id": without("x-amzn-requestid"),
    "page": having("Content-Type", "text/html"),
    "gateways-json": having("Content-Type", "application/json"),
    "cached": having("Age", "240"),
    "through-a-cache": having("Via", "1.1 proxy"),
    "cdn": having("X-Cache", "Hit"),
}

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
    answer = skewed(make_store, skew_seconds).claim(request_by("two"))
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
    assert isinstance(dynamodb.claim(request_by("two")), Busy)
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
    assert isinstance(skewed(make_store, skew_seconds).claim(request_by("two")), Finished)
    wire.break_all(shift_date(303))
    grant(skewed(make_store, skew_seconds), "three")


@each_skew
def test_two_wrong_clocks_agree(make_store: MakeStore, dynamodb: DynamoDBStore, skew_seconds: int) -> None:
    """Workers that are twenty minutes apart see one claim end at the same moment."""
    one, two = skewed(make_store, skew_seconds), skewed(make_store, -skew_seconds)
    claim = grant(one)
    answer = two.claim(request_by("two"))
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
    assert isinstance(store.claim(request_by("two")), Busy)


@pytest.mark.usefixtures("dynamodb")
def test_a_clock_that_stood_still_makes_no_stillborn_claim(make_store: MakeStore, wire: Wire) -> None:
    """A worker whose machine was stopped sees from the grant that time has passed, and corrects its claim."""
    store = make_store()
    grant(store, key="shop.charge#other")
    wire.break_all(shift_date(STOOD_STILL))
    claim = grant(store)
    assert claim.expires_at == pytest.approx(time.time() + STOOD_STILL + LEASE, abs=RESOLUTION)
    answer = make_store().claim(request_by("two"))
    assert isinstance(answer, Busy)
    assert answer.until == claim.expires_at


@pytest.mark.usefixtures("dynamodb")
def test_a_claim_whose_answer_shows_that_it_is_over_asks_again(make_store: MakeStore, wire: Wire) -> None:
    """Where another worker took the stillborn claim before it was corrected, the key is busy."""
    store = make_store()
    grant(store, key="shop.charge#other")
    wire.clear()
    later = shift_date(STOOD_STILL)

    def take_first(forward: Forward) -> Answer:
        grant(make_store(), "two")
        return forward()

    wire.break_nth("UpdateItem", 2, lambda forward: later(lambda: take_first(forward)))
    wire.break_all(later)
    answer = store.claim(request_by("one"))
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


class TestWhoTellsTheTime:
    """Answers that are not DynamoDB's own, and one of its own that is wrong."""

    @pytest.fixture(params=[240, -240], ids=["ahead", "behind"])
    def off(self, request: pytest.FixtureRequest) -> int:
        """By how much the wrong answer's ``Date`` is off, in seconds."""
        return int(request.param)

    @pytest.fixture(params=[True, False], ids=["known", "first"])
    def store(self, request: pytest.FixtureRequest, dynamodb: DynamoDBStore, make_store: MakeStore) -> DynamoDBStore:
        """A store that knows the time already, and one that has heard nothing."""
        return dynamodb if request.param else make_store()

    @pytest.mark.parametrize("change", FOREIGN.values(), ids=FOREIGN)
    def test_what_is_not_dynamodbs_tells_no_time(
        self, store: DynamoDBStore, wire: Wire, off: int, change: Change
    ) -> None:
        """However many answers: a gateway's page, a cached answer, one without the id of its request."""
        wire.break_all(foreign(off, change))
        for _ in range(4):
            with suppress(StoreUnavailableError, StoreMisconfiguredError):
                store.claim(request_by())
        assert store.clock.now() == pytest.approx(time.time(), abs=RESOLUTION)

    def test_one_wrong_answer_takes_over_nothing(
        self, store: DynamoDBStore, make_store: MakeStore, wire: Wire, off: int
    ) -> None:
        """DynamoDB's own in every respect, but for its ``Date``: the next answer contradicts it."""
        holder = make_store()
        claim = grant(holder)
        wire.clear()
        wire.break_when(nth(1), shift_date(off))
        answer = store.claim(request_by("two"))
        assert isinstance(answer, Busy)
        assert answer.until == claim.expires_at
        assert store.clock.now() == pytest.approx(time.time(), abs=RESOLUTION)

    def test_one_wrong_answer_gives_nothing_up(self, dynamodb: DynamoDBStore, wire: Wire, off: int) -> None:
        """Nor does it end or prolong the claim that it grants."""
        grant(dynamodb, key="shop.charge#other")
        wire.clear()
        wire.break_when(nth(1), shift_date(off))
        claim = grant(dynamodb)
        assert claim.expires_at == pytest.approx(time.time() + LEASE, abs=RESOLUTION)
        renewed = dynamodb.renew(claim, LEASE, RETENTION)
        assert isinstance(renewed, Renewed)
        assert renewed.claim.expires_at == pytest.approx(time.time() + LEASE, abs=RESOLUTION)

    def test_a_server_that_never_tells_it_is_asked_once(self, make_store: MakeStore, wire: Wire) -> None:
        """The machine's clock is used then, and no claim is preceded by a question again."""
        store = make_store()
        store.create_table()
        wire.clear()
        wire.break_all(foreign(240, FOREIGN["no-request-id"]))
        store = make_store()
        for number in range(3):
            grant(store, key=f"shop.charge#{number}")
        assert wire.operations() == ["GetItem"] + ["UpdateItem"] * 3

    def test_a_right_clock_costs_no_confirmation(
        self, dynamodb: DynamoDBStore, make_store: MakeStore, wire: Wire
    ) -> None:
        """Nor does one that was confirmed once."""
        store = make_store()
        grant(store)
        assert wire.operations() == ["GetItem", "UpdateItem"]
        wire.break_all(shift_date(STOOD_STILL))
        grant(store, key="shop.charge#two")
        wire.requests.clear()
        grant(store, key="shop.charge#three")
        assert wire.operations() == ["UpdateItem"]

    @each_skew
    def test_a_first_answer_that_cannot_be_confirmed_lets_nobody_claim(
        self, dynamodb: DynamoDBStore, make_store: MakeStore, wire: Wire, skew_seconds: int
    ) -> None:
        """It contradicts the machine's clock, and one of the two is wrong: by either a live claim may seem over."""
        claim = grant(dynamodb)
        store = skewed(make_store, skew_seconds)
        wire.clear()
        for number in (2, 3):
            wire.break_nth("GetItem", number, refuse)
        with pytest.raises(StoreUnavailableError, match="time"):
            store.claim(request_by("two"))
        assert wire.operations() == ["GetItem"] * 3
        answer = store.claim(request_by("two"))
        assert isinstance(answer, Busy)
        assert answer.until == claim.expires_at

    def test_a_confirmation_that_fails_is_given_up(self, dynamodb: DynamoDBStore, wire: Wire, off: int) -> None:
        """What was written is not for nothing because the question after it got no answer."""
        grant(dynamodb, key="shop.charge#other")
        wire.clear()
        wire.break_nth("UpdateItem", 1, shift_date(off))
        wire.break_nth("GetItem", 1, refuse)
        wire.break_nth("GetItem", 2, refuse)
        claim = grant(dynamodb)
        assert claim.expires_at == pytest.approx(time.time() + LEASE, abs=RESOLUTION)
        assert wire.operations() == ["UpdateItem", "GetItem", "GetItem"]


def nth(number: int) -> Selector:
    """Select one request of all, by its number from 1."""
    seen = itertools.count(1)
    return lambda _operation, _ordinal: next(seen) == number


def foreign(off: int, change: Change) -> Fault:
    """Have an answer be none of DynamoDB's own, and its ``Date`` be off by some seconds."""
    return lambda forward: change(shift_date(off)(forward))
