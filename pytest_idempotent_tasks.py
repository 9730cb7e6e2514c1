"""The pytest plug-in of idempotent_tasks: fixtures for tests of guarded tasks.

It stands beside the package and imports it only where a fixture is used: pytest loads every plug-in in every run, and
the package brings Celery and boto3.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from idempotent_tasks.events import Event
    from idempotent_tasks.testing import FakeClock, MemoryStore

__all__ = ["idempotency_clock", "idempotency_events", "idempotency_in_memory", "idempotency_store"]


@pytest.fixture
def idempotency_clock() -> FakeClock:
    """A clock that stands still until the test moves it."""
    from idempotent_tasks.testing import FakeClock

    return FakeClock()


@pytest.fixture
def idempotency_store(idempotency_clock: FakeClock) -> MemoryStore:
    """An empty store in memory, on the test's clock."""
    from idempotent_tasks.testing import MemoryStore

    return MemoryStore(clock=idempotency_clock)


@pytest.fixture
def idempotency_events() -> list[Event]:
    """The events of the apps that were given to `idempotency_in_memory`, in order."""
    return []


@pytest.fixture
def idempotency_in_memory(
    idempotency_store: MemoryStore, idempotency_events: list[Event]
) -> Iterator[Callable[[Any], None]]:
    """Lets a Celery app keep its records in the test's own store until the test ends; its configuration stays."""
    from idempotent_tasks.testing import temporary_settings

    with ExitStack() as stack:

        def switch(app: Any) -> None:
            settings = temporary_settings(app, store=idempotency_store, observers=[idempotency_events.append])
            stack.enter_context(settings)

        yield switch
