"""What users need to test their own tasks: a store in memory, a clock that only a test moves, deliveries cut short.

The fixtures of the pytest plug-in are in the module ``pytest_idempotent_tasks``, beside this package.
"""

from idempotent_tasks.settings import temporary_settings
from idempotent_tasks.stores.memory import MemoryStore
from idempotent_tasks.testing.clock import FakeClock
from idempotent_tasks.testing.redelivery import Crash, Redelivery, WorkerDied, redeliver

__all__ = ["Crash", "FakeClock", "MemoryStore", "Redelivery", "WorkerDied", "redeliver", "temporary_settings"]
