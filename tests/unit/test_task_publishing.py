"""How a caller's key travels: every way to publish a task, seen on kombu's in-memory transport."""

from typing import Any

import pytest
from celery import Celery, Task, chain, chord, group

from idempotent_tasks import IdempotencyError, IdempotentTask, KeyEncodingError, MissingKeyError
from idempotent_tasks.events import Event, Replayed
from idempotent_tasks.testing import MemoryStore
from tests.support.inline import InlineWorker


@pytest.fixture
def charge(app: Celery) -> Task:
    """A task that returns how often it ran for this order."""
    runs: dict[str, int] = {}

    @app.task(base=IdempotentTask, name="shop.charge", shared=False)
    def charge(order: Any, *_: Any) -> int:
        runs[str(order)] = runs.get(str(order), 0) + 1
        return runs[str(order)]

    return charge


def keys(worker: InlineWorker) -> list[Any]:
    """Take every waiting message, and return the keys that they carry."""
    found = []
    while worker.waiting():
        message = worker.take()
        found.append(message.headers.get("idempotency_key"))
        message.ack()
    return found


def test_apply_async_carries_the_key_in_a_header(charge: Task, worker: InlineWorker) -> None:
    """Beside the caller's own headers, which are not changed."""
    headers = {"tenant": "acme"}
    charge.apply_async(("17",), idempotency_key="ord-17", headers=headers)
    assert headers == {"tenant": "acme"}
    message = worker.take()
    assert message.headers["idempotency_key"] == "ord-17"
    assert message.headers["tenant"] == "acme"
    assert message.payload[:2] == [["17"], {}]
    message.ack()


def test_without_a_key_there_is_no_header(charge: Task, worker: InlineWorker) -> None:
    """A message without a key is what any Celery task publishes."""
    charge.delay("17")
    message = worker.take()
    assert [name for name in message.headers if name.startswith("idempotency")] == []
    message.ack()


def test_a_signature_carries_its_key(charge: Task, worker: InlineWorker) -> None:
    """``.set(idempotency_key=...)`` works like every other option, also after serialisation."""
    signature = charge.s("17").set(idempotency_key="ord-17")
    signature.apply_async()
    signature.delay()
    charge.app.signature(dict(signature)).apply_async()
    charge.signature(("17",), idempotency_key="ord-18").apply_async()
    signature.clone().apply_async(idempotency_key="ord-19")
    assert keys(worker) == ["ord-17", "ord-17", "ord-17", "ord-18", "ord-19"]


def test_a_group_carries_a_key_for_each_member(charge: Task, worker: InlineWorker) -> None:
    """Members have keys of their own."""
    group(charge.s(order).set(idempotency_key=f"ord-{order}") for order in (1, 2, 3)).apply_async()
    assert keys(worker) == ["ord-1", "ord-2", "ord-3"]


def test_a_chain_carries_the_keys_of_later_steps(charge: Task, worker: InlineWorker) -> None:
    """A step's key is still there when the step before it has finished."""
    steps = chain(
        charge.si("17").set(idempotency_key="step-1"),
        charge.si("18").set(idempotency_key="step-2"),
        charge.si("19").set(idempotency_key="step-3"),
    )
    steps.apply_async()
    seen = [worker.run_next().headers["idempotency_key"] for _ in range(3)]
    assert seen == ["step-1", "step-2", "step-3"]
    assert worker.waiting() == 0


def test_links_and_error_links_carry_their_keys(app: Celery, charge: Task, worker: InlineWorker) -> None:
    """Callbacks are signatures, too."""

    @app.task(name="shop.fail", shared=False)
    def fail() -> None:
        raise KeyError

    @app.task(base=IdempotentTask, name="shop.undo", shared=False)
    def undo() -> None:
        """Be a body."""

    charge.apply_async(("17",), link=charge.si("18").set(idempotency_key="link"))
    worker.run_next()
    assert keys(worker) == ["link"]
    fail.apply_async(link_error=undo.si().set(idempotency_key="errback"))
    worker.run_next()
    assert keys(worker) == ["errback"]


def test_a_chords_body_carries_its_key(charge: Task, worker: InlineWorker) -> None:
    """The body is published by the last member of the header, with its own key and not a member's."""
    header = [charge.si(order).set(idempotency_key=f"ord-{order}") for order in (1, 2)]
    chord(header)(charge.si("sum").set(idempotency_key="body"))
    assert worker.run_next().headers["idempotency_key"] == "ord-1"
    assert worker.run_next().headers["idempotency_key"] == "ord-2"
    assert keys(worker) == ["body"]


def test_two_publishes_of_one_key_are_one_run(
    charge: Task, worker: InlineWorker, seen: list[Event], store: MemoryStore
) -> None:
    """Whatever their task ids and arguments, and whichever way they were published."""
    results = [
        charge.apply_async(("17",), idempotency_key="ord-17"),
        charge.s("17").set(idempotency_key="ord-17").apply_async(),
        charge.si("18").set(idempotency_key="ord-17").delay(),
    ]
    worker.drain()
    assert [worker.result(result.id) for result in results] == [1, 1, 1]
    assert len(store.records()) == 1
    replayed = [event for event in seen if isinstance(event, Replayed)]
    assert [event.holder_task_id for event in replayed] == [results[0].id] * 2


def test_a_retry_keeps_the_callers_key(app: Celery, worker: InlineWorker, store: MemoryStore) -> None:
    """The key belongs to the call, not to the delivery."""

    @app.task(base=IdempotentTask, name="shop.retried", shared=False, bind=True)
    def retried(self: Task) -> int:
        if self.request.retries < 2:
            raise self.retry(countdown=0)
        return int(self.request.retries)

    first = retried.apply_async(idempotency_key="ord-17")
    assert [worker.run_next().headers["idempotency_key"] for _ in range(3)] == ["ord-17"] * 3
    second = retried.apply_async(idempotency_key="ord-17")
    worker.drain()
    assert (worker.result(first.id), worker.result(second.id)) == (2, 2)
    assert len(store.records()) == 1


def test_a_retry_keeps_the_key_beside_a_subclasss_headers(app: Celery, worker: InlineWorker) -> None:
    """An ``apply_async`` that gives each message headers of its own, in place of those that it is given."""

    class Tagged(IdempotentTask):
        abstract = True

        def apply_async(self, args: Any = None, kwargs: Any = None, *positional: Any, **options: Any) -> Any:
            return super().apply_async(args, kwargs, *positional, **{**options, "headers": {"tenant": "acme"}})

    @app.task(base=Tagged, name="shop.retried", shared=False, bind=True)
    def retried(self: Task) -> None:
        raise self.retry(countdown=0)

    retried.apply_async(idempotency_key="ord-17")
    assert [worker.run_next().headers["idempotency_key"] for _ in range(3)] == ["ord-17"] * 3


def test_a_retry_can_be_given_another_key(app: Celery, worker: InlineWorker) -> None:
    """What a body says about its retry beats what the caller said about the call."""

    @app.task(base=IdempotentTask, name="shop.retried", shared=False, bind=True)
    def retried(self: Task) -> None:
        raise self.retry(countdown=0, idempotency_key="ord-18")

    retried.apply_async(idempotency_key="ord-17")
    worker.run_next()
    assert keys(worker) == ["ord-18"]


def test_nothing_private_travels_with_a_retry(app: Celery, worker: InlineWorker) -> None:
    """A retry after a deferral counts its deferrals again, and knows no limit of this worker."""

    @app.task(base=IdempotentTask, name="shop.retried", shared=False, bind=True)
    def retried(self: Task) -> None:
        raise self.retry(countdown=0)

    retried.apply_async(headers={"tenant": "acme", "idempotency_deferrals": 4})
    worker.run_next()
    message = worker.take()
    assert [name for name in message.headers if name.startswith("idempotency")] == []
    assert message.headers["tenant"] == "acme"
    message.ack()


def test_a_published_subtask_does_not_inherit_the_key(app: Celery, charge: Task, worker: InlineWorker) -> None:
    """What a body publishes is another call, and the body's own claim is still held afterwards."""
    held: list[bool] = []

    @app.task(base=IdempotentTask, name="shop.outer", shared=False, bind=True)
    def outer(self: Task) -> str:
        charge.delay("17")
        self.apply_async(task_id="another")
        self.apply_async()
        held.append(self.idempotency.handed_over)
        return "done"

    outer.apply_async(idempotency_key="ord-17")
    worker.run_next()
    assert held == [False]
    assert keys(worker) == [None, None, None]


def test_publishing_oneself_again_frees_the_key_first(app: Celery, worker: InlineWorker, store: MemoryStore) -> None:
    """A body that publishes its own task id, as its own way of retrying, leaves the outcome to that message."""
    runs: list[int] = []

    @app.task(base=IdempotentTask, name="shop.again", shared=False, bind=True)
    def again(self: Task) -> str:
        runs.append(1)
        if len(runs) == 1:
            self.apply_async(task_id=self.request.id)
            return "not mine to say"
        return "done"

    again.delay()
    worker.drain()
    assert len(runs) == 2
    assert [record.data for record in store.records()] == ['"done"']


@pytest.mark.parametrize(
    ("key", "error"),
    [
        ("x" * 10_000, KeyEncodingError),
        ("a\nb", KeyEncodingError),
        (17, KeyEncodingError),
        (b"ord-17", KeyEncodingError),
        ("", MissingKeyError),
        (" ", MissingKeyError),
    ],
    ids=lambda value: repr(value)[:20],
)
def test_an_odd_key_is_not_published(
    charge: Task, worker: InlineWorker, key: Any, error: type[IdempotencyError]
) -> None:
    """The caller gets a typed error that names the task, where the mistake is, and the broker gets nothing."""
    with pytest.raises(error) as caught:
        charge.apply_async(("17",), idempotency_key=key)
    with pytest.raises(error):
        charge.s("17").set(idempotency_key=key).delay()
    assert caught.value.task == "shop.charge"
    assert worker.waiting() == 0


def test_positional_options_are_celerys(charge: Task, worker: InlineWorker) -> None:
    """``apply_async(args, kwargs, task_id)`` by position means what it always did."""
    charge.apply_async(("17",), {}, "id-1", None, charge.si("18"))
    message = worker.take()
    assert message.headers["id"] == "id-1"
    assert [link["args"] for link in message.payload[2]["callbacks"]] == [["18"]]
    message.ack()
