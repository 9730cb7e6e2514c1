"""``codec="none"``: an outcome without its result; and what ``ignore_result=True`` stores."""

import json
from contextlib import nullcontext
from typing import Any
from uuid import uuid4

import pytest
from celery import Celery, chain, chord, group, signature

from idempotent_tasks import ConfigurationError, Idempotency, ResultUnavailableError, StoredFailureError
from idempotent_tasks.cli.format import as_dict
from idempotent_tasks.core.encoding import register_type
from idempotent_tasks.core.records import Record, Status
from idempotent_tasks.events import Event, Replayed
from idempotent_tasks.messaging import callbacks
from idempotent_tasks.messaging.handler import SENDING_SECONDS
from idempotent_tasks.testing import FakeClock
from tests.support.shop import SECRET, Shop
from tests.support.stores import FaultyStore, MemoryBucket, down
from tests.unit.test_continuation import Follower
from tests.unit.test_task_outcomes import deliver_again

#: One key for all task ids, and no result in its record.
OMITTING: dict[str, Any] = {"key": "'one'", "expires": 3600, "codec": "none"}


class Declined(Exception):  # noqa: N818 - named as users name theirs
    """A final failure whose arguments hold a secret."""


def declining(task: Any) -> None:
    """Fail for good."""
    raise Declined(SECRET)


def again(shop: Shop, **options: Any) -> str:
    """Deliver the key under another task id, and return that id."""
    # Unique, because the result backend's memory is the whole process's.
    other = uuid4().hex
    shop.publish(task_id=other, **options)
    shop.worker.drain()
    return other


def stored(shop: Shop) -> str:
    """Return all that the store holds, as text."""
    return repr(shop.store.records())


class TestTheRecord:
    """What is stored."""

    def test_it_has_the_outcome_without_the_result(self, shop: Shop, seen: list[Event]) -> None:
        """It is COMPLETED, holds no data, and nobody is warned of what the task asked for."""
        shop.sells(lambda task: SECRET, idempotency=OMITTING)
        shop.deliver()
        (record,) = shop.store.records()
        assert (record.status, record.codec, record.data, record.error) == (Status.COMPLETED, "omitted", None, None)
        assert SECRET not in stored(shop)
        assert [type(event).__name__ for event in seen] == ["Claimed", "Committed"]

    def test_an_operator_tells_it_from_a_result_that_could_not_be_stored(self, shop: Shop) -> None:
        """`show` says ``omitted``, and for the other ``none`` with the reason."""
        shop.sells(lambda task: SECRET, idempotency=OMITTING)
        shop.deliver()
        omitted = as_dict(shop.store.records()[0], 0.0, data=True)
        lost = Record(key="k", status=Status.COMPLETED, expiration=0, codec="none", error="too large")
        assert (omitted["codec"], omitted["error"], omitted["data_bytes"]) == ("omitted", None, None)
        assert (as_dict(lost, 0.0, data=True)["codec"], lost.error) == ("none", "too large")

    def test_a_result_without_a_form_is_no_error(self, shop: Shop) -> None:
        """Nothing is encoded, so that neither a type nor a size matters."""
        shop.sells(lambda task: object(), idempotency=OMITTING)
        results = [shop.task.apply(task_id=shop.id) for _ in range(2)]
        assert [type(each.result) for each in results] == [object, type(None)]

    def test_a_registered_type_is_not_written(self, shop: Shop) -> None:
        """Its encoder is not called for the record."""

        class Token:
            pass

        def encode(token: Token) -> str:
            raise AssertionError("encoded")

        register_type(Token, f"token-{uuid4().hex}", encode=encode, decode=lambda _: Token())
        shop.sells(lambda task: Token(), idempotency=OMITTING)
        assert [type(shop.task.apply().result) for _ in range(2)] == [Token, type(None)]

    def test_a_bucket_gets_nothing(self, shop: Shop) -> None:
        """Whatever the size of the result."""
        bucket = shop.app.conf.idempotency_results_bucket = MemoryBucket()
        bucket.above_bytes = 1
        shop.sells(lambda task: SECRET * 100_000, idempotency=OMITTING)
        shop.deliver()
        assert (bucket.objects, shop.store.records()[0].codec) == ({}, "omitted")

    def test_it_is_a_setting(self, shop: Shop) -> None:
        """``idempotency_codec`` is the default of all tasks; a task may have another."""
        shop.app.conf.idempotency_codec = "none"
        shop.sells(lambda task: SECRET)
        shop.deliver()
        assert shop.record.codec == "omitted"

    def test_powertools_refuses_it(self) -> None:
        """A function would read the record's missing data as None, and could not be told."""
        with pytest.raises(ConfigurationError, match="powertools=True cannot be had with codec="):
            Idempotency(key="order", powertools=True, codec="none")


class TestTheReplay:
    """What a later delivery gets."""

    def test_it_is_none(self, shop: Shop) -> None:
        """The first run's own result is in the result backend; a duplicate has None, and the body runs once."""
        shop.sells(lambda task: SECRET, idempotency=OMITTING)
        shop.deliver()
        other = again(shop)
        assert (shop.result, shop.worker.result(other), shop.worker.state(other)) == (SECRET, None, "SUCCESS")
        assert shop.runs == 1

    def test_a_redelivery_leaves_the_callers_result(self, shop: Shop) -> None:
        """Celery keeps the result that a task id has succeeded with."""
        shop.sells(lambda task: SECRET, idempotency=OMITTING)
        shop.deliver()
        shop.deliver()
        assert (shop.runs, shop.result) == (1, SECRET)

    def test_the_result_backend_is_not_asked(self, shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
        """It has the result of the first run, which is not meant for others."""
        shop.sells(lambda task: SECRET, idempotency=OMITTING)
        shop.deliver()
        monkeypatch.setattr(shop.task.backend, "get_task_meta", lambda *_, **__: pytest.fail("asked"))
        assert deliver_again(shop) is None

    def test_from_the_cache(self, shop: Shop) -> None:
        """A replay from memory is None too, without a request."""
        shop.sells(lambda task: SECRET, idempotency={**OMITTING, "cache": 60})
        shop.deliver()
        shop.app.conf.idempotency_store.forget("shop.charge#one")
        assert shop.worker.result(again(shop)) is None
        assert shop.runs == 1

    def test_the_hook_may_know_the_result(self, shop: Shop, app: Celery) -> None:
        """``on_replay`` is called with None, and what it returns reaches the caller and the links."""
        given: list[Any] = []

        def from_the_vault(result: Any, record: Record) -> str:
            given.append(result)
            return f"vault/{record.task_id}"

        shop.sells(lambda task: SECRET, idempotency={**OMITTING, "on_replay": from_the_vault})
        follower = Follower(app)
        shop.deliver()
        other = again(shop, link=follower.task.s())
        assert (given, shop.worker.result(other)) == ([None], f"vault/{shop.id}")
        assert follower.received == [f"vault/{shop.id}"]


class TestWhatFollows:
    """A wrong value never reaches a link, a chain or a chord."""

    def test_the_first_run_hands_its_result_on(self, shop: Shop, app: Celery) -> None:
        """A redelivery that knows that all was sent succeeds."""
        follower = Follower(app)
        shop.sells(lambda task: SECRET, idempotency=OMITTING)
        for _ in range(2):
            shop.publish(link=follower.task.s())
            shop.worker.drain()
        assert (follower.received, shop.runs, shop.state) == ([SECRET], 1, "SUCCESS")

    def test_a_redelivery_that_does_not_know_fails(self, shop: Shop, app: Celery, clock: FakeClock) -> None:
        """A crash between commit and dispatch: the link is not sent with None, and the error callback is called."""
        follower, told = Follower(app), Follower(app, "shop.tell")
        shop.sells(lambda task: SECRET, idempotency={"codec": "none"})
        # As far as the dead worker came: the record is committed, nothing was sent, the backend has no result.
        shop.deliver(ignore_result=True)
        clock.advance(SENDING_SECONDS)
        for _ in range(2):
            shop.publish(link=follower.task.s(), link_error=told.task.s())
            shop.worker.drain()
            assert isinstance(shop.result, ResultUnavailableError)
            assert "publish what is missing" in str(shop.result)
        # A failed delivery is no note that all was sent.
        assert shop.record.dispatched == frozenset()
        assert (follower.received, told.received, shop.runs) == ([], [shop.id] * 2, 1)

    def test_a_redelivery_without_the_note_sends_nothing_wrong(self, shop: Shop, app: Celery, clock: FakeClock) -> None:
        """A crash between dispatch and note: the link was sent once, and is not sent again with None."""
        follower = Follower(app)
        shop.sells(lambda task: SECRET, idempotency={"codec": "none"})
        app.conf.idempotency_store = FaultyStore(shop.store, note_dispatch=iter([down()] * 1000))
        for _ in range(2):
            shop.publish(link=follower.task.s())
            shop.worker.drain()
            clock.advance(SENDING_SECONDS)
        assert (follower.received, shop.runs) == ([SECRET], 1)

    def test_a_duplicate_in_a_chain_fails(self, shop: Shop, app: Celery) -> None:
        """The next step would be called with None for the result."""
        follower = Follower(app)
        shop.sells(lambda task: SECRET, idempotency=OMITTING)
        shop.deliver()
        other, last = uuid4().hex, uuid4().hex
        chain(shop.task.s().set(task_id=other), follower.task.s().set(task_id=last)).apply_async()
        shop.worker.drain()
        assert [shop.worker.state(each) for each in (other, last)] == ["FAILURE", "FAILURE"]
        assert (follower.received, shop.runs) == ([], 1)

    def test_a_step_that_takes_no_result_goes_on(self, shop: Shop, app: Celery) -> None:
        """An immutable signature is sent as it is."""
        follower = Follower(app)
        shop.sells(lambda task: SECRET, idempotency=OMITTING)
        shop.deliver()
        chain(shop.task.s(), follower.task.si("go")).apply_async()
        shop.worker.drain()
        assert (follower.received, shop.runs) == (["go"], 1)

    def test_what_the_body_has_set_counts(self, shop: Shop, app: Celery, clock: FakeClock) -> None:
        """A continuation that the body has replaced by one that takes nothing is sent again."""
        follower = Follower(app)

        def body(task: Any) -> str:
            task.request.callbacks = [follower.task.si("set")]
            return SECRET

        shop.sells(body, idempotency={"codec": "none"})
        app.conf.idempotency_store = FaultyStore(shop.store, note_dispatch=iter([down()] * 1000))
        for _ in range(2):
            shop.publish(link=follower.task.s())
            shop.worker.drain()
            clock.advance(SENDING_SECONDS)
        assert (follower.received, shop.runs) == (["set", "set"], 1)


A, B = signature("a"), signature("b")
FIXED = signature("c", immutable=True)


@pytest.mark.parametrize(
    ("parts", "takes"),
    [
        pytest.param({}, False, id="nothing"),
        pytest.param({"callbacks": [A]}, True, id="link"),
        pytest.param({"callbacks": [FIXED]}, False, id="immutable-link"),
        pytest.param({"callbacks": [FIXED, A]}, True, id="one-of-two-links"),
        pytest.param({"errbacks": [A]}, False, id="errback"),
        pytest.param({"chain": [A, FIXED]}, False, id="the-next-step-is-the-last"),
        pytest.param({"chain": [FIXED, A]}, True, id="the-step-after-takes-none"),
        pytest.param({"chord": A}, True, id="chord"),
        pytest.param({"chord": FIXED}, False, id="immutable-body"),
        pytest.param({"callbacks": [group(FIXED, A)]}, True, id="group"),
        pytest.param({"callbacks": [group(FIXED, FIXED)]}, False, id="immutable-group"),
        pytest.param({"callbacks": [chain(FIXED, A)]}, False, id="chain-of-its-own"),
        pytest.param({"callbacks": [chain(A, FIXED)]}, True, id="chain-that-begins-with-it"),
        pytest.param({"callbacks": [chord([A], FIXED)]}, True, id="chord-with-a-header-that-takes"),
        pytest.param({"callbacks": [chord([FIXED], A)]}, False, id="chord-whose-header-takes-none"),
    ],
)
def test_which_callbacks_take_the_result(shop: Shop, parts: dict[str, Any], takes: bool) -> None:
    """As in a message, in JSON, and as Celery calls them."""
    shop.sells(lambda task: None)
    request = shop.task.request
    request.update(**{name: json.loads(json.dumps(each)) for name, each in parts.items()})
    with pytest.raises(ResultUnavailableError) if takes else nullcontext():
        callbacks.refuse_result(request)


class TestFailures:
    """``store_failures`` with it."""

    def test_only_the_type_is_stored(self, shop: Shop) -> None:
        """A message may quote a secret; a replay names the type."""
        shop.sells(declining, idempotency={**OMITTING, "store_failures": Declined})
        shop.deliver()
        other = again(shop)
        (record,) = shop.store.records()
        assert (record.status, record.codec, record.data) == (Status.FAILED, "omitted", None)
        assert SECRET not in stored(shop)
        error = shop.worker.result(other)
        assert isinstance(error, StoredFailureError)
        assert error.original == f"{__name__}.Declined"
        assert "codec='none'" in str(error)
        assert shop.runs == 1


class TestIgnoredResults:
    """``ignore_result=True`` alone is about the result backend."""

    def test_the_record_has_the_result_all_the_same(self, shop: Shop) -> None:
        """Another call of the key may want it, and gets it."""
        shop.sells(lambda task: SECRET, idempotency={"key": "'one'", "expires": 3600}, ignore_result=True)
        shop.deliver()
        assert shop.store.records()[0].data == f'"{SECRET}"'
        assert shop.task.apply().result == SECRET

    def test_with_no_codec_nobody_has_it(self, shop: Shop, seen: list[Event]) -> None:
        """Neither the record nor the result backend."""
        shop.sells(lambda task: SECRET, idempotency=OMITTING, ignore_result=True)
        shop.deliver()
        again(shop)
        assert SECRET not in stored(shop)
        assert shop.result is None
        assert [type(event) for event in seen][-1] is Replayed
