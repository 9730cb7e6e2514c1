"""What follows a task: its links or error callbacks, the rest of its chain, its part of a chord.

Celery sends it when the body, or a replay, has returned or failed (``celery.app.trace.build_tracer``).
"""

from collections.abc import Callable, Iterable
from typing import Any, Final
from uuid import UUID, uuid5

from idempotent_tasks.request_state import state_of

__all__ = ["follows", "name_errbacks", "name_links", "sent", "suppress", "tell_when_sent"]

#: Of the ids that are given to links.
_NAMESPACE: Final = UUID("5d0e6a52-5b0e-4c39-9d6e-8a6a1f4c2b7e")


def follows(request: Any, *, failed: bool = False) -> bool:
    """Return whether anything is to be sent when the task of a ``celery.app.task.Context`` has succeeded or failed."""
    return bool((request.errbacks if failed else request.callbacks) or request.chain or request.chord)


def suppress(request: Any) -> None:
    """Let nothing follow, because it was sent before."""
    request.callbacks = request.errbacks = request.chain = request.chord = None


def tell_when_sent(request: Any, tell: Callable[[], None]) -> None:
    """Have ``tell`` called when everything that follows was sent."""
    state_of(request).tell_when_sent = tell


def sent(request: Any) -> None:
    """Tell whoever asked to be told; to be called when Celery has sent what follows."""
    state = state_of(request)
    tell, state.tell_when_sent = state.tell_when_sent, None
    if tell is not None:
        tell()


def name_links(request: Any, key: str) -> None:
    """Give a task id to everything that follows and has none, so that it has the same one whenever it is sent.

    Celery draws a new id each time it sends a link that has none; the steps of a chain mostly have theirs already.
    The id is derived from the key, the task's own id, and the place among what follows: another task with the key
    has a continuation of its own.
    """
    _name_parts(request, key, "callbacks", "chain")


def name_errbacks(request: Any, key: str) -> None:
    """Likewise for what Celery sends when the task fails, which each failing delivery does."""
    _name_parts(request, key, "errbacks")


def _name_parts(request: Any, key: str, *parts: str) -> None:
    for name in parts:
        _name_each(getattr(request, name) or (), f"{key}/{request.id}/{name}")


def _name_each(signatures: Iterable[Any], place: str) -> None:
    for index, signature in enumerate(signatures):
        _name(signature, f"{place}/{index}")


def _name(signature: Any, place: str) -> None:
    parts = [signature["kwargs"].get(name) for name in ("tasks", "header", "body")]
    if not signature.get("subtask_type") or not any(parts):
        signature["options"].setdefault("task_id", str(uuid5(_NAMESPACE, place)))
        return
    for index, part in enumerate(parts):
        if part:
            _name_each([part] if "task" in part else part, f"{place}/{index}")
