"""Half of a surrogate pair, which JSON carries and UTF-8 cannot: an error at once, or no matter, and never a wait."""

import logging
from typing import Any

import pytest
from celery.app.task import Context

from idempotent_tasks import Idempotency, KeyEncodingError
from idempotent_tasks.core.canonical import canonical
from idempotent_tasks.core.keys import check_task_id
from idempotent_tasks.messaging.claim_request import request_of
from idempotent_tasks.settings import settings_of
from tests.support.shop import Shop

LONE = "ord-\ud800"


@pytest.mark.parametrize("policy", [{}, {"key": "'fixed'", "expires": 3600}], ids=["task-id-as-key", "key-of-its-own"])
def test_a_task_id_that_cannot_be_stored_fails_at_once(
    shop: Shop, policy: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would be refused at each try, which looks like a store that is away; nothing is asked and nothing deferred."""
    # pytest-xdist cannot send a report whose captured log has the task id in it.
    monkeypatch.setattr(logging.getLogger("celery.app.trace"), "disabled", True)
    failures: list[BaseException] = []
    shop.sells(
        lambda task: "paid",
        idempotency=Idempotency(**policy),
        # Celery's result backends do not take such an id either.
        ignore_result=True,
        on_failure=lambda task, error, *_: failures.append(error),
    )
    shop.deliver(task_id=LONE)
    assert [type(each) for each in failures] == [KeyEncodingError]
    assert LONE not in str(failures[0])
    assert (shop.runs, shop.worker.waiting(), shop.store.records()) == (0, 0, [])


def test_a_publisher_that_asks_first_is_told_so(shop: Shop) -> None:
    """Under ``at_publish`` no message goes out, and no key is reserved."""
    shop.sells(lambda task: "paid", idempotency=Idempotency(key="'fixed'", expires=3600, at_publish="join"))
    with pytest.raises(KeyEncodingError, match="half of a surrogate pair"):
        shop.publish(task_id=LONE)
    assert (shop.worker.waiting(), shop.store.records()) == (0, [])


@pytest.mark.parametrize("key", [LONE, "\udfff"], ids=ascii)
def test_an_explicit_key_is_refused_where_it_is_given(shop: Shop, key: str) -> None:
    """Before anything is published; and where another producer sent it, before anything is stored."""
    shop.sells(lambda task: "paid")
    with pytest.raises(KeyEncodingError):
        shop.publish(idempotency_key=key)
    shop.deliver(headers={"idempotency_key": key})
    assert shop.state == "FAILURE"
    assert isinstance(shop.result, KeyEncodingError)
    assert shop.store.records() == []


def test_an_argument_is_a_key_like_any_other(shop: Shop) -> None:
    """What is digested is ASCII, so such an argument has a key, and another one another."""
    assert canonical(LONE).isascii()
    assert canonical(LONE) != canonical("ord-\ud801")


def test_a_workers_name_is_written_out(shop: Shop) -> None:
    """A name of odd bytes on the command line (``--hostname``) is no reason to put off all that the worker receives."""
    shop.sells(lambda task: "paid")
    context = Context(id=shop.id, hostname="w\udcff@host")
    assert request_of(shop.task, settings_of(shop.app), context, (), {}).worker == "w\\udcff@host"


def test_a_pair_is_a_character() -> None:
    """Only half of a pair has no form."""
    assert check_task_id("ord-\U0001f600", "shop.charge") == "ord-\U0001f600"
