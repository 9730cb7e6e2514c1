"""What the table's items say: their attributes, as texts, and what follows from them."""

from typing import Any

from simulation.scheduler import CLOCK_SECONDS, START

__all__ = ["holder", "is_lock", "is_parked", "is_undecided", "requested_at", "text", "until"]


def text(item: dict[str, Any], name: str) -> str | None:
    """Return an attribute of an item as text; None where it has none."""
    return next(iter(item[name].values())) if name in item else None


def holder(item: dict[str, Any]) -> str | None:
    """Return the owner of the claim that an item shows, if it shows one."""
    return text(item, "owner") if text(item, "status") == "INPROGRESS" and not is_parked(item) else None


def is_parked(item: dict[str, Any]) -> bool:
    """Return whether a key waits for a person's decision."""
    return "parked_at" in item


def until(item: dict[str, Any]) -> float:
    """Return when a claim expires, in seconds of the history."""
    return int(text(item, "in_progress_expiration") or 0) / 1000 - START


def requested_at(item: dict[str, Any]) -> float:
    """Return when a claim was requested by its own clock, in seconds of the history, at the latest."""
    return int(text(item, "claimed_at") or 0) / 1000 - START - CLOCK_SECONDS


def is_undecided(item: dict[str, Any]) -> bool:
    """Return whether a key waits for a person's decision, or keeps messages that are to be published after it."""
    return is_parked(item) or bool(item.get("parked", {"M": {}})["M"])


def is_lock(key: str) -> bool:
    """Return whether a key is only the lock of others."""
    return "#exclusive#" in key or key.startswith("lock-")
