"""What this library notes about a Celery request, where no message can write.

A message's headers become attributes of its request (``celery.app.task.Context``), whatever they are called: what must
not be set by a publisher is kept beside the request, not on it.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

from idempotent_tasks.core.processes import this_process

__all__ = ["RequestState", "state_of"]


@dataclass(slots=True)
class RequestState:
    """The notes on one request."""

    #: Whether its delivery is being handled: further calls of the task under it are plain calls.
    received: bool = False
    #: The run of its body, as `IdempotentTask.idempotency` returns it, while the body runs.
    run: Any = None
    #: What followed the task when its body began, as `idempotent_tasks.messaging.callbacks.remember` has it.
    continuation: Any = None
    #: Called once when everything that follows the task was sent.
    notify_when_sent: Callable[[], None] | None = None
    #: Until then: returns what sends the delivery's message back, for an error of the broker's that kept from sending.
    give_back: Callable[[Exception], Exception] | None = None


class _RequestStates:
    """The notes on the requests of a process."""

    def __init__(self) -> None:
        self.by_request: WeakKeyDictionary[Any, RequestState] = WeakKeyDictionary()


def state_of(request: Any) -> RequestState:
    """Return the notes on a ``celery.app.task.Context``; they live as long as the request."""
    states = this_process().own(_RequestStates).by_request
    state = states.get(request)
    if state is None:
        state = states.setdefault(request, RequestState())
    return state
