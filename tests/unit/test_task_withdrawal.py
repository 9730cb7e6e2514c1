"""A claim that was applied although its answer never came, at a task whose body then does not run."""

from collections.abc import Callable
from itertools import repeat
from typing import Any

import pytest
from celery.exceptions import SoftTimeLimitExceeded

from idempotent_tasks import StoreMisconfiguredError, StoreUnavailableError
from idempotent_tasks.core.delivery import MOST_UNSEEN, UNSEEN_HEADER
from idempotent_tasks.core.processes import this_process
from idempotent_tasks.core.records import reservation_owner
from idempotent_tasks.core.retry import time_left
from idempotent_tasks.events import Claimed, Deferred, Released
from idempotent_tasks.testing import FakeClock
from idempotent_tasks.worker.request import GuardedRequest
from tests.support.guarding import grant
from tests.support.shop import Shop
from tests.support.stores import FaultyStore, Step, down, hangs, lost_answer

#: More calls than a delivery makes.
EACH = 400


def copies_headers(shop: Shop) -> list[Any]:
    """Return what the next message says of unseen claims, and put it back."""
    message = shop.worker.take()
    message.requeue()
    found: list[Any] = message.headers.get(UNSEEN_HEADER)
    return found


@pytest.mark.parametrize("on_store_error", ["defer", "raise"])
def test_a_claim_that_may_have_landed_is_given_back(shop: Shop, on_store_error: str) -> None:
    """A claim was applied and its answer never came: the key is not held by a delivery that runs nothing."""
    shop.app.conf.idempotency_store = FaultyStore(shop.store, claim=[lost_answer(), *[down()] * 40])
    shop.sells(lambda task: "paid", idempotency={"on_store_error": on_store_error})
    shop.deliver()
    assert shop.runs == 0
    assert shop.record.free
    assert shop.record.attempt == 0
    assert [type(event) for event in shop.seen][:1] == [Released]


@pytest.mark.parametrize(
    "error", [StoreUnavailableError(), StoreMisconfiguredError("no"), SoftTimeLimitExceeded()], ids=repr
)
def test_a_claim_that_cannot_be_given_back_is_deferred_all_the_same(shop: Shop, error: Exception) -> None:
    """Whatever ends the one try to give the claim back, the message is published again, and says which claim."""
    shop.app.conf.idempotency_store = FaultyStore(shop.store, claim=[down()] * 40, release=[down(error)])
    shop.sells(lambda task: "paid")
    shop.deliver()
    assert (shop.runs, shop.worker.waiting(), shop.state) == (0, 1, "PENDING")
    assert shop.deferrals() == ["StoreUnavailableError"]
    assert len(copies_headers(shop)) == 1


def test_an_answer_that_refuses_after_one_that_was_lost_is_no_proof(shop: Shop) -> None:
    """The first try may have landed, whatever the last one was told: its claim is given back too."""
    refused = down(StoreMisconfiguredError("the credentials have expired"))
    shop.app.conf.idempotency_store = FaultyStore(shop.store, claim=[lost_answer(), refused])
    shop.sells(lambda task: "paid")
    shop.deliver()
    assert shop.record.free


def test_claims_that_nobody_saw_are_no_crashes(shop: Shop, clock: FakeClock) -> None:
    """A store that carries out every request and answers none, for a long time: the body runs in the end."""
    slow = FaultyStore(shop.store, claim=repeat(lost_answer(), EACH), release=repeat(lost_answer(), EACH))
    shop.app.conf.idempotency_store = slow
    shop.sells(lambda task: "paid")
    shop.publish()
    for _ in range(8):
        shop.worker.run_next()
        clock.advance(70)
    assert shop.runs == 0
    assert len(copies_headers(shop)) == MOST_UNSEEN
    shop.app.conf.idempotency_store = shop.store
    shop.worker.run_next()
    assert (shop.runs, shop.state) == (1, "SUCCESS")
    assert [event.attempt for event in shop.seen if isinstance(event, Claimed)] == [1]


def test_the_next_delivery_gives_back_what_the_last_one_could_not(shop: Shop) -> None:
    """No release was carried out either: the claim that still holds the key is released, and its attempt with it."""
    faulty = FaultyStore(shop.store, claim=[lost_answer(), *[down()] * 40], release=[down()])
    shop.app.conf.idempotency_store = faulty
    shop.sells(lambda task: "paid")
    shop.deliver()
    held = shop.record
    assert not held.free
    assert copies_headers(shop) == [held.owner]
    shop.app.conf.idempotency_store = shop.store
    shop.worker.run_next()
    assert shop.runs == 1
    assert [type(event) for event in shop.seen][1:3] == [Released, Claimed]
    assert [event.attempt for event in shop.seen if isinstance(event, Claimed)] == [1]


def test_crashes_before_are_still_counted(shop: Shop, clock: FakeClock) -> None:
    """What nobody saw takes back its own attempt, and no more."""
    shop.sells(lambda task: "paid")
    for owner in ("dead", "too"):
        grant(shop.store, owner, key=shop.key)
        clock.advance(70)
    shop.app.conf.idempotency_store = FaultyStore(shop.store, claim=[lost_answer(), *[down()] * 40], release=[down()])
    shop.deliver()
    shop.app.conf.idempotency_store = shop.store
    shop.worker.run_next()
    assert [event.attempt for event in shop.seen if isinstance(event, Claimed)] == [3]


def test_a_claim_that_lands_late_is_given_back_by_a_later_copy(shop: Shop) -> None:
    """Where nothing was held yet, the request may still be on its way: the token stays with the message."""
    shop.app.conf.idempotency_store = FaultyStore(shop.store, claim=[down()] * 40)
    shop.sells(lambda task: "paid")
    shop.deliver()
    (token,) = copies_headers(shop)
    holder = shop.claim_elsewhere()
    shop.app.conf.idempotency_store = shop.store
    shop.worker.run_next()
    assert copies_headers(shop) == [token]
    shop.store.release(holder, "Retry")
    grant(shop.store, token, key=shop.key)
    shop.worker.run_next()
    assert (shop.runs, shop.state) == (1, "SUCCESS")


def test_a_soft_limit_while_it_is_given_back_defers(shop: Shop) -> None:
    """The body does not run without the limit that came before it, and the copy says the same of unseen claims."""
    shop.app.conf.idempotency_store = FaultyStore(shop.store, claim=[down()] * 40, release=[down()])
    shop.sells(lambda task: "paid")
    shop.deliver()
    (token,) = copies_headers(shop)
    shop.app.conf.idempotency_store = FaultyStore(shop.store, release=[down(SoftTimeLimitExceeded())])
    shop.worker.run_next()
    assert (shop.runs, shop.deferrals()[-1]) == (0, "SoftTimeLimitExceeded")
    assert token in copies_headers(shop)
    shop.worker.run_next()
    assert (shop.runs, shop.state) == (1, "SUCCESS")


def test_a_message_cannot_free_another_ones_key(shop: Shop) -> None:
    """A header that names a reservation's owner, which is no secret, frees nothing."""
    reserved = grant(shop.store, reservation_owner("another"), key=shop.key, task_id="another")
    shop.sells(lambda task: "paid")
    shop.deliver(headers={UNSEEN_HEADER: [reserved.owner]})
    assert (shop.runs, shop.record.owner) == (0, reserved.owner)


def test_a_retry_says_nothing_of_them(shop: Shop) -> None:
    """The claims were given back before the body ran."""

    def body(task: Any) -> Any:
        if not task.request.retries:
            raise task.retry(countdown=0)
        return "paid"

    shop.app.conf.idempotency_store = FaultyStore(shop.store, claim=[lost_answer(), *[down()] * 40], release=[down()])
    shop.sells(body)
    shop.deliver()
    shop.app.conf.idempotency_store = shop.store
    shop.worker.run_next()
    assert copies_headers(shop) is None


@pytest.fixture
def limited_to(shop: Shop, clock: FakeClock, monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Let a hard time limit be enforced on the test's clock."""

    def limit(seconds: float) -> None:
        monkeypatch.setattr(GuardedRequest, "_enforced_hard_limit", lambda _: seconds)
        monkeypatch.setattr(this_process(), "clock", clock)

    return limit


@pytest.mark.parametrize("limit", [1, 2, 3, 4, 6, 8, 30])
def test_a_store_that_hangs_never_outlasts_a_hard_limit(
    shop: Shop, clock: FakeClock, limited_to: Callable[[float], None], limit: float
) -> None:
    """The delivery is deferred before the limit kills it: the last request is not waited for beyond what is left."""
    limited_to(limit)
    store = FaultyStore(
        shop.store, **{name: repeat(hangs(clock), EACH) for name in ("claim", "release", "note_deferral")}
    )
    shop.app.conf.idempotency_store = store
    shop.sells(lambda task: "paid")
    begun = clock.now()
    shop.deliver()
    assert shop.deferrals() == ["StoreUnavailableError"]
    assert clock.now() - begun < limit
    shop.worker.run_next()
    assert clock.now() - begun < 2 * limit


@pytest.mark.parametrize("limit", [1, 2, 3, 4, 6])
@pytest.mark.parametrize("step", ["claim", "commit", "release"])
def test_a_store_that_is_slow_and_well_has_time(
    shop: Shop, clock: FakeClock, limited_to: Callable[[float], None], limit: float, step: str
) -> None:
    """Each first request has at least half a second, or most of a short limit."""
    told: list[float] = []

    def telling(call: Callable[[], Any]) -> Any:
        told.append(time_left())
        return call()

    limited_to(limit)
    steps: dict[str, list[Step]] = {step: [telling]}
    shop.app.conf.idempotency_store = FaultyStore(shop.store, **steps)

    def body(task: Any) -> str:
        clock.advance(limit * 0.9)
        if step == "release":
            raise KeyError
        return "paid"

    shop.sells(body)
    shop.deliver()
    assert told == [pytest.approx(min(0.75 * limit, 5) if step == "claim" else 0.5, abs=0.01)]


def test_the_header_is_small(shop: Shop, clock: FakeClock) -> None:
    """However long an outage lasts, a message names the last claims only."""
    shop.app.conf.idempotency_store = FaultyStore(shop.store, claim=repeat(down()), release=repeat(down()))
    shop.sells(lambda task: "paid")
    shop.publish()
    for _ in range(MOST_UNSEEN + 3):
        shop.worker.run_next()
    tokens = copies_headers(shop)
    assert len(set(tokens)) == len(tokens) == MOST_UNSEEN
    assert len([event for event in shop.seen if isinstance(event, Deferred)]) == MOST_UNSEEN + 3
