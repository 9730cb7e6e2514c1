"""``idempotency_key=`` where no task class sees it: calls by name, and signatures of tasks that a process lacks."""

import logging
from typing import Any
from uuid import uuid4

import pytest
from celery import Celery, Signature, chain, chord, group
from celery.signals import task_received

from idempotent_tasks import ConfigurationError, IdempotentTask, KeyEncodingError, MissingKeyError
from tests.support.inline import InlineWorker
from tests.support.logs import logged
from tests.support.shop import Counting
from tests.unit.test_task_publishing import keys


@pytest.fixture
def producer(app: Celery, queue: str, monkeypatch: pytest.MonkeyPatch) -> Celery:
    """An app that publishes to the worker and has no task of its own."""
    producer = Celery("producer", broker="memory://", backend="cache+memory://", set_as_current=False)
    producer.conf.task_default_queue = queue
    return producer


def test_send_task_carries_its_key(producer: Celery, worker: InlineWorker) -> None:
    """In the header that every worker reads, beside the caller's own headers, and nowhere else in the message."""
    producer.send_task("shop.charge", ("17",), idempotency_key="ord-17", headers={"tenant": "acme"})
    message = worker.take()
    assert (message.headers["idempotency_key"], message.headers["tenant"]) == ("ord-17", "acme")
    assert "idempotency_key" not in message.properties
    message.ack()


@pytest.mark.parametrize("task_protocol", [1, 2])
def test_a_signature_by_name_carries_its_key(producer: Celery, worker: InlineWorker, task_protocol: int) -> None:
    """``.set`` and ``apply_async``, under either of Celery's message protocols."""
    producer.conf.task_protocol = task_protocol
    signature = producer.signature("shop.charge", ("17",))
    signature.clone().set(idempotency_key="ord-17").apply_async()
    signature.clone().apply_async(idempotency_key="ord-18")
    assert keys(worker) == ["ord-17", "ord-18"]


def test_a_group_by_name_carries_the_keys_of_its_members(producer: Celery, worker: InlineWorker) -> None:
    """Each member has its own."""
    members = [producer.signature("shop.charge", (each,)).set(idempotency_key=each) for each in "ab"]
    group(members, app=producer).apply_async()
    assert keys(worker) == ["a", "b"]


def test_a_step_that_a_worker_without_the_code_sends_on_carries_its_key(
    app: Celery, producer: Celery, worker: InlineWorker, counting: Counting
) -> None:
    """The option lies in the chain; the worker that sends the step on has never seen its task."""
    first = app.task(do_nothing, name="other.step", shared=False)
    step = producer.signature("shop.charge", immutable=True).set(idempotency_key="ord-17")
    for _ in range(2):
        chain(first.s(), step.clone(), app=app).apply_async()
    for _ in range(2):
        worker.run_next()
    assert keys(worker) == ["ord-17", "ord-17"]


def do_nothing() -> None:
    """Be a body."""


def test_two_calls_by_name_with_one_key_are_one_run(
    app: Celery, producer: Celery, worker: InlineWorker, counting: Counting
) -> None:
    """The worker that has the code recognises the duplicate."""
    counting.make(app)
    for _ in range(2):
        producer.send_task("shop.charge", ("17",), idempotency_key="ord-17")
    worker.drain()
    assert counting.runs == 1


@pytest.mark.parametrize(
    ("key", "error"), [("", MissingKeyError), (17, KeyEncodingError), ("a\nb", KeyEncodingError)], ids=repr
)
def test_a_key_that_is_none_is_not_published(app: Celery, worker: InlineWorker, key: Any, error: Any) -> None:
    """As with ``apply_async``: the publisher gets the error, and the broker nothing, whatever the message's expiry."""
    for expires in (None, 60):
        with pytest.raises(error):
            app.send_task("shop.charge", ("17",), idempotency_key=key, expires=expires)
    assert worker.waiting() == 0


def test_a_key_for_a_task_that_is_not_guarded_is_refused(app: Celery, worker: InlineWorker) -> None:
    """An option without effect is an error where the process can tell."""
    task = app.task(do_nothing, name="shop.plain", shared=False)
    for publish in (task.apply_async, task.s().set(idempotency_key="k").apply_async):
        with pytest.raises(ConfigurationError, match=r"no effect on a task that is not guarded.*'shop\.plain'"):
            publish(idempotency_key="k")
    with pytest.raises(ConfigurationError):
        app.send_task("shop.plain", idempotency_key="k")
    assert worker.waiting() == 0


def following(first: Signature, plain: Signature) -> dict[str, Signature]:
    """Return canvases in which a signature that is not guarded follows another one."""
    return {
        "link": first.clone().set(link=plain),
        "errback": first.clone().set(link_error=[plain]),
        "step": chain(first, first, plain),
        "body": chord([first], plain),
        "group": chain(first, group(first, plain)),
        "link-of-step": chain(first, first.clone().set(link=plain)),
    }


@pytest.mark.parametrize("canvas", ["link", "errback", "step", "body", "group", "link-of-step"])
@pytest.mark.parametrize("task_protocol", [1, 2])
def test_a_key_for_what_follows_and_is_not_guarded_is_refused(
    app: Celery, worker: InlineWorker, counting: Counting, canvas: str, task_protocol: int
) -> None:
    """Before anything is published: a worker that sends it on could tell nobody but its own task."""
    app.conf.task_protocol = task_protocol
    first = counting.make(app).si("17")
    plain = app.task(do_nothing, name="shop.plain", shared=False).si()
    with pytest.raises(ConfigurationError, match=r"no effect on a task that is not guarded.*'shop\.plain'"):
        following(first, plain.clone().set(idempotency_key="k"))[canvas].apply_async()
    assert worker.waiting() == 0
    following(first, plain)[canvas].apply_async()
    following(first, app.signature("other.unknown", immutable=True).set(idempotency_key="k"))[canvas].apply_async()
    assert worker.waiting() == 2


def test_a_key_for_a_group_that_follows_is_its_members(app: Celery, worker: InlineWorker, counting: Counting) -> None:
    """The group itself is a task of Celery's, which no guard could have."""
    first = counting.make(app).si("17")
    chain(first, group(first, first).set(idempotency_key="k")).apply_async()
    worker.run_next()
    assert keys(worker) == ["k", "k"]


def test_arguments_are_no_signatures(app: Celery, worker: InlineWorker) -> None:
    """A mapping in the arguments that looks like one is a task's own."""
    plain = app.task(do_nothing, name="shop.plain", shared=False)
    inner = {"task": "shop.plain", "options": {"idempotency_key": "k"}}
    chain(plain.si(), plain.si().set(link=plain.s(tasks=[inner], body=inner)), app=app).apply_async(args=([inner],))
    assert worker.waiting() == 1


@pytest.mark.parametrize("headers", [{"idempotency_key": "k"}, {"headers": {"idempotency_key": "k"}}], ids=str)
def test_a_worker_says_once_that_a_key_has_no_effect(
    app: Celery, producer: Celery, worker: InlineWorker, headers: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    """A publisher without the task's code cannot know that it is not guarded."""
    plain = f"shop.plain-{uuid4().hex}"
    app.task(do_nothing, name=plain, shared=False)
    for name in (plain, plain, "shop.charge"):
        producer.send_task(name, headers=headers)
    Counting().make(app)
    for _ in range(3):
        message = worker.take()
        task_received.send(sender=None, request=worker.receive(message))
        message.ack()
    (record,) = logged(caplog)
    assert record.levelno == logging.WARNING
    assert f"task {plain!r} is not guarded, so the idempotency_key of its messages has no effect" in record.message


@pytest.mark.parametrize("headers", [{}, {"headers": "none"}], ids=str)
def test_a_worker_says_nothing_of_messages_without_a_key(
    app: Celery, worker: InlineWorker, headers: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    """Most tasks are not guarded, and nothing is wrong with them."""
    app.task(do_nothing, name="shop.plain", shared=False)
    app.send_task("shop.plain", headers=headers)
    message = worker.take()
    task_received.send(sender=None, request=worker.receive(message))
    message.ack()
    assert not logged(caplog)


def test_no_key_is_no_key(app: Celery, worker: InlineWorker) -> None:
    """None is as good as absent, also for a task that is not guarded."""
    app.task(do_nothing, name="shop.plain", shared=False)
    app.send_task("shop.plain", idempotency_key=None)
    assert keys(worker) == [None]


def test_an_app_that_is_not_finalised_stays_so(app: Celery, worker: InlineWorker) -> None:
    """Publishing by name never makes an app evaluate its tasks."""
    app.task(do_nothing, name="shop.charge", base=IdempotentTask, shared=False)
    app.send_task("shop.other", idempotency_key="k")
    assert not app.finalized
