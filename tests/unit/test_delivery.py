"""Reading a request: Celery's own context, from a worker and from an eager call."""

from typing import Any

import pytest
from celery.app.task import Context

from idempotent_tasks.delivery import (
    CONTENT_TYPE_ENTRY,
    DEFERRALS_HEADER,
    HARD_LIMIT_ENTRY,
    KEY_HEADER,
    MOST_UNSEEN,
    OWNER_ENTRY,
    PRIVATE_HEADERS,
    UNSEEN_HEADER,
    WATCHER_ENTRY,
    Delivery,
    read_delivery,
)


def read(**request: Any) -> Delivery:
    """Read a request with these entries."""
    return read_delivery("shop.charge", Context({"id": "4f1c", **request}), ("ord-17",), {"amount": 5})


def test_a_workers_request() -> None:
    """A worker's request has custom headers and the parent's entry beside Celery's own."""
    delivery = read(
        hostname="worker@host", **{KEY_HEADER: "ord-17", DEFERRALS_HEADER: 3, HARD_LIMIT_ENTRY: 30.0, "retries": 2}
    )
    assert (delivery.task, delivery.task_id, delivery.worker) == ("shop.charge", "4f1c", "worker@host")
    assert (delivery.args, delivery.kwargs) == (("ord-17",), {"amount": 5})
    assert delivery.explicit_key == "ord-17"
    assert delivery.deferrals == 3
    assert delivery.hard_limit_seconds == 30.0
    assert not delivery.eager


def test_an_eager_request() -> None:
    """An eager request has its custom headers in ``headers`` only."""
    delivery = read(is_eager=True, headers={KEY_HEADER: "ord-17"})
    assert delivery.eager
    assert delivery.explicit_key == "ord-17"


@pytest.mark.parametrize("request_entries", [{}, {"headers": None}, {"headers": {}}], ids=repr)
def test_a_bare_request(request_entries: dict[str, Any]) -> None:
    """Without headers there is no key, no deferral and no known limit."""
    delivery = read(**request_entries)
    assert delivery.explicit_key is None
    assert delivery.deferrals == 0
    assert delivery.hard_limit_seconds is None
    assert delivery.worker == ""


@pytest.mark.parametrize("forged", ["3", None, 1.5, [1]], ids=repr)
def test_a_forged_count_counts_as_none(forged: Any) -> None:
    """What is not a whole number in the deferrals header is not believed."""
    assert read(**{DEFERRALS_HEADER: forged}).deferrals == 0


def test_the_callers_key_is_not_private() -> None:
    """A retry carries the caller's key on, and nothing of the delivery that it follows."""
    private = {DEFERRALS_HEADER, UNSEEN_HEADER, HARD_LIMIT_ENTRY, CONTENT_TYPE_ENTRY, OWNER_ENTRY, WATCHER_ENTRY}
    assert private == PRIVATE_HEADERS
    assert KEY_HEADER not in PRIVATE_HEADERS


TOKENS = [f"{number:032x}" for number in range(MOST_UNSEEN + 2)]


@pytest.mark.parametrize(
    ("header", "unseen"),
    [
        (None, ()),
        (TOKENS[:2], tuple(TOKENS[:2])),
        (tuple(TOKENS[:1]), tuple(TOKENS[:1])),
        (TOKENS, tuple(TOKENS[:MOST_UNSEEN])),
        (TOKENS[:2] * 2, tuple(TOKENS[:2])),
        ([TOKENS[0], None, 17, "reserved for 4f1c", TOKENS[1].upper() + "\n", "x" * 32, [TOKENS[1]]], (TOKENS[0],)),
        (TOKENS[0], ()),
        ({TOKENS[0]: 1}, ()),
        (b"0" * 32, ()),
    ],
    ids=repr,
)
def test_unseen_claims_are_tokens_of_ours(header: Any, unseen: tuple[str, ...]) -> None:
    """A header's sender can neither name the owner of a reservation, nor make a delivery send many requests."""
    assert read(headers={UNSEEN_HEADER: header}).unseen == unseen
