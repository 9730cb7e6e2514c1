"""Tools to test guarded tasks: an in-memory store, a manual clock, and crashes and redeliveries where you want them.

`redeliver` crashes a task's process; `crash_plans` lists where that can happen.  `StoreConformance` tests a store of
your own.

The pytest fixtures are in the module ``pytest_idempotent_tasks``.
"""

from idempotent_tasks.settings import temporary_settings
from idempotent_tasks.stores.memory import MemoryStore
from idempotent_tasks.testing.clock import FakeClock
from idempotent_tasks.testing.conformance import StoreConformance
from idempotent_tasks.testing.redelivery import Crash, Redelivery, WorkerDied, crash_plans, redeliver

__all__ = [
    "Crash",
    "FakeClock",
    "MemoryStore",
    "Redelivery",
    "StoreConformance",
    "WorkerDied",
    "crash_plans",
    "redeliver",
    "temporary_settings",
]
