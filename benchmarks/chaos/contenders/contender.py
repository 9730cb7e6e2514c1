"""What a contender is: how it declares the one task, how it publishes, and whether it needs a table."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from celery import Celery

from benchmarks.chaos.arena import Arena

__all__ = ["REDELIVERED", "Charge", "Contender"]

#: The body: takes the bound task, the key, the seconds that it lasts and the seconds to its effect.
Charge = Callable[[Any, str, float, float], str]

#: Without these two Celery acknowledges before the body runs, and a kill loses the message: no contender can do
#: anything about that, so all of them have both.
REDELIVERED: Final[dict[str, Any]] = {"acks_late": True, "reject_on_worker_lost": True}


@dataclass(frozen=True, kw_only=True, slots=True)
class Contender:
    """One way to guard a task."""

    name: str
    #: What the table says of it.
    title: str
    #: Registers the task under `Arena.task_name`; ``apply_async`` takes the body's arguments by name.
    declare: Callable[[Celery, Arena, Charge], None]
    #: Whether it keeps records in DynamoDB.
    has_table: bool = False
