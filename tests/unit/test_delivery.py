"""Reading a request: Celery's own context, from a worker and from an eager call."""

from collections.abc import Callable
from typing import Any
from uuid import UUID

import pytest
from celery.app.task import Context

from idempotent_tasks.core.delivery import (
    COPY_HEADER,
    DEFERRALS_HEADER,
    HARD_LIMIT_ENTRY,
    KEY_HEADER,
    MESSAGE_ENTRY,
    MOST_UNSEEN,
    OWNER_ENTRY,
    PRIVATE_HEADERS,
    RECOVERIES_HEADER,
    UNSEEN_HEADER,
    WAITS_HEADER,
    WATCHER_ENTRY,
    Delivery,
    OwnerToken,
    ReceivedMessage,
    chord_with_key,
    following_signatures,
    id_text,
    inherited_headers,
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


#: What a tracing SDK puts into a message.
TRACE = {"sentry-trace": "0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-1"}


@pytest.mark.parametrize(
    "place",
    [
        pytest.param(lambda ours: ours, id="attributes"),
        # The message of a worker has both: ours beside Celery's own, and an inner dict under the name of ``headers``.
        pytest.param(lambda ours: {**ours, "headers": TRACE}, id="beside-a-tracers"),
        pytest.param(lambda ours: {"headers": {**TRACE, **ours}}, id="headers"),
        pytest.param(lambda ours: {"headers": {"headers": {**TRACE, **ours}}}, id="inner-headers"),
        pytest.param(lambda ours: {"headers": {**ours, "headers": TRACE}}, id="eager-beside-a-tracers"),
    ],
)
def test_our_headers_are_found_wherever_celery_has_put_them(place: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    """Tracing SDKs put an inner ``headers`` into the message, which takes the place of the message's own."""
    ours = {KEY_HEADER: "ord-17", DEFERRALS_HEADER: 3, COPY_HEADER: "token/4f1c/0"}
    delivery = read(**place(ours))
    assert (delivery.explicit_key, delivery.deferrals, delivery.copy) == ("ord-17", 3, "token")


@pytest.mark.parametrize("headers", [None, "x", [("a", 1)], {"headers": None}, {"headers": "x"}], ids=repr)
def test_headers_that_are_none(headers: Any) -> None:
    """What somebody else has put there is no reason to fail."""
    assert read(headers=headers).deferrals == 0


@pytest.mark.parametrize("forged", ["3", None, 1.5, [1], -1, True, 2**31, 10**30, float("nan")], ids=repr)
def test_a_forged_count_counts_as_none(forged: Any) -> None:
    """What is no number of deferrals is not believed."""
    assert read(**{DEFERRALS_HEADER: forged}).deferrals == 0


@pytest.mark.parametrize(
    "header", [None, 3, b"token/4f1c/0", "", "/4f1c/0", "token", "token/", "token/other/0", "token/4f1c/1"], ids=repr
)
def test_a_copy_is_one_of_this_very_message(header: Any) -> None:
    """A header that a publish has taken over from the message around it makes no copy of it."""
    assert read(**{COPY_HEADER: header}).copy is None


def test_a_successor_is_another_copy_of_the_same_message() -> None:
    """It has its own token, which nobody can guess, and reads its own headers back."""
    delivery = read(retries=2)
    first, second = delivery.successor(), delivery.successor()
    assert first.copy is not None
    assert first.copy != second.copy
    again = read(retries=2, **first.headers)
    assert (again.copy, again.deferrals) == (first.copy, 1)
    assert (read(retries=2, **again.successor().headers)).deferrals == 2


def test_a_header_is_no_message_of_the_parents() -> None:
    """Only the worker's parent process says what was received."""
    message = ReceivedMessage(
        queue="q", body=b"", content_type="a/b", content_encoding="utf-8", headers={}, properties={}
    )
    assert read(properties={MESSAGE_ENTRY: message}).received is message
    for forged in (
        {"properties": {MESSAGE_ENTRY: {"queue": "elsewhere"}}},
        {MESSAGE_ENTRY: message},
        {"properties": 3},
    ):
        assert read(**forged).received is None


@pytest.mark.parametrize("request_headers", [{}, {"headers": TRACE}], ids=["plain", "traced"])
def test_what_a_retry_inherits(request_headers: dict[str, Any]) -> None:
    """The caller's key, the headers that Celery sends, and nothing of the delivery that it follows, at any depth."""
    private = dict.fromkeys(PRIVATE_HEADERS, "private")
    request = Context({"id": "4f1c", KEY_HEADER: "ord-17", **private, **request_headers})
    sent = {**private, "tenant": "acme", "headers": {**private, **TRACE}}
    assert inherited_headers(request, sent) == {KEY_HEADER: "ord-17", "tenant": "acme", "headers": TRACE}


def test_the_callers_key_is_not_private() -> None:
    """A retry carries the caller's key on, and nothing of the delivery that it follows."""
    copied = {DEFERRALS_HEADER, COPY_HEADER, UNSEEN_HEADER, WAITS_HEADER, RECOVERIES_HEADER}
    private = {*copied, HARD_LIMIT_ENTRY, OWNER_ENTRY, WATCHER_ENTRY}
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


@pytest.mark.parametrize(
    ("body", "names"),
    [
        (((), {}, {"callbacks": [{"task": "a"}], "errbacks": None, "chain": [{"task": "b"}]}), "ab"),
        (((), {}, {"chain": None, "chord": {"task": "c"}}), "c"),
        ({"callbacks": [{"task": "a", "options": {"link": {"task": "b"}, "chord": {"task": "c"}}}], "args": ()}, "abc"),
        (((), {}, {"chain": [{"task": "a", "subtask_type": "chord", "kwargs": {"header": [{"task": "b"}]}}]}), "ab"),
        (((), {}, {"chain": [{"task": "a", "kwargs": {"body": {"task": "b"}, "tasks": [{"task": "c"}]}}]}), "a"),
        (((), {}, {"callbacks": [{"task": "a", "options": None}, "b", None]}), "a"),
        (((), {}, {}), ""),
        (((), {}, None), ""),
        ((), ""),
        (b"pickled", ""),
    ],
)
def test_what_follows_a_message(body: Any, names: str) -> None:
    """The signatures that its worker will send, and not what looks like one in a task's own arguments."""
    assert sorted(each["task"] for each in following_signatures(body)) == sorted(names)
