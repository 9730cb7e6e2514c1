"""Stores: where records live.  The protocols are for stores of your own."""

from idempotent_tasks.core.store import (
    CLOCK_TOLERANCE_SECONDS,
    MOST_FORGOTTEN,
    MOST_NOTED,
    AtomicStore,
    ParkingStore,
    ResultStore,
    SteppingStore,
    Store,
)

__all__ = [
    "CLOCK_TOLERANCE_SECONDS",
    "MOST_FORGOTTEN",
    "MOST_NOTED",
    "AtomicStore",
    "ParkingStore",
    "ResultStore",
    "SteppingStore",
    "Store",
]
