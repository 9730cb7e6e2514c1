"""A ``__call__`` of another class: it runs inside the guard, once a run, wherever it stands among the classes."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any

import pytest
from celery import Celery, Task
from celery.worker import WorkController

from idempotent_tasks import ConfigurationError, IdempotentTask
from idempotent_tasks.messaging.unguarded import UnguardedRun
from tests.support.shop import Shop

Call = Callable[..., Any]


class Context:
    """An application's context, as web frameworks have it."""

    def __init__(self) -> None:
        self.open = 0
        self.entered = 0

    @contextmanager
    def __call__(self) -> Iterator[None]:
        """Be entered for the length of a block."""
        self.open += 1
        self.entered += 1
        try:
            yield
        finally:
            self.open -= 1


@pytest.fixture
def context() -> Context:
    """A context that nobody has entered."""
    return Context()


def in_context(context: Context, inner: Call) -> Call:
    """Return the ``__call__`` of the recipes."""

    def __call__(self: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: N807 - it becomes the method
        with context():
            return inner(self, *args, **kwargs)

    return __call__


def run(self: Any, *args: Any, **kwargs: Any) -> Any:
    """Call the body: ``return self.run(...)``."""
    return self.run(*args, **kwargs)


def subclass(context: Context) -> type[Task]:
    """Return the recipe over the guarded class."""

    class Patched(IdempotentTask):
        abstract = True
        __call__ = in_context(context, run)

    return Patched


def subclass_with_super(context: Context) -> type[Task]:
    """Return the recipe that asks its base instead of the body."""

    class Patched(IdempotentTask):
        abstract = True

        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            with context():
                return super().__call__(*args, **kwargs)

    return Patched


def subclass_by_name(context: Context) -> type[Task]:
    """Return the recipe that names its base."""

    class Patched(IdempotentTask):
        abstract = True
        __call__ = in_context(context, IdempotentTask.__call__)

    return Patched


def plain(context: Context) -> type[Task]:
    """Return the recipe as a framework's guide prints it, for Celery's own class."""

    class ContextTask(Task):
        abstract = True
        __call__ = in_context(context, run)

    return ContextTask


def context_first(context: Context) -> type[Task]:
    """Return the framework's class before ours."""
    return type("ContextFirst", (plain(context), IdempotentTask), {"abstract": True})


def context_first_with_super(context: Context) -> type[Task]:
    """Return a mixin before ours that goes on to it."""

    class Mixin:
        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            with context():
                return super().__call__(*args, **kwargs)  # type: ignore[misc]

    return type("ContextFirst", (Mixin, IdempotentTask), {"abstract": True})


def guard_first(context: Context) -> type[Task]:
    """Return ours before the framework's class."""
    return type("GuardFirst", (IdempotentTask, plain(context)), {"abstract": True})


SHAPES = [
    subclass,
    subclass_with_super,
    subclass_by_name,
    context_first,
    context_first_with_super,
    guard_first,
]
shapes = pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: shape.__name__)


def sell(shop: Shop, base: type[Task], context: Context, **options: Any) -> list[Any]:
    """Make the shop's task, and return the list in which each run notes whether the context was open."""
    runs: list[Any] = []

    def charge(self: Any) -> str:
        runs.append((context.open, self.idempotency.attempt, self.request.called_directly))
        return "paid"

    shop.task = shop.app.task(charge, base=base, name="shop.charge", bind=True, shared=False, **options)
    return runs


@shapes
def test_a_delivery_runs_in_the_context_and_a_redelivery_replays(
    shop: Shop, context: Context, shape: Callable[[Context], type[Task]]
) -> None:
    """The guard decides first: one run, in the context, under a claim; the replay does not enter the context."""
    runs = sell(shop, shape(context), context)
    shop.deliver()
    shop.deliver()
    assert (runs, context.entered, context.open) == ([(1, 1, False)], 1, 0)
    assert (shop.state, shop.result) == ("SUCCESS", "paid")


@shapes
def test_an_eager_call_too(shop: Shop, context: Context, shape: Callable[[Context], type[Task]]) -> None:
    """``apply`` is a delivery."""
    runs = sell(shop, shape(context), context)
    assert [shop.task.apply(task_id=shop.id).get() for _ in range(2)] == ["paid", "paid"]
    assert (runs, context.entered) == ([(1, 1, False)], 1)


@shapes
def test_a_direct_call_is_made_in_the_context_and_unguarded(
    shop: Shop, context: Context, shape: Callable[[Context], type[Task]]
) -> None:
    """As with a plain Celery task of that class."""
    runs = sell(shop, shape(context), context)
    assert [shop.task(), shop.task()] == ["paid", "paid"]
    assert ([each[0] for each in runs], context.entered, shop.store.records()) == ([1, 1], 2, [])


def test_a_task_that_calls_itself_enters_the_context_each_time(app: Celery, context: Context) -> None:
    """The nested call is a function call under the outer claim."""

    def factorial(self: Any, number: int) -> int:
        assert self.idempotency.attempt == 1
        return number * self(number - 1) if number else 1

    task: Any = app.task(factorial, base=subclass(context), name="shop.factorial", bind=True, shared=False)
    assert (task.apply((3,)).get(), context.entered) == (6, 4)


def test_a_class_based_task_with_a_call_of_its_own(shop: Shop, context: Context) -> None:
    """The class that is registered is the one that defines it; binding it again changes nothing."""

    class Charge(IdempotentTask):
        name = "shop.charge"
        runs = 0

        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            with context():
                return super().__call__(*args, **kwargs)

        def run(self) -> int:
            self.runs += 1
            return self.runs

    shop.task = shop.app.register_task(Charge())
    Charge.bind(shop.app)
    shop.deliver()
    shop.deliver()
    assert (shop.result, context.entered) == (1, 1)


def test_a_call_that_nobody_awaits_is_refused(app: Celery) -> None:
    """Its body would never run; the error names the class when the task is bound."""

    class Awaited(IdempotentTask):
        name = "shop.awaited"

        async def __call__(self, *args: Any, **kwargs: Any) -> Any:
            return self.run(*args, **kwargs)

    with pytest.raises(ConfigurationError, match=r"Awaited\.__call__ is an async function"):
        app.register_task(Awaited())


def test_a_tracer_that_wraps_the_bound_class_stays_outside(shop: Shop, context: Context) -> None:
    """Sentry and New Relic replace ``type(task).__call__`` when a worker builds its tracer: each delivery is seen."""
    runs = sell(shop, subclass(context), context)
    kind = type(shop.app.tasks["shop.charge"])
    seen: list[str] = []
    guarded = kind.__call__

    @wraps(guarded)
    def traced(self: Any, *args: Any, **kwargs: Any) -> Any:
        seen.append(self.name)
        return guarded(self, *args, **kwargs)

    kind.__call__ = traced
    kind.keep_guard_outermost()
    shop.deliver()
    shop.deliver()
    assert (len(runs), context.entered, seen) == (1, 1, ["shop.charge"] * 2)


@pytest.mark.parametrize("shape", [subclass, guard_first], ids=["subclass", "guard-first"])
def test_a_call_that_is_patched_in_later_is_found_when_the_worker_starts(
    shop: Shop, context: Context, shape: Callable[[Context], type[Task]]
) -> None:
    """A framework that is initialised after the tasks were bound replaces what they were bound with."""
    runs = sell(shop, shape(context), context)
    later = Context()
    type(shop.app.tasks["shop.charge"]).__call__ = in_context(later, run)
    WorkController(app=shop.app, pool="solo", concurrency=1)
    shop.deliver()
    shop.deliver()
    assert (len(runs), later.entered) == (1, 1)


def test_the_kill_switch_leaves_the_context(shop: Shop, context: Context) -> None:
    """Under ``idempotency_disabled`` nothing is guarded, and the context is still entered."""
    shop.app.conf.idempotency_disabled = True
    runs = sell(shop, guard_first(context), context)
    shop.deliver()
    shop.deliver()
    assert (len(runs), context.entered) == (2, 2)


@pytest.mark.parametrize("name", ["idempotency_received", "idempotency_run", "idempotency_tell_when_sent"])
@pytest.mark.parametrize("value", [True, "x"], ids=repr)
def test_no_header_reaches_what_the_guard_notes(shop: Shop, name: str, value: Any) -> None:
    """Headers become attributes of the request, under whatever name."""
    runs: list[Any] = []

    def charge(self: Any) -> str:
        runs.append(self.idempotency.attempt)
        return "paid"

    shop.task = shop.app.task(charge, base=IdempotentTask, name="shop.charge", bind=True, shared=False)
    for _ in range(2):
        shop.deliver(headers={name: value})
    assert (runs, shop.result) == ([1], "paid")
    assert shop.task.idempotency == UnguardedRun()


@pytest.mark.parametrize("name", ["is_eager", "called_directly", "_protected", "idempotency_owner"])
def test_no_header_makes_a_delivery_something_else(shop: Shop, name: str) -> None:
    """A duplicate of a running key is deferred, whatever its headers call it."""
    shop.sells(lambda task: "mine")
    shop.claim_elsewhere()
    shop.deliver(headers={name: "elsewhere"})
    assert (shop.runs, shop.deferrals()) == (0, ["busy"])
