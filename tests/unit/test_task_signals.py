"""`IdempotentTask` whose body ends otherwise than by returning: retries, rejections, replacements, time limits."""

from typing import Any

import pytest
from celery.exceptions import Ignore, Reject, SoftTimeLimitExceeded

from idempotent_tasks import IdempotentTask
from idempotent_tasks.events import Claimed
from tests.support.inline import UNREACHABLE
from tests.support.shop import Shop, raising
from tests.support.stores import FaultyStore, down


def test_a_retry_releases_before_it_publishes(shop: Shop) -> None:
    """The retry never meets its own claim; each try is attempt 1; the last one's result is the key's."""

    def body(task: Any) -> int:
        if task.request.retries < 2:
            raise task.retry(countdown=0)
        return int(task.request.retries)

    shop.sells(body)
    shop.deliver()
    assert shop.state == "RETRY"
    assert shop.record.free
    shop.worker.drain()
    assert (shop.runs, shop.state, shop.result, shop.deferrals()) == (3, "SUCCESS", 2, [])
    assert [event.attempt for event in shop.seen if isinstance(event, Claimed)] == [1, 1, 1]


def test_the_key_is_free_when_a_retry_is_published(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker that is faster than this one's release would otherwise defer the retry."""
    held: list[Any] = []
    send = shop.app.amqp.send_task_message

    def look(*args: Any, **options: Any) -> Any:
        held.append([record.free for record in shop.store.records()])
        return send(*args, **options)

    def body(task: Any) -> None:
        raise task.retry(countdown=0)

    shop.sells(body)
    shop.publish()
    monkeypatch.setattr(shop.app.amqp, "send_task_message", look)
    shop.worker.run_next()
    assert held == [[True]]
    shop.worker.take().ack()


def test_autoretry_takes_the_same_road(shop: Shop) -> None:
    """``autoretry_for`` ends with the body's own error after its retries, and every try ran."""
    shop.sells(
        raising(ConnectionError("no bank")),
        autoretry_for=(ConnectionError,),
        retry_kwargs={"max_retries": 2, "countdown": 0},
    )
    shop.publish()
    assert shop.worker.drain() == 3
    assert (shop.runs, shop.state, shop.deferrals()) == (3, "FAILURE", [])
    assert isinstance(shop.result, ConnectionError)


def test_a_retry_that_is_not_thrown_is_no_outcome(shop: Shop) -> None:
    """A body that asks for a retry and returns leaves the key to the retry."""

    def body(task: Any) -> str:
        if not task.request.retries:
            task.retry(countdown=0, throw=False)
            return "first"
        return "second"

    shop.sells(body)
    shop.publish()
    shop.worker.drain()
    assert shop.runs == 2
    assert shop.record.data == '"second"'


def test_a_retry_without_a_broker_goes_back_to_its_queue(shop: Shop) -> None:
    """Celery would drop the message; this delivery is requeued instead, with its key free."""
    shop.app.conf.update(UNREACHABLE)

    def body(task: Any) -> None:
        raise task.retry(countdown=0)

    shop.sells(body)
    shop.publish(connection=shop.worker.connection)
    shop.worker.run_next()
    assert shop.worker.waiting() == 1
    assert shop.record.free
    shop.worker.take().ack()


def test_a_retry_that_cannot_be_written_fails(shop: Shop) -> None:
    """An error of the arguments would come back indefinitely: Celery's own rejection stands."""

    def body(task: Any) -> None:
        raise task.retry(kwargs={"order": object()}, countdown=0)

    shop.sells(body)
    shop.deliver()
    assert shop.worker.waiting() == 0
    assert shop.record.free


def test_a_retry_past_its_limit_is_a_failure(shop: Shop) -> None:
    """``max_retries`` counts the body's tries and nothing else."""

    def body(task: Any) -> None:
        raise task.retry(countdown=0, max_retries=1)

    shop.sells(body)
    shop.publish()
    assert shop.worker.drain() == 2
    assert (shop.runs, shop.state) == (2, "FAILURE")
    assert type(shop.result).__name__ == "MaxRetriesExceededError"


def test_ignore_releases(shop: Shop) -> None:
    """A body that asks to be ignored leaves no outcome."""
    shop.sells(raising(Ignore()))
    shop.deliver()
    shop.deliver()
    assert (shop.runs, shop.state, shop.worker.waiting()) == (2, "PENDING", 0)


def test_reject_with_requeue_comes_back(shop: Shop) -> None:
    """The message returns to its queue and finds its key free."""

    def body(task: Any) -> str:
        if shop.runs == 1:
            raise Reject("not now", requeue=True)
        return "paid"

    shop.sells(body)
    shop.deliver()
    assert shop.worker.waiting() == 1
    shop.worker.run_next()
    assert (shop.runs, shop.result, shop.deferrals()) == (2, "paid", [])


def test_reject_without_requeue_releases(shop: Shop) -> None:
    """A rejected message is gone, and its key is free."""
    shop.sells(raising(Reject("never")))
    shop.deliver()
    assert shop.worker.waiting() == 0
    assert shop.record.free


def test_a_replacement_carries_the_task_id_on(shop: Shop) -> None:
    """``self.replace`` publishes another task under this id, whose result the caller gets."""

    @shop.app.task(base=IdempotentTask, name="shop.other", shared=False)
    def other(order: str) -> str:
        return f"{order} paid"

    def body(task: Any) -> Any:
        return task.replace(other.s("17"))

    shop.sells(body)
    shop.publish()
    assert shop.worker.drain() == 2
    assert (shop.state, shop.result) == ("SUCCESS", "17 paid")
    assert shop.record.free


def test_a_replacement_by_itself_does_not_meet_its_own_claim(shop: Shop) -> None:
    """The key is free before the replacement is published."""
    shop.sells(lambda task: "done" if shop.runs == 3 else task.replace(task.s()))
    shop.publish()
    assert shop.worker.drain() == 3
    assert (shop.runs, shop.result, shop.deferrals()) == (3, "done", [])


def test_a_soft_time_limit_in_the_body_fails_and_releases(shop: Shop) -> None:
    """The limit is the task's failure, as in any Celery task."""
    shop.sells(raising(SoftTimeLimitExceeded()))
    shop.deliver()
    assert isinstance(shop.result, SoftTimeLimitExceeded)
    assert shop.record.free


def test_a_soft_time_limit_before_the_body_defers(shop: Shop) -> None:
    """A store that used up the time is no failure of the task: the message comes back."""
    shop.app.conf.idempotency_store = FaultyStore(shop.store, claim=[down(SoftTimeLimitExceeded())])
    shop.sells(lambda task: "paid")
    shop.deliver()
    assert (shop.runs, shop.state, shop.deferrals()) == (0, "PENDING", ["SoftTimeLimitExceeded"])
    shop.worker.run_next()
    assert (shop.runs, shop.result) == (1, "paid")


def test_a_soft_time_limit_in_the_commit_loses_no_result(shop: Shop) -> None:
    """The body was in time."""
    shop.app.conf.idempotency_store = FaultyStore(shop.store, commit=[down(SoftTimeLimitExceeded())])
    shop.sells(lambda task: "paid")
    shop.deliver()
    assert (shop.state, shop.result) == ("SUCCESS", "paid")
    assert shop.record.data == '"paid"'


def test_a_replacement_of_an_unguarded_run_has_nothing_to_release(shop: Shop) -> None:
    """A body that a policy let through unguarded may be replaced like any other."""
    shop.sells(
        lambda task: "done" if shop.runs == 2 else task.replace(task.s()),
        idempotency={"key": lambda: None, "expires": 60, "missing_key": "run"},
    )
    shop.publish()
    assert shop.worker.drain() == 2
    assert (shop.result, shop.store.records()) == ("done", [])
