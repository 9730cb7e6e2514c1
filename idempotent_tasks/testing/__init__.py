"""Tools to test guarded tasks: an in-memory store, a manual clock, and `redeliver` for crashes and redeliveries.

`StoreConformance` tests a store of your own.

The pytest fixtures are in the module ``pytest_idempotent_tasks``.
"""

from idempotent_tasks.settings import temporary_settings
from idempotent_tasks.stores.memory import MemoryStore
from idempotent_tasks.testing.clock import FakeClock
from idempotent_tasks.testing.conformance import StoreConformance
from idempotent_tasks.testing.redelivery import Crash, Redelivery, WorkerDied, redeliver

__all__ = [
    "Crash",
    "FakeClock",
    "MemoryStore",
    "Redelivery",
    "StoreConformance",
    "WorkerDied",
    "redeliver",
    "temporary_settings",
]
