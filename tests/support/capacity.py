"""What DynamoDB bills for an item, and a delivery whose names are as long as real ones.

The rules are AWS's (https://docs.aws.amazon.com/amazondynamodb/latest/developerguide/CapacityUnitCalculations.html and
read-write-operations.html there): a write costs a unit for each KB of the item before or after it, whichever is
larger, also where its condition fails; a consistent read costs one for each 4 KB.
"""

from collections.abc import Mapping
from math import ceil
from typing import Any

__all__ = ["KEY", "KILOBYTE", "RETENTION", "claimed_by", "read_units", "size_of", "token_of", "write_units"]

KEY = f"shop.charge#{'0123456789abcdef' * 4}"
RETENTION = 86_400.0
KILOBYTE = 1024


def size_of(item: Mapping[str, Mapping[str, Any]]) -> int:
    """Return an item's bytes: names and values, each number about half a byte a digit and one more."""
    return sum(len(name.encode()) + _value_size(value) for name, value in item.items())


def write_units(item_bytes: int) -> int:
    """Return the write units of one write to an item of so many bytes."""
    return max(ceil(item_bytes / KILOBYTE), 1)


def read_units(item_bytes: int) -> int:
    """Return the read units of one strongly consistent read of an item of so many bytes."""
    return max(ceil(item_bytes / (4 * KILOBYTE)), 1)


def _value_size(value: Mapping[str, Any]) -> int:
    ((kind, held),) = value.items()
    match kind:
        case "S":
            return len(held.encode())
        case "B":
            return len(held)
        case "N":
            # DynamoDB trims zeros at the end too, of which a time has some in one millisecond of ten.
            return ceil(len(held.lstrip("-0")) / 2) + 1
        case "SS":
            return sum(len(each.encode()) for each in held)
        case "M":
            return 3 + sum(1 + len(name.encode()) + _value_size(each) for name, each in held.items())
    raise AssertionError(f"no rule for {kind}")


def claimed_by(owner: str) -> dict[str, Any]:
    """Return a delivery's claim request as a worker makes it; ``owner`` is one letter."""
    return {
        "owner": owner * 32,
        "key": KEY,
        "retention_seconds": RETENTION,
        "task_id": f"8ea60c75-5640-44be-b0b4-bf62f271a43{owner}",
        "worker": "celery@ip-10-0-12-34.eu-west-1.compute.internal",
        # As `idempotent_tasks.core.processes.current_process` writes it; a process's own is now longer, now shorter.
        "process": "ip-10-0-12-34/80cb4382-2261-4f9b-a716-5acaa40cd749/4026531836/4026531834/28412@736394",
    }


def token_of(number: int) -> str:
    """Return what names a waiting copy in a record, for one of many (`idempotent_tasks.core.delivery.Delivery`)."""
    return f"{number:032x}"
