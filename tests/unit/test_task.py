"""`IdempotentTask` as users declare and call it: policies, bodies of every kind, eager and direct calls."""

from types import SimpleNamespace
from typing import Any

import celery
import pytest
from celery import Celery, Task
from pydantic import BaseModel

from idempotent_tasks import (
    ConfigurationError,
    Idempotency,
    IdempotentTask,
)
from idempotent_tasks.messaging.unguarded import UnguardedRun
from idempotent_tasks.testing import FakeClock, MemoryStore
from tests.support.shop import Counting, make

CELERY_VERSION = tuple(int(part) for part in celery.__version__.split(".")[:2])


class OrderModel(BaseModel):
    """An argument that pydantic checks."""

    id: int
    amount: int = 5


def test_messages_survive_their_worker_by_default(app: Celery, counting: Counting) -> None:
    """Late acknowledgement and redelivery of a lost worker's message are the class's defaults, and can be changed."""
    task = counting.make(app)
    assert task.acks_late
    assert task.reject_on_worker_lost
    assert not counting.make(app, name="shop.early", acks_late=False).acks_late


def test_a_direct_call_is_a_function_call(app: Celery, counting: Counting, store: MemoryStore) -> None:
    """Calling the task runs the body each time and asks no store, nor for any setting."""
    task = counting.make(app, idempotency={"key": "order"})
    assert task("17") == [1, "17", 5]
    assert task("17") == [2, "17", 5]
    assert task(order=None) == [3, None, 5]
    assert store.records() == []


def test_a_nested_direct_call_runs_under_the_outer_claim(app: Celery, store: MemoryStore) -> None:
    """A body that calls its own task does not meet its own claim."""

    def factorial(self: Any, number: int) -> int:
        assert self.idempotency.attempt == 1
        return number * self(number - 1) if number else 1

    task = make(app, factorial, bind=True, idempotency={"key": "number"})
    assert task.apply((4,)).get() == 24
    assert len(store.records()) == 1


def test_a_nested_call_of_another_task_is_a_function_call(app: Celery, counting: Counting, store: MemoryStore) -> None:
    """Only what is delivered is guarded."""
    inner = counting.make(app, name="shop.inner", idempotency={"key": "order"})

    def outer() -> list[Any]:
        return [inner("17")[0], inner("17")[0]]

    assert make(app, outer).apply().get() == [1, 2]
    assert [record.task for record in store.records()] == ["shop.charge"]


def test_a_bound_body_sees_its_run(app: Celery, store: MemoryStore, clock: FakeClock) -> None:
    """Key, fence and attempt are those of the record; another run of the key has a larger fence."""
    told: list[Any] = []

    def charge(self: Any, order: str) -> None:
        run = self.idempotency
        told.append((run.key, run.fence, run.attempt, run.lost))
        raise KeyError

    task = make(app, charge, bind=True, idempotency={"key": "order"})
    for _ in range(2):
        task.apply(("17",))
    (record,) = store.records()
    assert told == [(record.key, record.fence - 1, 1, False), (record.key, record.fence, 1, False)]


def test_outside_a_guarded_body_there_is_no_run(app: Celery) -> None:
    """A direct call, and the task itself between calls, have an empty run of the same shape."""

    def charge(self: Any) -> Any:
        return self.idempotency

    task = make(app, charge, bind=True)
    assert task() == task.idempotency == UnguardedRun(key=None, fence=0, attempt=0, lost=False)


def test_a_class_based_task(app: Celery) -> None:
    """``run`` is guarded, its ``self`` is no argument, and ``idempotency`` is taken as the policy."""

    class Charge(IdempotentTask):
        name = "shop.charge"
        idempotency = Idempotency(key="order")  # type: ignore[assignment]
        runs = 0

        def run(self, order: str) -> list[Any]:
            self.runs += 1
            return [self.runs, self.idempotency.attempt]  # type: ignore[attr-defined]

    task = app.register_task(Charge())
    assert task.apply(("17",)).get() == task.apply((), {"order": "17"}).get() == [1, 1]
    assert task.idempotency_policy == Idempotency(key="order")


def test_a_base_class_hands_its_policy_down(app: Celery, counting: Counting) -> None:
    """A project's own base sets the policy of its tasks; a task's own replaces it whole."""

    class ShopTask(IdempotentTask):
        abstract = True
        idempotency = {"key": "order", "expires": 60}  # type: ignore[assignment]  # noqa: RUF012

    inheriting = counting.make(app, base=ShopTask)
    overriding = counting.make(app, base=ShopTask, name="shop.other", idempotency={"key": "amount"})
    assert inheriting.idempotency_policy == Idempotency(key="order", expires=60)
    assert overriding.idempotency_policy == Idempotency(key="amount")
    assert IdempotentTask.idempotency_policy == Idempotency()


def test_the_base_class_itself_can_be_bound(app: Celery) -> None:
    """Celery binds a task class when its ``app`` is read, as tools that list tasks do."""
    IdempotentTask.on_bound(app)
    assert isinstance(vars(IdempotentTask)["idempotency"], property)


def do_nothing() -> None:
    """Be a body."""


def test_every_task_of_an_app(store: MemoryStore) -> None:
    """``task_cls`` guards tasks that do not know of the library."""
    app = Celery("shop", broker="memory://", task_cls="idempotent_tasks:IdempotentTask", set_as_current=False)
    app.conf.idempotency_store = store
    runs = []

    @app.task(name="shop.charge", shared=False, idempotency={"key": "order"})
    def charge(order: str) -> int:
        runs.append(order)
        return len(runs)

    @app.task(name="shop.plain", shared=False)
    def plain() -> None:
        """Say nothing of idempotency."""

    assert charge.apply(("17",)).get() == charge.apply(("17",)).get() == 1
    assert plain.apply().successful()
    assert isinstance(plain, IdempotentTask)
    assert {record.task for record in store.records()} == {"shop.charge", "shop.plain"}


@pytest.mark.parametrize("name", ["shop.charge", "*"])
def test_task_annotations_set_the_policy(app: Celery, counting: Counting, name: str) -> None:
    """An app's configuration can set a task's policy without touching its code."""
    app.conf.task_annotations = {name: {"idempotency": {"key": "order"}}}
    task = counting.make(app)
    assert task.apply(("17",)).get() == task.apply(("17",)).get()
    assert task.idempotency_policy == Idempotency(key="order")
    assert task.idempotency == UnguardedRun()


def test_django_style_settings_reach_the_task(store: MemoryStore, counting: Counting) -> None:
    """``CELERY_IDEMPOTENCY_KEY`` of a settings module is every task's default key."""
    app = Celery("shop", broker="memory://", set_as_current=False)
    settings = SimpleNamespace(CELERY_IDEMPOTENCY_STORE=store, CELERY_IDEMPOTENCY_KEY="order")
    app.config_from_object(settings, namespace="CELERY")
    task = counting.make(app)
    assert task.apply(("17",)).get() == task.apply(("17",)).get()


def test_a_tasks_own_policy_beats_the_settings(app: Celery, counting: Counting, store: MemoryStore) -> None:
    """And the settings fill what it leaves open."""
    app.conf.update(idempotency_expires=60, idempotency_prefix="from-settings")
    counting.make(app, idempotency={"prefix": "own"}).apply()
    (record,) = store.records()
    assert record.key.startswith("own#")
    assert record.expiration == int(store.clock.now()) + 62


@pytest.mark.parametrize("policy", [{"keys": "order"}, {"expires": -1}, "order", Idempotency], ids=repr)
def test_a_wrong_policy_fails_before_any_delivery(app: Celery, policy: Any) -> None:
    """Whatever Celery makes lazy, the error comes when the app's tasks are put together."""
    with pytest.raises(ConfigurationError):
        make(app, do_nothing, idempotency=policy).run  # noqa: B018


@pytest.mark.skipif(CELERY_VERSION < (5, 5), reason="pydantic=True came with Celery 5.5")
def test_a_pydantic_task(app: Celery) -> None:
    """The key is read from what was sent, a mapping or a model; a model that is returned replays as its mapping."""
    runs = []

    def charge(self: Any, order: OrderModel) -> OrderModel:
        runs.append((order, self.idempotency.attempt))
        return OrderModel(id=order.id, amount=order.amount * 2)

    task = make(app, charge, bind=True, pydantic=True, idempotency={"key": "order.id"})
    assert task.apply(({"id": 17},)).get() == {"id": 17, "amount": 10}
    assert task.apply((), {"order": OrderModel(id=17)}).get() == {"id": 17, "amount": 10}
    assert runs == [(OrderModel(id=17), 1)]


def test_a_task_name_that_is_no_prefix_needs_one(app: Celery, counting: Counting) -> None:
    """A name that would not fit into a key is an error that says so, and a prefix heals it."""
    long = "shop." + "x" * 600
    with pytest.raises(ConfigurationError, match="prefix"):
        counting.make(app, name=long).apply().get()
    assert counting.make(app, name=f"{long}2", idempotency={"prefix": "shop"}).apply().get()[0] == 1


def test_two_tasks_share_keys_by_prefix_only(app: Celery, counting: Counting) -> None:
    """The same arguments are another key for another task, unless both are given one prefix."""
    first = counting.make(app, name="shop.a", idempotency={"key": "order"})
    second = counting.make(app, name="shop.b", idempotency={"key": "order"})
    third = counting.make(app, name="shop.c", idempotency={"key": "order", "prefix": "shop.a"})
    assert [task.apply(("17",)).get()[0] for task in (first, second, third)] == [1, 2, 1]


def test_a_policy_is_put_together_once(app: Celery, counting: Counting) -> None:
    """Deliveries share the compiled policy until the app is given another store."""
    task: Any = counting.make(app, idempotency={"key": "order"})
    task.apply(("17",))
    resolved = task._resolved
    task.apply(("18",))
    assert task._resolved is resolved
    app.conf.idempotency_store = MemoryStore()
    assert task.apply(("17",)).get()[0] == 3


def test_the_task_stays_a_celery_task(app: Celery, counting: Counting) -> None:
    """Nothing that Celery offers on a task is lost."""
    task = counting.make(app)
    assert isinstance(task, Task)
    assert task.s("17").task == "shop.charge"
    assert task.__name__ == "charge"


def test_a_task_class_may_declare_its_policy_by_its_typed_name(app: Celery, store: MemoryStore) -> None:
    """``idempotency_policy`` says the same as ``idempotency``, in a class body too."""

    class Charge(IdempotentTask):
        name = "shop.charge"
        idempotency_policy = Idempotency(key="order")

        def run(self, order: str) -> str:
            return order

    task = app.register_task(Charge())
    for task_id in ("one", "two"):
        assert task.apply(("17",), task_id=task_id).get() == "17"
    assert len(store.records()) == 1
