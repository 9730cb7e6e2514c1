"""A key that is reserved for one delivery: who is its owner, and for how long.

A producer reserves the key of the message that it is about to publish.  The reservation is a record in progress whose
owner is no secret, but named after the task id: the message's delivery must know it, to take the key over.
"""

from typing import Protocol

__all__ = ["Reserver", "is_reservation", "reservation_owner", "reservation_seconds"]


class Reserver(Protocol):
    """What tells a reservation from a claim."""

    @property
    def owner(self) -> str | None:
        """Whose the key is, or shall be."""
        ...

    @property
    def task_id(self) -> str | None:
        """The task that it is for."""
        ...


def reservation_owner(task_id: str) -> str:
    """Return the owner of a key that is reserved for a task."""
    return f"reserved for {task_id}"


def is_reservation(wish: Reserver) -> bool:
    """Return whether a claim request, or a record, is a reservation."""
    return wish.task_id is not None and wish.owner == reservation_owner(wish.task_id)


def reservation_seconds(wait: float, delay: float, expires_in: float | None, grace: float) -> float:
    """Return for how long a key is reserved, in seconds.

    Args:
        wait: how long the message may wait in its queue.
        delay: after how many seconds it may run at the earliest (``countdown``, ``eta``).
        expires_in: after how many seconds its worker drops it (``expires``), or None.
        grace: what is added to that, because the worker goes by another clock.
    """
    longest = max(delay, 0.0) + wait
    return longest if expires_in is None else min(longest, max(expires_in, 0.0) + grace)
