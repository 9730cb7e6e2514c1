"""Stores: where records live.  A store of your own speaks the protocol `Store`, `ParkingStore` or `ResultStore`."""

from idempotent_tasks.core.store import (
    CLOCK_TOLERANCE_SECONDS,
    MOST_FORGOTTEN,
    MOST_NOTED,
    ParkingStore,
    ResultStore,
    Store,
)

__all__ = ["CLOCK_TOLERANCE_SECONDS", "MOST_FORGOTTEN", "MOST_NOTED", "ParkingStore", "ResultStore", "Store"]
