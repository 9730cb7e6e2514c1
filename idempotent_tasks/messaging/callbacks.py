"""Callbacks of a task: its links or error callbacks, the rest of its chain, its part of a chord.

Celery sends them when the body, or a replay, has returned or failed (``celery.app.trace.build_tracer``).  They arrive
in the message, and the body may change them in its request: a redelivery must then send what the run has sent.
"""

import zlib
from base64 import b64decode, b64encode
from collections.abc import Callable, Iterable
from typing import Any, Final, NamedTuple
from uuid import UUID, uuid5

from kombu.utils import json

from idempotent_tasks.errors import ResultUnavailableError
from idempotent_tasks.messaging.request_state import state_of

__all__ = [
    "NOTHING",
    "UNRECORDED",
    "assign_task_ids",
    "changed",
    "derive_task_ids",
    "follows",
    "notify_when_sent",
    "recorded",
    "refuse_result",
    "remember",
    "restore",
    "sent",
    "suppress",
]

#: Of the task ids that are assigned to callbacks.
_NAMESPACE: Final = UUID("5d0e6a52-5b0e-4c39-9d6e-8a6a1f4c2b7e")
#: The attributes of a request that hold callbacks.
_PARTS: Final = ("callbacks", "errbacks", "chain", "chord")
#: The text for no callbacks.
NOTHING: Final[str] = json.dumps(dict.fromkeys(_PARTS))
#: The longest text of changed callbacks that a record takes, in bytes.
MOST_BYTES: Final = 8 * 1024
#: Prefix of a text that was compressed (:rfc:`1950`), in base 64.
_ZIPPED: Final = "zlib:"
#: Recorded in place of callbacks that are too long or have no JSON form.
UNRECORDED: Final = "unrecorded"


class _Snapshot(NamedTuple):
    """The callbacks of a request at one moment."""

    #: JSON; None where they have no such form, as the arguments of pickled signatures may have none.
    text: str | None
    #: By the attribute of the request.
    parts: dict[str, Any]


def _snapshot(request: Any) -> _Snapshot:
    found = {name: getattr(request, name) or None for name in _PARTS}
    if not any(found.values()):
        return _Snapshot(NOTHING, found)
    parts = {name: list(each) if isinstance(each, list | tuple) else each for name, each in found.items()}
    try:
        return _Snapshot(str(json.dumps(parts)), parts)
    except Exception:  # noqa: BLE001 - whatever the forms of the user's own types raise
        return _Snapshot(None, parts)


def follows(request: Any, *, failed: bool = False) -> bool:
    """Return whether a ``celery.app.task.Context`` has callbacks for the success, or the failure, of its task."""
    return bool((request.errbacks if failed else request.callbacks) or request.chain or request.chord)


def refuse_result(request: Any) -> None:
    """Raise if the result of a task, which was not stored, would be passed on to one of its callbacks.

    Celery passes it to each link, to the next step of the chain, and in a list to the body of the chord; an immutable
    signature (``.si()``) takes none.

    Raises:
        ResultUnavailableError: one of them takes it.
    """
    # The steps of a chain are in reverse order.
    following = [*(request.callbacks or ()), *(request.chain or ())[-1:], request.chord]
    if any(each and _takes_arguments(each) for each in following):
        msg = (
            "the task ran already, its result is not stored (codec='none'), and a link, a chain or a chord waits for "
            "it; publish what is missing, let it take no result (.si()), or return the result from on_replay"
        )
        raise ResultUnavailableError(msg)


def _takes_arguments(signature: Any) -> bool:
    """Return whether a signature, or one of its parts, is called with more arguments than its own.

    Celery passes them to the first step of a chain, and to each member of a group or of a chord's header.
    """
    if signature.get("immutable"):
        return False
    kind, kwargs = signature.get("subtask_type"), signature.get("kwargs") or {}
    if kind == "chain":
        return any(map(_takes_arguments, kwargs["tasks"][:1]))
    if kind == "group":
        return any(map(_takes_arguments, kwargs["tasks"]))
    if kind == "chord":
        header = kwargs["header"]
        return any(map(_takes_arguments, [header] if "task" in header else header))
    return True


def suppress(request: Any) -> None:
    """Remove all callbacks, because they were sent before."""
    request.callbacks = request.errbacks = request.chain = request.chord = None


def remember(request: Any) -> None:
    """Remember the callbacks before the body runs, which may change them."""
    state_of(request).continuation = _snapshot(request)


def changed(request: Any) -> str | None:
    """Return the callbacks as text if they differ from those remembered, or may differ from the first message's.

    JSON as in Celery's messages, compressed where it is long; `UNRECORDED` where it is too long for a record, or there
    is none.  None if they are those of every message of the task.
    """
    before = state_of(request).continuation
    if before is None:
        return None
    text, parts = _snapshot(request)
    is_unchanged = text == before.text and (text is not None or parts == before.parts)
    # A run that asked for this retry may have stopped what another copy of the first message would send.
    may_have_been_stopped = bool(request.retries) and text is not None and not follows(request)
    if is_unchanged and not may_have_been_stopped:
        return None
    if text is not None and len(text.encode()) > MOST_BYTES:
        text = _ZIPPED + b64encode(zlib.compress(text.encode())).decode()
    return text if text is not None and len(text.encode()) <= MOST_BYTES else UNRECORDED


def recorded(text: str) -> dict[str, Any]:
    """Parse what `changed` returned: the callbacks by the attribute of the request.

    Raises:
        ResultUnavailableError: it is `UNRECORDED`, or cannot be read.
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
    """Set the callbacks to those of the run whose outcome is replayed.

    Args:
        request: the ``celery.app.task.Context``, whose own body may have run and been superseded.
        text: what `changed` returned for that run; None for the callbacks of the message.

    Raises:
        ResultUnavailableError: as `recorded`.
    """
    if text is not None:
        vars(request).update(recorded(text))
    elif changed(request) is not None:
        before = state_of(request).continuation
        vars(request).update(before.parts if before.text is None else json.loads(before.text))


def notify_when_sent(request: Any, notify: Callable[[], None], give_back: Callable[[Exception], Exception]) -> None:
    """Have ``notify`` called once when Celery has sent all callbacks.

    Args:
        request: the ``celery.app.task.Context``.
        notify: called without arguments.
        give_back: takes the error of a broker that refuses a callback, and returns the exception that sends the
            message of the request back to its queue (`idempotent_tasks.messaging.confirms`).
    """
    state = state_of(request)
    state.notify_when_sent, state.give_back = notify, give_back


def sent(request: Any) -> None:
    """Call what `notify_when_sent` was given; to be called when Celery has sent the callbacks."""
    state = state_of(request)
    notify, state.notify_when_sent, state.give_back = state.notify_when_sent, None, None
    if notify is not None:
        notify()


def assign_task_ids(request: Any, key: str, *, failed: bool = False) -> None:
    """Assign a task id to each link and step of the chain, or each error callback, that has none.

    Celery draws a new id each time it sends a link that has none; the steps of a chain mostly have theirs already.
    Derived from the key, the task's own id and the place among the callbacks, an id is the same whenever it is sent,
    and another task with the key assigns others.
    """
    for name in ("errbacks",) if failed else ("callbacks", "chain"):
        derive_task_ids(getattr(request, name) or (), f"{key}/{request.id}/{name}")


def derive_task_ids(signatures: Iterable[Any], place: str) -> None:
    """Assign a task id to each signature, and to each part of a canvas, that has none.

    Args:
        signatures: changed in place.
        place: from which the ids are derived, with the place of each signature among them.
    """
    for index, signature in enumerate(signatures):
        parts = [signature["kwargs"].get(name) for name in ("tasks", "header", "body")]
        if not signature.get("subtask_type") or not any(parts):
            signature["options"].setdefault("task_id", str(uuid5(_NAMESPACE, f"{place}/{index}")))
            continue
        for number, part in enumerate(parts):
            if part:
                derive_task_ids([part] if "task" in part else part, f"{place}/{index}/{number}")
