"""What follows a task under redelivery: sent again while nobody knows that it was sent, and not any more after that."""

from collections.abc import Callable
from dataclasses import replace
from itertools import repeat
from typing import Any

import pytest
from celery import Celery, chain, chord, group
from celery.app.task import Context

from idempotent_tasks import IdempotentTask, events
from idempotent_tasks.messaging import callbacks
from idempotent_tasks.messaging.callbacks import assign_task_ids, follows
from idempotent_tasks.messaging.handler import SENDING_SECONDS
from idempotent_tasks.testing import FakeClock
from tests.support.shop import Shop, raising
from tests.support.stores import FaultyStore, Step, down, lost_answer
from tests.unit.test_processes import NO_PID


class Follower:
    """A plain task that notes what it was given, and under which id."""

    def __init__(self, app: Celery, name: str = "shop.receipt") -> None:
        self.received: list[Any] = []
        self.ids: list[str] = []

        def receipt(task: Any, result: Any) -> Any:
            self.received.append(result)
            self.ids.append(task.request.id)
            return result

        self.task: Any = app.task(receipt, name=name, bind=True, shared=False)


@pytest.fixture
def receipt(app: Celery) -> Follower:
    """What follows."""
    return Follower(app)


def break_notes(shop: Shop, *steps: Step) -> None:
    """Let the notes of dispatches fail as planned."""
    shop.app.conf.idempotency_store = FaultyStore(shop.store, note_dispatch=steps or repeat(down()))


def redeliver(shop: Shop, after: Callable[[], None] = lambda: None, **options: Any) -> None:
    """Deliver the same message twice, and everything that follows; in between, what a test wants to happen."""
    shop.sells(lambda task: "paid")
    shop.publish(**options)
    shop.worker.drain()
    after()
    shop.publish(**options)
    shop.worker.drain()
    assert shop.runs == 1


def test_a_link_is_sent_again_while_nobody_knows_that_it_was(shop: Shop, receipt: Follower, clock: FakeClock) -> None:
    """A crash between the dispatch and its note has the link sent twice, under one id that the receiver recognises."""
    break_notes(shop)
    redeliver(shop, lambda: clock.advance(SENDING_SECONDS), link=receipt.task.s())
    assert receipt.received == ["paid", "paid"]
    assert len(set(receipt.ids)) == 1
    assert shop.worker.state(receipt.ids[0]) == "SUCCESS"


def test_a_link_is_not_sent_again_once_that_is_known(shop: Shop, receipt: Follower) -> None:
    """A redelivery after the dispatch gives the result and sends nothing."""
    redeliver(shop, link=receipt.task.s())
    assert receipt.received == ["paid"]
    assert [type(event).__name__ for event in shop.seen] == ["Claimed", "Committed", "Dispatched", "Replayed"]
    assert shop.result == "paid"


class TestTwoCopies:
    """A second copy of a delivery comes after the first has stored its outcome, and before it has noted the rest."""

    @pytest.fixture(autouse=True)
    def first_copy(self, shop: Shop, receipt: Follower) -> None:
        """Let the first one come so far."""
        break_notes(shop)
        shop.sells(lambda task: "paid")
        shop.publish(link=receipt.task.s())
        shop.worker.drain()

    def test_it_waits_for_a_process_that_lives(self, shop: Shop, receipt: Follower, clock: FakeClock) -> None:
        """Both would send the link; the second copy comes back, and sends it then if nobody is known to have."""
        shop.publish(link=receipt.task.s())
        shop.worker.run_next()
        clock.advance((shop.record.completed_at or 0) / 1000 + SENDING_SECONDS - 0.1 - clock.now())
        shop.worker.run_next()
        assert (shop.deferrals(), receipt.received) == (["sending", "sending"], ["paid"])
        clock.advance(0.2)
        shop.worker.drain()
        assert (receipt.received, len(set(receipt.ids)), shop.runs) == (["paid", "paid"], 1, 1)

    def test_it_knows_of_a_note_when_it_comes_back(self, shop: Shop, receipt: Follower) -> None:
        """Then it sends nothing, and has the result."""
        shop.publish(link=receipt.task.s())
        shop.worker.run_next()
        shop.store.note_dispatch(shop.key, shop.id)
        shop.worker.drain()
        assert (receipt.received, shop.deferrals(), shop.result) == (["paid"], ["sending"], "paid")

    def test_a_process_that_has_ended_is_not_waited_for(self, shop: Shop, receipt: Follower) -> None:
        """Nobody sends any more; whether its watcher lives is all the same."""
        record = shop.record
        place, _, name = str(record.process).rpartition("/")
        shop.store.forget(shop.key)
        shop.store.restore(replace(record, process=f"{place}/{NO_PID}@1^{name}"))
        shop.publish(link=receipt.task.s())
        shop.worker.drain()
        assert (receipt.received, shop.deferrals()) == (["paid", "paid"], [])

    def test_without_anything_to_follow_nobody_waits(self, shop: Shop) -> None:
        """A copy that has nothing to send replays at once."""
        shop.deliver()
        assert (shop.deferrals(), shop.result) == ([], "paid")


@pytest.mark.parametrize("step", [down(), lost_answer()], ids=["down", "answer lost"])
def test_a_note_is_tried_again(shop: Shop, receipt: Follower, step: Step) -> None:
    """A store that fails once does not make the link go out twice."""
    break_notes(shop, step)
    redeliver(shop, link=receipt.task.s())
    assert receipt.received == ["paid"]


def test_each_task_id_has_a_continuation_of_its_own(shop: Shop, receipt: Follower) -> None:
    """Two publishes of one key with different links: both continue with the one result, under different ids."""
    other = Follower(shop.app, "shop.other")
    shop.sells(lambda task: "paid", idempotency={"key": "'one'", "expires": 3600})
    for task_id, link in (("first", receipt), ("second", other), ("first", receipt), ("second", other)):
        shop.publish(task_id=f"{shop.id}-{task_id}", link=link.task.s())
        shop.worker.drain()
    assert shop.runs == 1
    assert (receipt.received, other.received) == (["paid"], ["paid"])
    assert receipt.ids != other.ids
    (record,) = shop.store.records()
    assert record.dispatched == {f"{shop.id}-first", f"{shop.id}-second"}


def test_a_chain_goes_on_once(shop: Shop, receipt: Follower) -> None:
    """The next step goes out once, and the whole rest of the chain with it."""
    last = Follower(shop.app, "shop.last")
    shop.sells(lambda task: "paid")
    steps = chain(shop.task.s().set(task_id=shop.id), receipt.task.s(), last.task.s())
    steps.freeze()
    for _ in range(2):
        steps.clone().apply_async()
        shop.worker.drain()
    assert shop.runs == 1
    assert (receipt.received, last.received) == (["paid"], ["paid"])


def test_a_task_that_nothing_follows_costs_no_note(shop: Shop) -> None:
    """Two requests a first run, one a replay."""
    store = FaultyStore(shop.store)
    shop.app.conf.idempotency_store = store
    redeliver(shop)
    assert store.calls == ["claim", "commit", "claim"]


def test_a_failed_task_notes_nothing(shop: Shop, receipt: Follower) -> None:
    """A delivery that fails sends what follows a failure, and the next one, which succeeds, what follows a success."""
    errback = Follower(shop.app, "shop.errback")
    outcomes = iter([KeyError("mine"), "paid"])

    def body(task: Any) -> Any:
        outcome = next(outcomes)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    shop.sells(body)
    for _ in range(2):
        shop.publish(link=receipt.task.s(), link_error=errback.task.s())
        shop.worker.drain()
    assert (receipt.received, errback.received) == (["paid"], [shop.id])
    assert [event for event in shop.seen if isinstance(event, events.Dispatched)] == shop.seen[-1:]


def test_each_failing_delivery_sends_the_error_callbacks(shop: Shop, receipt: Follower) -> None:
    """A failure is no outcome: its error callback is sent with each, under one id that the receiver recognises."""
    shop.sells(raising(KeyError("mine")))
    for _ in range(2):
        shop.publish(link_error=receipt.task.s())
        shop.worker.drain()
    assert shop.runs == 2
    assert receipt.received == [shop.id, shop.id]
    assert len(set(receipt.ids)) == 1


def test_an_error_callback_that_takes_the_error_is_no_delivery(shop: Shop) -> None:
    """Celery calls it as a function in the failing worker: guarded or not, it runs with each failing delivery."""
    called: list[str] = []

    def mourn(request: Any, error: Exception, traceback: Any) -> None:
        called.append(request.id)

    errback: Any = shop.app.task(mourn, name="shop.mourn", base=IdempotentTask, shared=False)
    shop.sells(raising(KeyError("mine")))
    for _ in range(2):
        shop.publish(link_error=errback.s())
        shop.worker.drain()
    assert called == [shop.id, shop.id]


def test_an_unguarded_run_notes_nothing(shop: Shop, receipt: Follower) -> None:
    """A delivery without a key has nothing to note, and its link is sent."""
    shop.sells(lambda task: "paid", idempotency={"key": lambda: None, "expires": 60, "missing_key": "run"})
    shop.publish(link=receipt.task.s())
    shop.worker.drain()
    assert receipt.received == ["paid"]
    assert shop.store.records() == []


def test_an_eager_call_leaves_the_callers_signature_alone(shop: Shop, receipt: Follower) -> None:
    """A signature may be used again by its owner, who gave it no id."""
    shop.sells(lambda task: "paid")
    link, errback = receipt.task.s(), receipt.task.s()
    shop.task.apply(task_id=shop.id, link=link, link_error=errback)
    shop.worker.drain()
    assert receipt.received == ["paid"]
    assert "task_id" not in link.options | errback.options
    assert shop.record.dispatched == frozenset()


def request_of(**what: Any) -> Any:
    """Return a request that something follows."""
    return Context({"id": "4f1c", **what})


def ids_of(signatures: list[Any]) -> list[str | None]:
    """Return the ids of all tasks in signatures, in order."""
    found: list[str | None] = []
    for each in signatures:
        parts = [each["kwargs"].get(name) or [] for name in ("tasks", "header", "body")]
        inner = [part for group in parts for part in ([group] if isinstance(group, dict) else group)]
        found += ids_of(inner) if inner else [each["options"].get("task_id")]
    return found


class TestNames:
    """Ids for what follows."""

    @pytest.fixture
    def step(self, app: Celery) -> Any:
        """A task to follow."""
        return Follower(app, "shop.step").task

    def test_every_part_of_every_canvas_has_an_id(self, step: Any) -> None:
        """Links may be tasks, groups, chains and chords, each inside the other."""
        links = [step.s(), group(step.s(), chain(step.s(), step.s())), chord([step.s(), step.s()], step.s())]
        named = request_of(callbacks=links)
        assign_task_ids(named, "key")
        ids = ids_of(named.callbacks)
        assert len(ids) == len(set(ids)) == 7
        assert None not in ids

    def test_the_same_delivery_names_the_same(self, step: Any) -> None:
        """Ids follow from key, task id and place, and from nothing else."""
        first, again, other_key, other_id = (request_of(callbacks=[step.s(), step.s()], id=each) for each in "aaab")
        for request, key in ((first, "key"), (again, "key"), (other_key, "other"), (other_id, "key")):
            assign_task_ids(request, key)
        assert ids_of(first.callbacks) == ids_of(again.callbacks)
        assert not set(ids_of(first.callbacks)) & set(ids_of(other_key.callbacks))
        assert not set(ids_of(first.callbacks)) & set(ids_of(other_id.callbacks))

    def test_an_id_that_is_there_stays(self, step: Any) -> None:
        """Whoever chose an id meant it."""
        request = request_of(callbacks=[step.s().set(task_id="mine")], chain=[step.s().set(task_id="too")])
        assign_task_ids(request, "key")
        assert ids_of(request.callbacks + request.chain) == ["mine", "too"]

    @pytest.mark.parametrize("name", ["callbacks", "chain", "chord"])
    def test_whatever_follows_can_be_suppressed(self, step: Any, name: str) -> None:
        """Links, chain and chord are all that Celery sends on success."""
        request = request_of(**{name: [step.s()]})
        assert follows(request)
        callbacks.suppress(request)
        assert not follows(request)
