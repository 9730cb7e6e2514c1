"""State of a Celery request that no message can set.

A message's headers become attributes of its request (``celery.app.task.Context``), whatever their names: what a
publisher must not set is kept beside the request, not on it.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

from idempotent_tasks.core.processes import this_process

__all__ = ["RequestState", "state_of"]


@dataclass(slots=True)
class RequestState:
    """The state of one request."""

    #: Whether its delivery is being handled: further calls of the task under it are plain calls.
    received: bool = False
    #: The run of its body, as `IdempotentTask.idempotency` returns it, while the body runs.
    run: Any = None
    #: The callbacks as the body began, set by `idempotent_tasks.messaging.callbacks.remember`.
    continuation: Any = None
    #: Called once when all callbacks were sent.
    notify_when_sent: Callable[[], None] | None = None
    #: Until then: returns what sends the delivery's message back, for the error of a broker that refuses a callback.
    give_back: Callable[[Exception], Exception] | None = None


class _RequestStates(WeakKeyDictionary[Any, RequestState]):
    """The states of a process's requests."""


def state_of(request: Any) -> RequestState:
    """Return the state of a ``celery.app.task.Context``; it lives as long as the request."""
    states = this_process().own(_RequestStates)
    state = states.get(request)
    return states.setdefault(request, RequestState()) if state is None else state
