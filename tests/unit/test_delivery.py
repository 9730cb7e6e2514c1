"""Reading a request: Celery's own context, from a worker and from an eager call."""

from typing import Any
from uuid import UUID

import pytest
from celery.app.task import Context

from idempotent_tasks.delivery import (
    CONTENT_TYPE_ENTRY,
    DEFERRALS_HEADER,
    HARD_LIMIT_ENTRY,
    KEY_HEADER,
    OWNER_ENTRY,
    PRIVATE_HEADERS,
    WATCHER_ENTRY,
    Delivery,
    OwnerToken,
    chord_with_key,
    id_text,
    read_delivery,
)


def read(**request: Any) -> Delivery:
    """Read a request with these entries."""
    return read_delivery("shop.charge", Context({"id": "4f1c", **request}), ("ord-17",), {"amount": 5})


def test_a_workers_request() -> None:
    """A worker's request has custom headers and the parent's entry beside Celery's own."""
    parents = {OWNER_ENTRY: OwnerToken("me"), HARD_LIMIT_ENTRY: 30.0, WATCHER_ENTRY: 17}
    delivery = read(hostname="worker@host", **{KEY_HEADER: "ord-17", DEFERRALS_HEADER: 3, "retries": 2}, **parents)
    assert (delivery.task, delivery.task_id, delivery.worker) == ("shop.charge", "4f1c", "worker@host")
    assert (delivery.args, delivery.kwargs) == (("ord-17",), {"amount": 5})
    assert delivery.explicit_key == "ord-17"
    assert delivery.deferrals == 3
    assert (delivery.owner, type(delivery.owner)) == ("me", str)
    assert (delivery.hard_limit_seconds, delivery.watcher) == (30.0, 17)
    assert not delivery.eager


def test_a_publisher_cannot_play_the_parent() -> None:
    """Headers of the entries' names, which become attributes of a request too, are nobody's word."""
    forged = read(**{OWNER_ENTRY: "holder's", HARD_LIMIT_ENTRY: 86_400.0, WATCHER_ENTRY: 1})
    assert (forged.owner, forged.hard_limit_seconds, forged.watcher) == (None, None, None)


def test_a_publisher_cannot_play_an_eager_call() -> None:
    """A header ``is_eager`` becomes an attribute too; what a worker's parent process received is not eager."""
    assert not read(is_eager=True, **{OWNER_ENTRY: OwnerToken("me")}).eager


@pytest.mark.parametrize(
    ("task_id", "text"),
    [(UUID(int=5), "00000000-0000-0000-0000-000000000005"), (17, "17"), (b"4f1c", "4f1c")],
    ids=repr,
)
def test_a_task_id_is_text(task_id: Any, text: str) -> None:
    """Whatever a publisher gave, the key, the record and the reservation have the same text."""
    assert read(id=task_id).task_id == id_text(task_id) == text


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
    private = {DEFERRALS_HEADER, HARD_LIMIT_ENTRY, CONTENT_TYPE_ENTRY, OWNER_ENTRY, WATCHER_ENTRY}
    assert private == PRIVATE_HEADERS
    assert KEY_HEADER not in PRIVATE_HEADERS


@pytest.mark.parametrize(
    ("entries", "grouped"),
    [
        ({}, False),
        ({"group": "g"}, True),
        ({"chain": [{"options": {}}, {"options": {"group_id": None}}]}, False),
        ({"chain": [{"options": {"group_id": "g"}}, {"options": {}}]}, True),
        ({"chain": ["nonsense", {}, {"options": "nonsense"}]}, False),
    ],
    ids=repr,
)
def test_a_member_of_a_group_is_told(entries: dict[str, Any], grouped: bool) -> None:
    """Itself, or by the last step of its chain; what no producer of Celery's writes is nothing."""
    assert read(**entries).grouped is grouped


@pytest.mark.parametrize("chord", [None, "nonsense", {}, {"options": None}, {"options": {"headers": None}}], ids=repr)
def test_a_chord_without_a_key(chord: Any) -> None:
    """Nor is a body that has another."""
    other = {"options": {"chord": {"options": {KEY_HEADER: "other"}}}}
    assert chord_with_key("ord-17", chord, [other]) is None
    assert chord_with_key(None, {"options": {}}, None) is None
