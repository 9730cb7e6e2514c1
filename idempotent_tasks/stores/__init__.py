"""Stores: where records live.  `Store` and `ResultStore` are the protocols that a store of your own speaks."""

from idempotent_tasks.core.store import CLOCK_TOLERANCE_SECONDS, MOST_FORGOTTEN, MOST_NOTED, ResultStore, Store

__all__ = ["CLOCK_TOLERANCE_SECONDS", "MOST_FORGOTTEN", "MOST_NOTED", "ResultStore", "Store"]
