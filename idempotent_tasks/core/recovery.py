"""What a task's ``recover`` returns: whether the effect of an earlier run that left no outcome was made."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

__all__ = ["Done", "NotDone", "Recover", "Recovery", "Unknown"]


@dataclass(frozen=True, slots=True)
class Done:
    """The effect was made: the result is the key's outcome, and the body does not run."""

    #: What the body would have returned.
    result: Any = None


@dataclass(frozen=True, slots=True)
class NotDone:
    """The effect was not made, and no request for it is on its way: the body runs."""


@dataclass(frozen=True, slots=True)
class Unknown:
    """Whether the effect was made cannot be found out: the key is parked, for a person to decide."""

    #: Why, for that person: it is shown by the command line and in the log.
    reason: str = "Unknown"


Recovery = Done | NotDone | Unknown
#: Takes the key's record and the body's arguments; or its name as ``module:name``.
Recover = Callable[..., Recovery] | str
