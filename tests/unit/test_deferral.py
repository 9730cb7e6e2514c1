"""Deferral: how long, and that the copy is the same message, on a real transport."""

from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import pytest
from celery import Celery, Task
from hypothesis import given
from hypothesis import strategies as st
from kombu.message import Message

from idempotent_tasks import IdempotentTask
from idempotent_tasks.core.records import Claim, Granted
from idempotent_tasks.events import Deferred, Event
from idempotent_tasks.messaging.deferral import (
    EXPIRY_MARGIN,
    EXPIRY_PART,
    FIRST_COUNTDOWN,
    LONGEST_COUNTDOWN,
    MARGIN,
    SHORTEST_COUNTDOWN,
    SHORTEST_OF_ALL,
    countdown_seconds,
)
from idempotent_tasks.testing import MemoryStore
from tests.support.guarding import request_by
from tests.support.inline import UNREACHABLE, InlineWorker

#: Everything that a caller can say about a message.
OPTIONS: dict[str, Any] = {
    "expires": datetime(2100, 1, 1, tzinfo=UTC),
    "time_limit": 30,
    "soft_time_limit": 20,
    "priority": 3,
    "headers": {"tenant": "acme"},
    "ignore_result": True,
    "shadow": "charge of acme",
    "retries": 2,
    "argsrepr": "(***)",
    "kwargsrepr": "{***}",
    "root_id": "root",
    "parent_id": "parent",
    "group_id": "group",
    "group_index": 4,
    "reply_to": "caller",
    "stamped_headers": ["batch"],
    "batch": "b7",
}


@pytest.fixture
def charge(app: Celery) -> Task:
    """A task keyed by its order."""

    @app.task(base=IdempotentTask, shared=False, name="shop.charge", idempotency={"key": "order"})
    def charge(order: str, amount: int = 5) -> int:
        return amount

    return charge


@pytest.fixture
def note(app: Celery) -> Task:
    """What follows in chains and chords."""

    @app.task(name="shop.note", shared=False)
    def note(*_: Any) -> None:
        """Do nothing."""

    return note


@pytest.fixture
def holder(charge: Task, worker: InlineWorker, store: MemoryStore) -> Iterator[Claim]:
    """A claim on the key of order ``17``, by a delivery that runs elsewhere."""
    charge.apply(("17",))
    (record,) = store.records()
    store.forget(record.key)
    answer = store.claim(request_by("holder", key=record.key))
    assert isinstance(answer, Granted)
    yield answer.claim
    assert store.get(record.key).owner == "holder"


def essence(message: Message) -> dict[str, Any]:
    """Return what makes a message: all but what says when it was published, and that it is a copy."""
    changed = ("eta", "idempotency_deferrals", "idempotency_copy", "idempotency_waits_for")
    headers = {name: value for name, value in message.headers.items() if name not in changed}
    passing = {"delivery_tag", "delivery_info"}
    properties = {name: value for name, value in message.properties.items() if name not in passing}
    return {
        "headers": headers,
        "properties": properties,
        "body": message.body,
        "content": (message.content_type, message.content_encoding),
        "route": message.delivery_info["routing_key"],
    }


def defer(worker: InlineWorker) -> tuple[Message, Message]:
    """Run the next message, which must be deferred, and return it and its copy."""
    original = worker.run_next()
    assert original.acknowledged
    copy = worker.take()
    assert worker.waiting() == 0
    return original, copy


@given(st.integers(0, 10_000))
def test_the_countdown_grows_to_a_limit(deferrals: int) -> None:
    """Each deferral doubles it, up to the longest; jitter adds up to a quarter."""
    expected = min(FIRST_COUNTDOWN * 2 ** min(deferrals, 20), LONGEST_COUNTDOWN)
    assert expected <= countdown_seconds(deferrals, None, None) <= expected * 1.25


@given(st.integers(0, 20), st.floats(-10, 100))
def test_the_countdown_ends_soon_after_the_claim(deferrals: int, claim_left: float) -> None:
    """A duplicate that waits for a claim is back when it expires, and never at once."""
    countdown = countdown_seconds(deferrals, claim_left, None)
    assert SHORTEST_COUNTDOWN <= countdown <= max(claim_left + MARGIN, SHORTEST_COUNTDOWN)


@given(st.integers(0, 20), st.none() | st.floats(0, 100), st.floats(0.3, 3600))
def test_the_countdown_stays_under_half_the_visibility_timeout(
    deferrals: int, claim_left: float | None, timeout: float
) -> None:
    """Or the broker would deliver the waiting copy twice."""
    assert countdown_seconds(deferrals, claim_left, timeout) <= timeout / 2


def test_duplicates_do_not_come_back_at_one_moment() -> None:
    """Many copies of one key are spread."""
    assert len({countdown_seconds(3, None, None) for _ in range(50)}) > 40


@given(st.integers(0, 20), st.none() | st.floats(0, 100), st.floats(0.05, 1e6))
def test_the_countdown_ends_before_the_message_expires(
    deferrals: int, claim_left: float | None, expires_in: float
) -> None:
    """A worker drops a message that has expired, so it comes back while there is time to act."""
    countdown = countdown_seconds(deferrals, claim_left, None, expires_in)
    assert countdown <= max(expires_in - EXPIRY_MARGIN, expires_in * EXPIRY_PART, SHORTEST_OF_ALL)


def test_an_expiry_that_is_far_changes_nothing() -> None:
    """Nor does one that has passed make a loop without a pause."""
    assert countdown_seconds(0, None, None, 3600) >= FIRST_COUNTDOWN
    assert countdown_seconds(0, None, None, -5) == SHORTEST_OF_ALL


def test_a_deferred_message_is_the_same_message(
    charge: Task, note: Task, worker: InlineWorker, holder: Claim, seen: list[Event]
) -> None:
    """Id, retries, arguments, representation, canvas, expiry, limits, priority, route and headers all stay."""
    charge.apply_async(
        ("17",),
        {"amount": 7},
        task_id="id-1",
        link=note.s(1),
        link_error=note.s(2),
        chain=[note.s(3)],
        chord=note.s(4),
        **OPTIONS,
    )
    original, copy = defer(worker)
    assert essence(copy) == essence(original)
    (deferred,) = [event for event in seen if isinstance(event, Deferred)]
    assert (deferred.task, deferred.task_id, deferred.key) == ("shop.charge", "id-1", holder.key)
    assert (deferred.reason, deferred.deferrals) == ("busy", 1)


def test_the_copy_carries_a_countdown_and_a_count(charge: Task, worker: InlineWorker, holder: Claim) -> None:
    """The next deferral knows how many there were; the estimated time lies in the future."""
    charge.apply_async(("17",), countdown=0)
    before = datetime.now(UTC)
    tokens: set[str] = set()
    for count in (1, 2, 3):
        worker.run_next()
        copy = worker.take()
        assert copy.headers["idempotency_deferrals"] == count
        tokens.add(copy.headers["idempotency_copy"])
        assert (datetime.fromisoformat(copy.headers["eta"]) - before).total_seconds() >= SHORTEST_COUNTDOWN
        copy.requeue()
    worker.take().ack()
    assert len(tokens) == 3


def test_an_explicit_key_travels_with_the_copy(charge: Task, worker: InlineWorker, store: MemoryStore) -> None:
    """The copy claims the key that the caller gave."""
    charge.apply_async(("17",), idempotency_key="ord-17")
    worker.run_next()
    (record,) = store.records()
    store.forget(record.key)
    store.claim(request_by("holder", key=record.key))
    charge.apply_async(("18",), idempotency_key="ord-17")
    _, copy = defer(worker)
    assert copy.headers["idempotency_key"] == "ord-17"


@pytest.mark.parametrize("serializer", ["json", "pickle"])
def test_the_serializer_is_kept(
    app: Celery, charge: Task, worker: InlineWorker, holder: Claim, serializer: str
) -> None:
    """Arguments that only one serializer can write stay writable."""
    app.conf.accept_content = ["json", "pickle"]
    charge.apply_async(("17",), {"amount": {1, 2} if serializer == "pickle" else [1, 2]}, serializer=serializer)
    original, copy = defer(worker)
    assert copy.content_type == original.content_type
    assert copy.payload == original.payload


def test_compression_is_kept(charge: Task, worker: InlineWorker, holder: Claim) -> None:
    """A payload that a broker takes only when compressed can be deferred."""
    charge.apply_async(("17",), {"amount": "x" * 10_000}, compression="zlib")
    original, copy = defer(worker)
    assert copy.payload == original.payload
    assert copy.headers.get("compression") == original.headers["compression"]


def test_a_call_that_asked_for_its_result_keeps_asking(
    app: Celery, store: MemoryStore, worker: InlineWorker, holder: Claim
) -> None:
    """The call's own ``ignore_result`` beats the task's, in the copy too."""

    @app.task(
        base=IdempotentTask,
        shared=False,
        name="shop.quiet",
        ignore_result=True,
        idempotency={"key": "order", "prefix": "shop.charge"},
    )
    def quiet(order: str) -> str:
        return order

    quiet.apply_async(("17",), ignore_result=False)
    original, copy = defer(worker)
    assert copy.headers["ignore_result"] is original.headers["ignore_result"] is False


def test_a_deferral_leaves_the_result_backend_alone(
    app: Celery, charge: Task, worker: InlineWorker, holder: Claim
) -> None:
    """Who waits for the result keeps waiting."""
    result = charge.apply_async(("17",))
    _, copy = defer(worker)
    assert worker.state(result.id) == "PENDING"
    copy.ack()


def test_a_deferred_message_runs_when_the_holder_has_gone(
    charge: Task, worker: InlineWorker, store: MemoryStore
) -> None:
    """The only copy left is not lost: it runs the body once the claim is free, and its caller has the result."""
    charge.apply(("17",))
    (record,) = store.records()
    store.forget(record.key)
    answer = store.claim(request_by("holder", key=record.key))
    assert isinstance(answer, Granted)
    result = charge.apply_async(("17", 8))
    worker.run_next()
    store.release(answer.claim, "dead")
    worker.run_next()
    assert worker.waiting() == 0
    assert (worker.state(result.id), worker.result(result.id)) == ("SUCCESS", 8)


def test_a_deferral_is_no_retry(app: Celery, worker: InlineWorker, store: MemoryStore, holder: Claim) -> None:
    """However often a message is deferred, its retries and ``max_retries`` are untouched."""

    @app.task(
        base=IdempotentTask,
        shared=False,
        name="shop.once",
        bind=True,
        max_retries=0,
        idempotency={"key": "order", "prefix": "shop.charge"},
    )
    def once(self: Task, order: str) -> int:
        return int(self.request.retries)

    once.apply_async(("17",))
    for _ in range(4):
        worker.run_next()
    copy = worker.take()
    assert copy.headers["retries"] == 0
    copy.ack()


def test_a_broker_that_is_gone_gives_the_message_back(
    app: Celery, charge: Task, worker: InlineWorker, holder: Claim, seen: list[Event]
) -> None:
    """Where the copy cannot be published, the original goes back to its queue instead of being acknowledged."""
    app.conf.update(UNREACHABLE)
    charge.apply_async(("17",), task_id="id-1", connection=worker.connection)
    worker.run_next()
    returned = worker.take()
    assert returned.headers["id"] == "id-1"
    assert "idempotency_deferrals" not in returned.headers
    assert not [event for event in seen if isinstance(event, Deferred)]
    returned.ack()
