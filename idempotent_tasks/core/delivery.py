"""One Celery request, read once, as a frozen value.

Nothing else reads the request's bag of attributes; nothing here imports Celery.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final
from uuid import uuid4

__all__ = [
    "COPY_HEADER",
    "DEFERRALS_HEADER",
    "HARD_LIMIT_ENTRY",
    "KEY_HEADER",
    "KEY_OPTION",
    "MESSAGE_ENTRY",
    "MOST_UNSEEN",
    "OWNER_ENTRY",
    "PRIVATE_HEADERS",
    "UNSEEN_HEADER",
    "WATCHER_ENTRY",
    "Delivery",
    "OwnerToken",
    "ReceivedMessage",
    "chord_with_key",
    "explicit_key",
    "id_text",
    "inherited_headers",
    "is_grouped",
    "read_delivery",
]

#: Message header with the caller's explicit key.
KEY_HEADER: Final = "idempotency_key"
#: The option of ``apply_async``, ``send_task`` and signatures with the same.
KEY_OPTION: Final = "idempotency_key"
#: Message header that counts how often this message was deferred.
DEFERRALS_HEADER: Final = "idempotency_deferrals"
#: Message header of a deferred copy with the owner tokens of claims that earlier deliveries of it asked for, whose
#: answers they never saw; the last one first.
UNSEEN_HEADER: Final = "idempotency_unseen"
#: How many of them a message carries at most.
MOST_UNSEEN: Final = 8
#: Message header of a deferred copy: a random token that no other message has, and whose copy it is.
COPY_HEADER: Final = "idempotency_copy"
#: Entry of the request dict, set by the worker's parent process: the enforced hard time limit in seconds, or None.
HARD_LIMIT_ENTRY: Final = "idempotency_hard_limit"
#: Entry of the request dict, set by the worker's parent process: the owner token of the claim that will be asked for.
OWNER_ENTRY: Final = "idempotency_owner"
#: Entry of the request dict, set by the worker's parent process: its process id where it releases for its children.
WATCHER_ENTRY: Final = "idempotency_watcher"
#: Entry of the request's ``properties``, set by the worker's parent process: the `ReceivedMessage`.  Not of the request
#: dict itself: what is there and none of Celery's is in ``request.headers``, which bodies hand on to other messages.
MESSAGE_ENTRY: Final = "idempotency_message"
#: What must not travel on when a message is sent again for another reason than deferral.
PRIVATE_HEADERS: Final = frozenset(
    {
        DEFERRALS_HEADER,
        COPY_HEADER,
        UNSEEN_HEADER,
        HARD_LIMIT_ENTRY,
        OWNER_ENTRY,
        WATCHER_ENTRY,
    }
)
#: An owner token as this library draws it; a message's sender can write anything else, such as a reservation's owner.
_TOKEN: Final = re.compile(r"[0-9a-f]{32}")
#: A higher count is none of ours: a message that is deferred each second has it after 11 days.
MOST_DEFERRALS: Final = 1_000_000
#: How deep tracing SDKs put headers into an inner ``headers``: into the message's, or into those of an eager call.
_DEEPEST: Final = 2


@dataclass(frozen=True, kw_only=True, slots=True)
class ReceivedMessage:
    """The message of a delivery as the broker gave it to the worker's parent process."""

    #: The queue that it was consumed from; None where that cannot be told.
    queue: str | None
    #: Whether that queue gets what is published under its name: kombu's fanout on Redis has subscribers instead.
    is_addressable: bool = True
    #: Without its compression.
    body: bytes | str
    content_type: str
    content_encoding: str
    headers: Mapping[str, Any]
    #: As the transport delivers them, its delivery's own ones among them.
    properties: Mapping[str, Any]
    #: How often the worker has given this message back lately, because it could not be published again.
    returns: int = 0


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
    #: Owner tokens of claims that earlier deliveries of this message may have been granted, whose bodies never began.
    unseen: tuple[str, ...] = ()
    #: The token of this deferred copy; None for any other message.
    copy: str | None = None
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
    #: The message; None where no parent process of ours took it from a queue.
    received: ReceivedMessage | None = None

    @property
    def message(self) -> str:
        """What all copies of this message share, and its retries do not."""
        return f"{self.task_id}/{self.retries}"

    def successor(self) -> "Delivery":
        """Return the delivery that a copy of this message will be: with a token of its own, and deferred once more."""
        return replace(self, deferrals=self.deferrals + 1, copy=uuid4().hex)

    @property
    def headers(self) -> dict[str, Any]:
        """The message headers that say how often this message was deferred, and which copy of it this one is."""
        return {DEFERRALS_HEADER: self.deferrals, COPY_HEADER: f"{self.copy}/{self.message}"}


def read_delivery(task: str, request: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Delivery:
    """Read a Celery request (``celery.app.task.Context``)."""
    owner = request.get(OWNER_ENTRY)
    from_parent = isinstance(owner, OwnerToken)
    properties = request.properties
    received = properties.get(MESSAGE_ENTRY) if isinstance(properties, Mapping) else None
    delivery = Delivery(
        task=task,
        task_id=id_text(request.id),
        args=args,
        kwargs=kwargs,
        explicit_key=_header(request, KEY_HEADER),
        grouped=is_grouped(request.group, request.chain),
        retries=request.retries or 0,
        deferrals=_count(_header(request, DEFERRALS_HEADER)),
        unseen=_tokens(_header(request, UNSEEN_HEADER)),
        hard_limit_seconds=request.get(HARD_LIMIT_ENTRY) if from_parent else None,
        owner=str(owner) if from_parent else None,
        watcher=request.get(WATCHER_ENTRY) if from_parent else None,
        worker=request.hostname or "",
        eager=bool(request.is_eager) and not from_parent,
        # A message's own header of this name is never one.
        received=received if isinstance(received, ReceivedMessage) else None,
    )
    return replace(delivery, copy=_token(_header(request, COPY_HEADER), delivery.message))


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
    return options.get(KEY_OPTION) or (options.get("headers") or {}).get(KEY_HEADER)


def _options(signatures: Iterable[Any] | None) -> list[Mapping[str, Any]]:
    """Return the options of each signature; none of what a message has in the place of one."""
    found = (each.get("options") for each in signatures or () if isinstance(each, Mapping))
    return [options for options in found if isinstance(options, Mapping)]


def inherited_headers(request: Any, headers: Mapping[str, Any]) -> dict[str, Any]:
    """Return the headers of a message that repeats a request for another reason than deferral.

    Args:
        request: the request, whose explicit key stays.
        headers: those that Celery would send, of which ours are left out.
    """
    key = _header(request, KEY_HEADER)
    kept = {} if key is None else {KEY_HEADER: key}
    return {**kept, **_public(headers, _DEEPEST)}


def _header(request: Any, name: str) -> Any:
    """Return a message's header, None where it has none of this name.

    A worker's request has them as attributes, and in ``request.headers`` unless the message has an inner ``headers``,
    which takes that place: tracing SDKs put one there (https://github.com/celery/celery/issues/4875).  The request of
    an eager call has them in ``request.headers`` only.
    """
    return next((each[name] for each in _places(request) if each.get(name) is not None), None)


def _places(request: Any) -> Iterator[Mapping[str, Any]]:
    yield vars(request)
    headers = request.headers
    for _ in range(_DEEPEST):
        if not isinstance(headers, Mapping):
            return
        yield headers
        headers = headers.get("headers")


def _public(headers: Mapping[str, Any], depth: int) -> dict[str, Any]:
    kept = {name: each for name, each in headers.items() if name not in PRIVATE_HEADERS}
    inner = kept.get("headers")
    if depth > 1 and isinstance(inner, Mapping):
        kept["headers"] = _public(inner, depth - 1)
    return kept


def _count(header: object) -> int:
    is_count = isinstance(header, int) and not isinstance(header, bool) and 0 <= header <= MOST_DEFERRALS
    return header if is_count else 0  # type: ignore[return-value]


def _token(header: object, message: str) -> str | None:
    """Return the token of a header; None where the header was made for another message, which took it over."""
    token, _, of = header.partition("/") if isinstance(header, str) else ("", "", "")
    return token if token and of == message else None


def _tokens(header: object) -> tuple[str, ...]:
    """Return the owner tokens of a message's header, and nothing else that somebody may have written there."""
    if not isinstance(header, list | tuple):
        return ()
    tokens = (each for each in header[:MOST_UNSEEN] if isinstance(each, str) and _TOKEN.fullmatch(each))
    return tuple(dict.fromkeys(tokens))
