"""One Celery request, read once, as a frozen value.

Nothing else reads the request's bag of attributes; nothing here imports Celery.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

__all__ = [
    "CONTENT_TYPE_ENTRY",
    "DEFERRALS_HEADER",
    "HARD_LIMIT_ENTRY",
    "KEY_HEADER",
    "OWNER_ENTRY",
    "PRIVATE_HEADERS",
    "WATCHER_ENTRY",
    "Delivery",
    "OwnerToken",
    "chord_with_key",
    "explicit_key",
    "id_text",
    "is_grouped",
    "read_delivery",
]

#: Message header with the caller's explicit key.
KEY_HEADER: Final = "idempotency_key"
#: Message header that counts how often this message was deferred.
DEFERRALS_HEADER: Final = "idempotency_deferrals"
#: Entry of the request dict, set by the worker's parent process: the enforced hard time limit in seconds, or None.
HARD_LIMIT_ENTRY: Final = "idempotency_hard_limit"
#: Entry of the request dict, set by the worker's parent process: the content type of the message's body.
CONTENT_TYPE_ENTRY: Final = "idempotency_content_type"
#: Entry of the request dict, set by the worker's parent process: the owner token of the claim that will be asked for.
OWNER_ENTRY: Final = "idempotency_owner"
#: Entry of the request dict, set by the worker's parent process: its process id where it releases for its children.
WATCHER_ENTRY: Final = "idempotency_watcher"
#: What must not travel on when a message is sent again for another reason than deferral.
PRIVATE_HEADERS: Final = frozenset({DEFERRALS_HEADER, HARD_LIMIT_ENTRY, CONTENT_TYPE_ENTRY, OWNER_ENTRY, WATCHER_ENTRY})


class OwnerToken(str):
    """The owner token as the worker's parent process hands it over, which no message can carry.

    What a publisher puts into a header of `OWNER_ENTRY`'s name is plain text: without a token of this type the request
    has not been made by a `GuardedRequest`, and its other entries are not the parent's either.
    """

    __slots__ = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class Delivery:
    """One delivery of one message to one worker."""

    task: str
    task_id: str
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    #: The key that the caller gave to this call, unchecked.
    explicit_key: object = None
    #: Whether it is one of a group's or chord's members, all of which a key may have been handed to.
    grouped: bool = False
    #: How often the task was retried before.
    retries: int = 0
    #: How often this message was deferred before.
    deferrals: int = 0
    #: After how many seconds the worker kills the body for certain, or None where nothing does.
    hard_limit_seconds: float | None = None
    #: The owner token that the worker's parent process knows too; None outside a worker.
    owner: str | None = None
    #: The process that releases the claim if this one dies; None where none does.
    watcher: int | None = None
    #: The worker's node name.
    worker: str = ""
    #: Whether the task runs inside the caller's process, where no message can be sent again.
    eager: bool = False

    @property
    def message(self) -> str:
        """What all copies of this message share, and its retries do not."""
        return f"{self.task_id}/{self.retries}"


def read_delivery(task: str, request: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Delivery:
    """Read a Celery request (``celery.app.task.Context``).

    Custom headers are attributes of a worker's request, but only in ``request.headers`` of an eager one.
    """
    headers = request.headers or {}
    deferrals = headers.get(DEFERRALS_HEADER)
    owner = request.get(OWNER_ENTRY)
    from_parent = isinstance(owner, OwnerToken)
    return Delivery(
        task=task,
        task_id=id_text(request.id),
        args=args,
        kwargs=kwargs,
        explicit_key=headers.get(KEY_HEADER),
        grouped=is_grouped(request.group, request.chain),
        retries=request.retries or 0,
        deferrals=deferrals if isinstance(deferrals, int) else 0,
        hard_limit_seconds=request.get(HARD_LIMIT_ENTRY) if from_parent else None,
        owner=str(owner) if from_parent else None,
        watcher=request.get(WATCHER_ENTRY) if from_parent else None,
        worker=request.hostname or "",
        eager=bool(request.is_eager) and not from_parent,
    )


def id_text(task_id: Any) -> str:
    """Return a task id as text: publishers give a ``uuid.UUID``, a number or bytes too."""
    return task_id.decode(errors="replace") if isinstance(task_id, bytes) else str(task_id)


def is_grouped(group_id: Any, chain: Iterable[Any] | None) -> bool:
    """Return whether a task is a member of a group or chord, or the first step of a chain that is one.

    Args:
        group_id: the group of the task itself.
        chain: the signatures that follow it; the last step of a chain that is a member has the group's id.
    """
    return bool(group_id) or any(options.get("group_id") for options in _options(chain))


def chord_with_key(key: object, chord: Any, chain: Iterable[Any] | None) -> Any:
    """Return the body of a chord that has a member's own explicit key, because the key was given to the whole chord.

    Args:
        key: the member's, or None.
        chord: the body that waits for the task itself, or None.
        chain: the signatures that follow it; the last step of a chain that is a member has the body.
    """
    if key is None:
        return None
    bodies = [body for body in (chord, *(options.get("chord") for options in _options(chain))) if body]
    return next((body for body in bodies if key in map(explicit_key, _options([body]))), None)


def explicit_key(options: Mapping[str, Any]) -> Any:
    """Return the key among the options of a call or a signature, however it was given; None where there is none."""
    return options.get(KEY_HEADER) or (options.get("headers") or {}).get(KEY_HEADER)


def _options(signatures: Iterable[Any] | None) -> list[Mapping[str, Any]]:
    """Return the options of each signature; none of what a message has in the place of one."""
    found = (each.get("options") for each in signatures or () if isinstance(each, Mapping))
    return [options for options in found if isinstance(options, Mapping)]
