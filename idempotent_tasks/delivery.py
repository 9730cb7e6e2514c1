"""One Celery request, read once, as a frozen value.

Nothing else reads the request's bag of attributes; nothing here imports Celery.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

__all__ = [
    "CONTENT_TYPE_ENTRY",
    "DEFERRALS_HEADER",
    "HARD_LIMIT_ENTRY",
    "KEY_HEADER",
    "MOST_UNSEEN",
    "OWNER_ENTRY",
    "PRIVATE_HEADERS",
    "UNSEEN_HEADER",
    "WATCHER_ENTRY",
    "Delivery",
    "read_delivery",
]

#: Message header with the caller's explicit key.
KEY_HEADER: Final = "idempotency_key"
#: Message header that counts how often this message was deferred.
DEFERRALS_HEADER: Final = "idempotency_deferrals"
#: Message header of a deferred copy with the owner tokens of claims that earlier deliveries of it asked for, whose
#: answers they never saw; the last one first.
UNSEEN_HEADER: Final = "idempotency_unseen"
#: How many of them a message carries at most.
MOST_UNSEEN: Final = 8
#: Entry of the request dict, set by the worker's parent process: the enforced hard time limit in seconds, or None.
HARD_LIMIT_ENTRY: Final = "idempotency_hard_limit"
#: Entry of the request dict, set by the worker's parent process: the content type of the message's body.
CONTENT_TYPE_ENTRY: Final = "idempotency_content_type"
#: Entry of the request dict, set by the worker's parent process: the owner token of the claim that will be asked for.
OWNER_ENTRY: Final = "idempotency_owner"
#: Entry of the request dict, set by the worker's parent process: its process id where it releases for its children.
WATCHER_ENTRY: Final = "idempotency_watcher"
#: What must not travel on when a message is sent again for another reason than deferral.
PRIVATE_HEADERS: Final = frozenset(
    {DEFERRALS_HEADER, UNSEEN_HEADER, HARD_LIMIT_ENTRY, CONTENT_TYPE_ENTRY, OWNER_ENTRY, WATCHER_ENTRY}
)
#: An owner token as this library draws it; a message's sender can write anything else, such as a reservation's owner.
_TOKEN: Final = re.compile(r"[0-9a-f]{32}")


@dataclass(frozen=True, kw_only=True, slots=True)
class Delivery:
    """One delivery of one message to one worker."""

    task: str
    task_id: str
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    #: The key that the caller gave to this call, unchecked.
    explicit_key: object = None
    #: How often the task was retried before.
    retries: int = 0
    #: How often this message was deferred before.
    deferrals: int = 0
    #: Owner tokens of claims that earlier deliveries of this message may have been granted, whose bodies never began.
    unseen: tuple[str, ...] = ()
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
    return Delivery(
        task=task,
        task_id=request.id,
        args=args,
        kwargs=kwargs,
        explicit_key=headers.get(KEY_HEADER),
        retries=request.retries or 0,
        deferrals=deferrals if isinstance(deferrals, int) else 0,
        unseen=_tokens(headers.get(UNSEEN_HEADER)),
        hard_limit_seconds=request.get(HARD_LIMIT_ENTRY),
        owner=request.get(OWNER_ENTRY),
        watcher=request.get(WATCHER_ENTRY),
        worker=request.hostname or "",
        eager=bool(request.is_eager),
    )


def _tokens(header: object) -> tuple[str, ...]:
    """Return the owner tokens of a message's header, and nothing else that somebody may have written there."""
    if not isinstance(header, list | tuple):
        return ()
    tokens = (each for each in header[:MOST_UNSEEN] if isinstance(each, str) and _TOKEN.fullmatch(each))
    return tuple(dict.fromkeys(tokens))
