"""The parent's side: a real worker's request tells the body its enforced time limit."""

import json
from collections.abc import Callable
from typing import Any

import pytest
from celery import Celery, Task
from celery.worker import WorkController

from idempotent_tasks import IdempotentTask
from idempotent_tasks.core.delivery import HARD_LIMIT_ENTRY, MESSAGE_ENTRY, ReceivedMessage
from idempotent_tasks.testing import MemoryStore
from idempotent_tasks.worker.request import GuardedRequest, remember_worker
from tests.support.inline import InlineWorker

Worker = Callable[..., WorkController]


@pytest.fixture
def start_worker(app: Celery) -> Worker:
    """Make a worker that never starts its pool, and remember it as its own signal would.

    The app has no guarded task yet, so that a prefork worker does not refuse the store in memory.
    """

    def make(pool: str, **options: Any) -> WorkController:
        controller = WorkController(app=app, pool=f"celery.concurrency.{pool}:TaskPool", concurrency=1, **options)
        remember_worker(controller)
        return controller

    return make


def task_of(app: Celery, **options: Any) -> Task:
    """Return a task that says how its claim is limited."""

    @app.task(base=IdempotentTask, shared=False, name="shop.charge", bind=True, **options)
    def charge(self: Task) -> list[Any]:
        return [self.request.get(HARD_LIMIT_ENTRY), self.idempotency.claim.expires_at]

    return charge


def request_of(task: Task, worker: InlineWorker, **options: Any) -> GuardedRequest:
    """Publish, and return the request that the worker's parent process makes of the message."""
    task.apply_async(**options)
    message = worker.take()
    request = worker.receive(message)
    message.ack()
    assert isinstance(request, GuardedRequest)
    return request


@pytest.mark.parametrize(
    ("limits", "enforced"),
    [
        pytest.param({"call": 10, "task": 20, "app": 30, "worker": 40}, 10.0, id="call"),
        pytest.param({"task": 20, "app": 30, "worker": 40}, 20.0, id="task"),
        pytest.param({"app": 30}, 30.0, id="app"),
        pytest.param({"worker": 40}, 40.0, id="worker"),
        pytest.param({}, None, id="none"),
        pytest.param({"call": 0.5, "worker": 40}, 0.5, id="fraction"),
    ],
)
def test_the_nearest_limit_counts(
    app: Celery, worker: InlineWorker, start_worker: Worker, limits: dict[str, Any], enforced: float | None
) -> None:
    """The call's limit beats the task's, which beats the worker's, which is ``--time-limit`` or the app's."""
    app.conf.task_time_limit = limits.get("app")
    controller = start_worker("prefork", time_limit=limits.get("worker"))
    task = task_of(app, **({"time_limit": limits["task"]} if "task" in limits else {}))
    request = request_of(task, worker, **({"time_limit": limits["call"]} if "call" in limits else {}))
    assert request.request_dict[HARD_LIMIT_ENTRY] == enforced
    del controller


@pytest.mark.parametrize("pool", ["solo", "thread"])
def test_a_pool_that_kills_nobody_has_no_limit(
    app: Celery, worker: InlineWorker, start_worker: Worker, pool: str
) -> None:
    """A limit that nothing enforces is no reason to let a claim run out."""
    controller = start_worker(pool, time_limit=40)
    request = request_of(task_of(app, time_limit=20), worker, time_limit=10)
    assert request.request_dict[HARD_LIMIT_ENTRY] is None
    del controller


def test_without_a_worker_there_is_no_limit(app: Celery, worker: InlineWorker) -> None:
    """A request that no worker received, as in a test harness, is unlimited."""
    assert request_of(task_of(app, time_limit=20), worker).request_dict[HARD_LIMIT_ENTRY] is None


def test_a_worker_that_is_gone_is_forgotten(app: Celery, worker: InlineWorker) -> None:
    """Remembering a worker does not keep its app alive in the memory of this process."""
    other = Celery("other", broker="memory://", set_as_current=False)
    remember_worker(WorkController(app=other, pool="solo", concurrency=1))
    assert request_of(task_of(app, time_limit=20), worker).request_dict[HARD_LIMIT_ENTRY] is None


def test_a_publisher_cannot_set_the_limit(app: Celery, worker: InlineWorker) -> None:
    """A header of the entry's name is overwritten by what the parent knows."""
    request = request_of(task_of(app), worker, headers={HARD_LIMIT_ENTRY: 9_999, MESSAGE_ENTRY: "x/y"})
    assert request.request_dict[HARD_LIMIT_ENTRY] is None
    assert isinstance(request.request_dict["properties"][MESSAGE_ENTRY], ReceivedMessage)


def test_without_a_limit_the_claim_is_a_lease(app: Celery, worker: InlineWorker, store: MemoryStore) -> None:
    """A body that nothing limits claims for a minute at a time."""
    result = task_of(app).apply_async()
    worker.run_next()
    assert worker.result(result.id) == [None, pytest.approx(store.clock.now() + 60, abs=0.001)]


def test_a_claim_outlives_an_enforced_limit_by_the_grace(
    app: Celery, worker: InlineWorker, start_worker: Worker, store: MemoryStore
) -> None:
    """Under a prefork worker nothing is renewed: the claim simply lives longer than the body can."""
    controller = start_worker("prefork")
    result = task_of(app, time_limit=20, idempotency={"grace": 3}).apply_async()
    worker.run_next()
    assert worker.result(result.id) == [20.0, pytest.approx(store.clock.now() + 23, abs=0.001)]
    del controller


def test_a_body_may_hand_on_its_headers(app: Celery, worker: InlineWorker) -> None:
    """As bodies do for a tenant or a trace: what the parent says is nothing that a broker cannot take."""

    @app.task(base=IdempotentTask, shared=False, name="shop.charge", bind=True)
    def charge(self: Task) -> str:
        return json.dumps(self.request.headers)

    result = charge.apply_async(headers={"tenant": "acme"})
    worker.run_next()
    assert json.loads(worker.result(result.id))["tenant"] == "acme"
