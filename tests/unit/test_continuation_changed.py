"""What follows a task where its body changes that: recorded with the outcome, and the same in each redelivery."""

import logging
from collections.abc import Callable
from typing import Any

import pytest
from celery import chain
from celery.app.task import Context

from idempotent_tasks import ResultUnavailableError
from idempotent_tasks.core.records import Record
from idempotent_tasks.messaging import callbacks
from idempotent_tasks.messaging.claim_request import request_of
from idempotent_tasks.messaging.handler import SENDING_SECONDS
from idempotent_tasks.settings import settings_of
from idempotent_tasks.testing import FakeClock
from tests.support.guarding import done
from tests.support.shop import Shop
from tests.support.stores import FaultyStore
from tests.unit.test_continuation import Follower, break_notes

Change = Callable[[Any, "Followers"], None]


class Followers:
    """What the message says, and what the body puts in its place."""

    def __init__(self, shop: Shop) -> None:
        self.link, self.step, self.other = (Follower(shop.app, f"shop.{name}") for name in ("link", "step", "other"))

    @property
    def received(self) -> tuple[int, int, int]:
        """How often each was sent."""
        return len(self.link.received), len(self.step.received), len(self.other.received)


@pytest.fixture
def followers(shop: Shop) -> Followers:
    """Nothing was sent."""
    return Followers(shop)


def stop(request: Any, _: Followers) -> None:
    """Let nothing follow."""
    request.chain = request.callbacks = None


def empty(request: Any, _: Followers) -> None:
    """Let nothing follow, by emptying the lists in place."""
    request.chain.clear()
    request.callbacks.clear()


def lengthen(request: Any, followers: Followers) -> None:
    """Let another step follow the message's own, in place: Celery takes steps from the end."""
    request.chain.insert(0, followers.other.task.s())


def link(request: Any, followers: Followers) -> None:
    """Add a callback."""
    request.callbacks = [*(request.callbacks or []), followers.other.task.s()]


def replace(request: Any, followers: Followers) -> None:
    """Let something else follow."""
    request.chain, request.callbacks = None, [followers.other.task.s()]


def rewrite(request: Any, _: Followers) -> None:
    """Change the arguments of what follows, deep in a signature."""
    request.chain[-1]["args"] = ["rewritten"]
    request.chain[-1]["immutable"] = True


CHANGES: list[tuple[Change, tuple[int, int, int]]] = [
    (stop, (0, 0, 0)),
    (empty, (0, 0, 0)),
    (lengthen, (1, 1, 1)),
    (link, (1, 1, 1)),
    (replace, (0, 0, 1)),
    (rewrite, (1, 1, 0)),
]
changes = pytest.mark.parametrize(("change", "sent"), CHANGES, ids=lambda each: getattr(each, "__name__", None))


def deliver(shop: Shop, followers: Followers, **options: Any) -> None:
    """Deliver the same message once more, and all that follows it."""
    step = followers.step.task.s().set(task_id=f"{shop.id}-step")
    shop.publish(link=followers.link.task.s(), chain=[step], **options)
    shop.worker.drain()


def sell(shop: Shop, followers: Followers, change: Change, **options: Any) -> None:
    """Make the shop's task, whose body changes what follows it."""

    def body(task: Any) -> str:
        change(task.request, followers)
        return "paid"

    shop.sells(body, **options)


@changes
def test_a_redelivery_sends_nothing_more(
    shop: Shop, followers: Followers, change: Change, sent: tuple[int, int, int]
) -> None:
    """Once it is noted as sent, or where the body has let nothing follow."""
    sell(shop, followers, change)
    for _ in range(3):
        deliver(shop, followers)
    assert (followers.received, shop.runs, shop.result) == (sent, 1, "paid")


@changes
def test_a_redelivery_sends_the_same_while_nobody_knows(
    shop: Shop, followers: Followers, clock: FakeClock, change: Change, sent: tuple[int, int, int]
) -> None:
    """A crash between dispatch and note has the same sent again, under the same ids; not what the message said."""
    break_notes(shop)
    sell(shop, followers, change)
    deliver(shop, followers)
    assert followers.received == sent
    clock.advance(SENDING_SECONDS)
    deliver(shop, followers)
    assert (followers.received, shop.runs) == (tuple(2 * each for each in sent), 1)
    for follower in (followers.link, followers.step, followers.other):
        assert len(set(follower.ids)) <= 1
    if change is rewrite:
        assert followers.step.received == ["rewritten"] * 2


@changes
def test_no_request_more(shop: Shop, followers: Followers, change: Change, sent: tuple[int, int, int]) -> None:
    """The change is part of the commit; what a body has stopped needs no note."""
    store = FaultyStore(shop.store)
    shop.app.conf.idempotency_store = store
    sell(shop, followers, change)
    deliver(shop, followers)
    assert store.calls == (["claim", "commit", "note_dispatch"] if any(sent) else ["claim", "commit"])


def test_a_body_that_changes_nothing_records_nothing(shop: Shop, followers: Followers) -> None:
    """Nor does one that reads what follows, or sets it to what it was."""

    def read(request: Any, _: Followers) -> None:
        request.chain = list(request.chain)
        request.chord = False

    sell(shop, followers, read)
    deliver(shop, followers)
    assert (shop.record.continuation, followers.received) == (None, (1, 1, 0))


def test_a_callback_where_the_message_has_none(shop: Shop, followers: Followers) -> None:
    """Also from memory: whether it was sent is asked of the store, and it is not sent twice."""

    def body(task: Any) -> str:
        task.request.callbacks = [followers.other.task.s()]
        return "paid"

    shop.sells(body, idempotency={"cache": 60})
    for _ in range(3):
        shop.publish()
        shop.worker.drain()
    assert (followers.received, shop.runs) == ((0, 0, 1), 1)


def test_what_a_retry_has_stopped_is_not_sent_by_another_copy(
    shop: Shop, followers: Followers, clock: FakeClock
) -> None:
    """The retry's message has no link any more, so its run changes nothing; the first message has it."""

    def body(task: Any) -> str:
        if not task.request.retries:
            task.request.callbacks = None
            raise task.retry(countdown=0)
        return "paid"

    shop.sells(body)
    for _ in range(2):
        shop.publish(link=followers.link.task.s(), link_error=followers.other.task.s())
        shop.worker.drain()
        clock.advance(SENDING_SECONDS)
    assert (followers.received, shop.runs, shop.result) == ((0, 0, 0), 2, "paid")


def test_a_retry_that_stops_nothing_records_nothing(shop: Shop, followers: Followers) -> None:
    """Its message has what the first one has."""

    def body(task: Any) -> str:
        if not task.request.retries:
            raise task.retry(countdown=0)
        return "paid"

    shop.sells(body)
    deliver(shop, followers)
    assert (shop.record.continuation, followers.received) == (None, (1, 1, 0))


def test_a_copy_that_comes_meanwhile_waits(shop: Shop, followers: Followers) -> None:
    """As for what the message says: both would send it."""
    break_notes(shop)
    shop.sells(lambda task: setattr(task.request, "callbacks", [followers.other.task.s()]))
    shop.publish()
    shop.worker.drain()
    shop.deliver()
    assert (shop.deferrals(), followers.received) == (["sending"], (0, 0, 1))


def test_another_task_id_has_its_own(shop: Shop, followers: Followers) -> None:
    """What a body changes is its own delivery's; a second publish of the key goes on as its message says."""
    sell(shop, followers, stop, idempotency={"key": "'one'", "expires": 3600})
    deliver(shop, followers)
    deliver(shop, followers, task_id=f"{shop.id}-second")
    assert (followers.received, shop.runs) == ((1, 1, 0), 1)


def test_the_error_callbacks_of_a_final_failure(shop: Shop, followers: Followers) -> None:
    """A body that changes them and then fails for good has the same ones called, once."""

    def body(task: Any) -> None:
        task.request.errbacks = [followers.other.task.s()]
        raise ValueError

    shop.sells(body, idempotency={"store_failures": ValueError})
    for _ in range(2):
        shop.publish(link_error=followers.link.task.s())
        shop.worker.drain()
    assert (followers.received, shop.runs) == ((0, 0, 1), 1)


def test_a_superseded_run_leaves_nothing(shop: Shop, followers: Followers) -> None:
    """The outcome that counts decides what follows: here another run's of the same message, which changed nothing."""
    bodies = []

    def body(task: Any) -> str:
        bodies.append(task.request.id)
        if len(bodies) == 1:
            task.request.chain.clear()
            task.request.callbacks = None
            shop.store.forget(shop.key)
            other = shop.store.claim(request_of(shop.task, settings_of(shop.app), Context({"id": shop.id}), (), {}))
            shop.store.commit(other.claim, done('"theirs"'), 3600)  # type: ignore[union-attr]
        return "mine"

    shop.sells(body)
    deliver(shop, followers)
    assert (followers.received, shop.result) == ((1, 1, 0), "theirs")


class TestTooMuch:
    """A change that a record does not take."""

    def sell(self, shop: Shop, followers: Followers, argument: Any) -> None:
        """Make a task whose body lets something follow that has this argument."""

        def body(task: Any) -> str:
            task.request.callbacks = [followers.other.task.si(argument)]
            return "paid"

        shop.sells(body)

    def test_a_long_one_is_compressed(self, shop: Shop, followers: Followers, clock: FakeClock) -> None:
        """A record stays small."""
        break_notes(shop)
        self.sell(shop, followers, "tea " * 20_000)
        for _ in range(2):
            deliver(shop, followers)
            clock.advance(SENDING_SECONDS)
        assert len(shop.record.continuation or "") < 1024
        assert followers.other.received == ["tea " * 20_000] * 2

    @pytest.fixture
    def too_long(self) -> str:
        """Return what hardly compresses."""
        return "".join(chr(33 + each * each * 7919 % 89) + hex(each * 2654435761 % 2**32) for each in range(3000))

    def test_a_longer_one_is_sent_and_said(
        self, shop: Shop, followers: Followers, too_long: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        """The run goes on; a redelivery that knows it was sent replays."""
        self.sell(shop, followers, too_long)
        for _ in range(2):
            deliver(shop, followers)
        assert (len(followers.other.received), shop.result) == (1, "paid")
        (warning,) = [each for each in caplog.records if each.levelno == logging.WARNING and "follows" in each.message]
        assert "too long for the record" in warning.message
        assert too_long[:20] not in warning.message

    def test_a_redelivery_that_does_not_know_fails(
        self,
        shop: Shop,
        followers: Followers,
        too_long: str,
        clock: FakeClock,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        """Nobody can send it again, and that is not passed over in silence."""
        break_notes(shop)
        self.sell(shop, followers, too_long)
        deliver(shop, followers)
        clock.advance(SENDING_SECONDS)
        deliver(shop, followers)
        assert "ResultUnavailableError" in caplog.text
        assert "changed by the body and is not in the record" in caplog.text
        assert followers.received == (0, 1, 1)


@pytest.mark.parametrize("text", ["{", "[]", "{}", "zlib:AAAA", "unrecorded"])
def test_what_cannot_be_read_is_an_error(text: str) -> None:
    """It quotes nothing of the record."""
    with pytest.raises(ResultUnavailableError) as caught:
        callbacks.recorded(text)
    assert text not in str(caught.value).split()


def test_arguments_without_a_json_form_are_compared_by_their_places() -> None:
    """As in messages that were pickled: what the body does not touch has not changed."""
    request = Context({"chain": [{"task": "shop.step", "args": [{1, 2}], "kwargs": {}, "options": {}}]})
    callbacks.remember(request)
    assert callbacks.changed(request) is None
    first = request.chain
    request.chain = None
    assert callbacks.changed(request) is not None
    callbacks.restore(request, None)
    assert request.chain == first


def test_a_chain_is_stopped_for_good(shop: Shop, followers: Followers) -> None:
    """As a user stops it, with the steps that Celery itself has made."""
    sell(shop, followers, lambda request, _: setattr(request, "chain", None))
    steps = chain(shop.task.s().set(task_id=shop.id), followers.step.task.s(), followers.other.task.s())
    steps.freeze()
    for _ in range(2):
        steps.clone().apply_async()
        shop.worker.drain()
    record: Record = shop.record
    assert (followers.received, shop.runs, record.dispatched) == ((0, 0, 0), 1, frozenset())
