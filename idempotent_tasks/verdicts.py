"""What became of a delivery at the guard."""

from dataclasses import dataclass, field
from typing import Any

from idempotent_tasks.errors import StoreError
from idempotent_tasks.records import Busy

__all__ = ["Failed", "Interrupted", "Replayed", "Returned", "Sending", "Unclaimed", "Unreadable", "Verdict"]


@dataclass(frozen=True, slots=True)
class Returned:
    """The body ran and returned."""

    value: Any


@dataclass(frozen=True, slots=True)
class Replayed:
    """The key had its outcome already."""

    value: Any
    #: Whether what follows the task was sent for this task id before.
    dispatched: bool = False
    #: What follows the task instead of what its message says, where the body of this task id has changed that.
    continuation: str | None = None


@dataclass(frozen=True, slots=True)
class Sending:
    """The key had its outcome already, and whoever stored it may be sending what follows at this moment."""

    #: For so many seconds.
    left: float


@dataclass(frozen=True, slots=True)
class Failed:
    """The key's outcome is a failure: the body's own just now, or one that is replayed."""

    error: BaseException
    #: As in `Replayed`.
    dispatched: bool = False
    continuation: str | None = None
    #: Whether the body failed in a run before.
    replayed: bool = field(default=False, compare=False)


@dataclass(frozen=True, slots=True)
class Unreadable:
    """The key has an outcome, and it cannot be read for now; the body did not run."""

    error: StoreError


@dataclass(frozen=True, slots=True)
class Unclaimed:
    """The store could not answer the claim; the body did not run."""

    error: StoreError


@dataclass(frozen=True, slots=True)
class Interrupted:
    """The time for this delivery ran out before its body started."""

    error: BaseException


Verdict = Returned | Replayed | Sending | Failed | Unreadable | Busy | Unclaimed | Interrupted
