"""What follows a task: its links or error callbacks, the rest of its chain, its part of a chord.

Celery sends it when the body, or a replay, has returned or failed (``celery.app.trace.build_tracer``).  The message
says what it is, and the body may change that in its request: a redelivery must then send what the run has sent.
"""

import zlib
from base64 import b64decode, b64encode
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Final
from uuid import UUID, uuid5

from kombu.utils import json

from idempotent_tasks.errors import ResultUnavailableError
from idempotent_tasks.messaging.request_state import state_of

__all__ = [
    "NOTHING",
    "UNRECORDED",
    "changed",
    "follows",
    "name_errbacks",
    "name_links",
    "notify_when_sent",
    "recorded",
    "remember",
    "restore",
    "sent",
    "suppress",
]

#: Of the ids that are given to links.
_NAMESPACE: Final = UUID("5d0e6a52-5b0e-4c39-9d6e-8a6a1f4c2b7e")
#: The attributes of a request that hold what follows.
_PARTS: Final = ("callbacks", "errbacks", "chain", "chord")
#: That nothing follows, as text.
NOTHING: Final[str] = json.dumps(dict.fromkeys(_PARTS))
#: The longest text of a changed continuation that a record takes, in bytes.
MOST_BYTES: Final = 8 * 1024
#: Stands before a text that was compressed (:rfc:`1950`), in base 64.
_ZIPPED: Final = "zlib:"
#: What is recorded of a continuation that is too long, or cannot be written.
UNRECORDED: Final = "unrecorded"


def follows(request: Any, *, failed: bool = False) -> bool:
    """Return whether anything is to be sent when the task of a ``celery.app.task.Context`` has succeeded or failed."""
    return bool((request.errbacks if failed else request.callbacks) or request.chain or request.chord)


def suppress(request: Any) -> None:
    """Let nothing follow, because it was sent before."""
    request.callbacks = request.errbacks = request.chain = request.chord = None


def remember(request: Any) -> None:
    """Remember what follows, before the body, which may change it."""
    parts = _parts(request)
    state_of(request).continuation = _Continuation(
        _written(parts), {name: _copied(each) for name, each in parts.items()}
    )


def changed(request: Any) -> str | None:
    """Return what follows as text, where it is something else than what was remembered; None otherwise.

    JSON as in Celery's messages.  What is too long for a record, or has no such form, is only marked.
    """
    before, parts = state_of(request).continuation, _parts(request)
    if before is None:
        return None
    text = _written(parts)
    if text == before.text and (text is not None or parts == before.parts):
        return None
    if text is not None and len(text.encode()) > MOST_BYTES:
        text = _ZIPPED + b64encode(zlib.compress(text.encode())).decode()
    return text if text is not None and len(text.encode()) <= MOST_BYTES else UNRECORDED


def recorded(text: str) -> dict[str, Any]:
    """Return what `changed` has written, by the attribute of the request.

    Raises:
        ResultUnavailableError: it was only marked, or cannot be read.
    """
    if text == UNRECORDED:
        msg = (
            f"what follows was changed by the body and is not in the record (it has no JSON form, or over {MOST_BYTES} "
            "bytes), and whether it was sent is not known; publish what is missing"
        )
        raise ResultUnavailableError(msg)
    try:
        if text.startswith(_ZIPPED):
            text = zlib.decompress(b64decode(text.removeprefix(_ZIPPED))).decode()
        found = json.loads(text)
        return {name: found[name] for name in _PARTS}
    except Exception:  # noqa: BLE001 - its text may quote what is stored
        raise ResultUnavailableError("what follows, which the body has changed, cannot be read in the record") from None


def restore(request: Any, text: str | None) -> None:
    """Let that follow which the outcome's own run has left: its change, or what the message says.

    Args:
        request: the ``celery.app.task.Context``, whose body may have run and been superseded.
        text: the run's change, None where it made none.

    Raises:
        ResultUnavailableError: as `recorded`.
    """
    if text is not None:
        vars(request).update(recorded(text))
    elif changed(request) is not None:
        before = state_of(request).continuation
        vars(request).update(before.parts if before.text is None else json.loads(before.text))


@dataclass(frozen=True, slots=True)
class _Continuation:
    """What follows a task at one moment."""

    #: As JSON; None where it has no such form, as the arguments of pickled signatures may have none.
    text: str | None
    #: By the attribute of the request.
    parts: dict[str, Any]


def _parts(request: Any) -> dict[str, Any]:
    return {name: getattr(request, name) or None for name in _PARTS}


def _copied(part: Any) -> Any:
    return list(part) if isinstance(part, list | tuple) else part


def _written(parts: dict[str, Any]) -> str | None:
    if not any(parts.values()):
        return NOTHING
    try:
        return str(json.dumps(parts))
    except Exception:  # noqa: BLE001 - whatever the forms of the user's own types raise
        return None


def notify_when_sent(request: Any, notify: Callable[[], None], give_back: Callable[[Exception], Exception]) -> None:
    """Have ``notify`` called when everything that follows was sent.

    Args:
        request: the ``celery.app.task.Context``.
        notify: called once.
        give_back: takes what a broker raises that does not take what follows, and returns what sends the message of the
            request back to its queue (`idempotent_tasks.messaging.confirms`).
    """
    state = state_of(request)
    state.notify_when_sent, state.give_back = notify, give_back


def sent(request: Any) -> None:
    """Notify whoever asked; to be called when Celery has sent what follows."""
    state = state_of(request)
    notify, state.notify_when_sent, state.give_back = state.notify_when_sent, None, None
    if notify is not None:
        notify()


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
