"""A claim that was applied although its answer never came, at a task whose body then does not run."""

import pytest
from celery.exceptions import SoftTimeLimitExceeded

from idempotent_tasks import StoreUnavailableError
from idempotent_tasks.events import Released
from tests.support.shop import Shop
from tests.support.stores import FaultyStore, down, lost_answer


@pytest.mark.parametrize("on_store_error", ["defer", "raise"])
def test_a_claim_that_may_have_landed_is_given_back(shop: Shop, on_store_error: str) -> None:
    """A claim was applied and its answer never came: the key is not held by a delivery that runs nothing."""
    shop.app.conf.idempotency_store = FaultyStore(shop.store, claim=[lost_answer(), *[down()] * 40])
    shop.sells(lambda task: "paid", idempotency={"on_store_error": on_store_error})
    shop.deliver()
    assert shop.runs == 0
    assert shop.record.free
    assert [type(event) for event in shop.seen][:1] == [Released]


@pytest.mark.parametrize("error", [StoreUnavailableError(), SoftTimeLimitExceeded()], ids=["store", "soft limit"])
def test_a_claim_that_cannot_be_given_back_is_deferred_all_the_same(shop: Shop, error: Exception) -> None:
    """Whatever ends the one try to give the claim back, the message is published again."""
    shop.app.conf.idempotency_store = FaultyStore(shop.store, claim=[down()] * 40, release=[down(error)])
    shop.sells(lambda task: "paid")
    shop.deliver()
    assert (shop.runs, shop.worker.waiting(), shop.state) == (0, 1, "PENDING")
    assert shop.deferrals() == ["StoreUnavailableError"]
