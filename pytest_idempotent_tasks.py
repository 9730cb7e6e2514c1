"""Pytest fixtures for tests of guarded tasks.

The module is outside the package and imports it only inside the fixtures: pytest loads every plugin in every run, and
the package imports Celery and boto3.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from idempotent_tasks.events import Event
    from idempotent_tasks.testing import FakeClock, MemoryStore

# Its tests are the package's own: without this a failure would not show the values that an assertion compared.
pytest.register_assert_rewrite("idempotent_tasks.testing.conformance")

__all__ = ["idempotency_clock", "idempotency_events", "idempotency_in_memory", "idempotency_store"]


@pytest.fixture
def idempotency_clock() -> FakeClock:
    """A manual clock, which stands still until the test moves it."""
    from idempotent_tasks.testing import FakeClock

    return FakeClock()


@pytest.fixture
def idempotency_store(idempotency_clock: FakeClock) -> MemoryStore:
    """An empty in-memory store on `idempotency_clock`."""
    from idempotent_tasks.testing import MemoryStore

    return MemoryStore(clock=idempotency_clock)


@pytest.fixture
def idempotency_events() -> list[Event]:
    """The events of the apps that were passed to `idempotency_in_memory`, in order."""
    return []


@pytest.fixture
def idempotency_in_memory(
    idempotency_store: MemoryStore, idempotency_events: list[Event]
) -> Iterator[Callable[[Any], None]]:
    """A function that makes a Celery app use `idempotency_store` until the test ends."""
    from idempotent_tasks.testing import temporary_settings

    with ExitStack() as stack:

        def switch(app: Any) -> None:
            settings = temporary_settings(app, store=idempotency_store, observers=[idempotency_events.append])
            stack.enter_context(settings)

        yield switch
