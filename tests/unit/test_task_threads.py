"""Bodies that use other threads, or an event loop: what they see of their run there."""

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from typing import Any

import pytest
from celery import Celery

from idempotent_tasks import ConfigurationError, IdempotentTask
from tests.support.shop import make

BOUND_SECONDS = 30.0


def in_this_thread(read: Callable[[], Any]) -> Any:
    """Read where the body runs."""
    return read()


def in_a_coroutine(read: Callable[[], Any]) -> Any:
    """Read in an event loop of the body's."""

    async def main() -> Any:
        await asyncio.sleep(0)
        return await asyncio.create_task(coroutine())

    async def coroutine() -> Any:
        await asyncio.sleep(0)
        return read()

    return asyncio.run(main())


def in_a_loops_thread(read: Callable[[], Any]) -> Any:
    """Read in a thread that an event loop waits for."""

    async def main() -> Any:
        return await asyncio.to_thread(read)

    return asyncio.run(main())


def in_a_pools_thread(read: Callable[[], Any]) -> Any:
    """Read in a thread of a pool, in the body's context."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(copy_context().run, read).result(BOUND_SECONDS)


def in_a_bare_thread(read: Callable[[], Any]) -> Any:
    """Read in a thread that was given no context."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(read).result(BOUND_SECONDS)


#: The ways that need nothing but `self.idempotency`.
ways = pytest.mark.parametrize("way", [in_this_thread, in_a_coroutine, in_a_loops_thread, in_a_pools_thread])


@ways
def test_a_body_reaches_its_run(app: Celery, way: Callable[..., Any]) -> None:
    """The same object everywhere, so that a loss is seen everywhere too."""

    def charge(self: Any, order: str) -> bool:
        run = self.idempotency
        assert run.key is not None
        assert way(lambda: self.idempotency) is run
        run.claim_lost = True
        return bool(way(lambda: self.idempotency.lost))

    task = make(app, charge, bind=True, idempotency={"key": "order"})
    assert task.apply(("17",)).get() is True
    assert task.idempotency.key is None


def test_a_thread_without_the_context_needs_the_run_itself(app: Celery) -> None:
    """Python hands a pool's thread no context: take the run first."""

    def charge(self: Any) -> list[Any]:
        run = self.idempotency
        return [in_a_bare_thread(lambda: self.idempotency.key), in_a_bare_thread(lambda: run.key) == run.key]

    assert make(app, charge, bind=True).apply().get() == [None, True]


@ways
def test_a_direct_call_there_is_a_plain_call(app: Celery, way: Callable[..., Any]) -> None:
    """The task called as a function has no run, wherever that is, and the outer run is still there afterwards."""
    keys: list[str | None] = []

    def charge(self: Any, *, inner: bool = False) -> None:
        keys.append(self.idempotency.key)
        if not inner:
            way(lambda: other(inner=True))
            keys.append(way(lambda: self.idempotency.key))

    other = make(app, charge, bind=True, name="shop.other")
    task = make(app, charge, bind=True)
    task.apply().get()
    assert keys[1] is None
    assert keys[0] == keys[2]
    assert keys[0] is not None


@ways
def test_each_task_has_its_own_run_there(app: Celery, way: Callable[..., Any]) -> None:
    """Where a body calls another task eagerly, both runs are seen, each through its own task."""

    def outer(self: Any) -> list[Any]:
        return [self.idempotency.key, *inner.apply((self,)).result, way(lambda: inner.idempotency.key)]

    def read(self: Any, caller: Any) -> Any:
        return [way(lambda: caller.idempotency.key), way(lambda: self.idempotency.key) == self.idempotency.key]

    inner = make(app, read, bind=True, name="shop.inner")
    own, seen_by_inner, inner_sees_itself, afterwards = make(app, outer, bind=True).apply().get()
    assert seen_by_inner == own
    assert inner_sees_itself is True
    assert afterwards is None


def test_bodies_side_by_side_have_runs_of_their_own(app: Celery) -> None:
    """Threads of one task's bodies do not see each other's run."""
    together = threading.Barrier(2, timeout=BOUND_SECONDS)

    def charge(self: Any, order: str) -> bool:
        together.wait()
        seen = in_a_loops_thread(lambda: self.idempotency.key)
        together.wait()
        return bool(seen == self.idempotency.key)

    task = make(app, charge, bind=True, idempotency={"key": "order"})
    with ThreadPoolExecutor(2) as pool:
        results = [pool.submit(task.apply, (order,)) for order in ("17", "18")]
        assert [each.result(BOUND_SECONDS).get() for each in results] == [True, True]


@pytest.mark.parametrize("bound", [True, False], ids=["bound", "plain"])
def test_an_async_body_is_refused(app: Celery, *, bound: bool) -> None:
    """Celery would take the coroutine for the result, and never run it."""

    async def charge(*args: Any) -> None:
        """Do nothing."""

    async def stream(*args: Any) -> Any:
        yield args

    for body in (charge, stream):
        with pytest.raises(ConfigurationError, match=rf"{body.__name__} is an async function.*asyncio\.run"):
            make(app, body, bind=bound).name  # noqa: B018 - an app makes a task when it is first used


def test_a_task_class_with_an_async_body_is_refused() -> None:
    """So is one that is written as a class."""
    with pytest.raises(ConfigurationError, match="Charge"):

        class Charge(IdempotentTask):
            async def run(self) -> None:
                """Do nothing."""
