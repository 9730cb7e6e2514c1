"""One Celery request, read once, as a frozen value.

The rest of `core` sees a request only as this value; nothing here imports Celery.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from hashlib import sha256
from typing import Any, Final

from idempotent_tasks.core.processes import this_process

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
    "RECOVERIES_HEADER",
    "UNSEEN_HEADER",
    "WAITS_HEADER",
    "WATCHER_ENTRY",
    "AwaitedRun",
    "Delivery",
    "OwnerToken",
    "ReceivedMessage",
    "awaited_run",
    "chord_with_key",
    "explicit_key",
    "following_signatures",
    "id_text",
    "inherited_headers",
    "is_grouped",
    "read_delivery",
    "run_digest",
]

#: Message header with the caller's explicit key.
KEY_HEADER: Final = "idempotency_key"
#: The same as an option of ``apply_async``, ``send_task`` and signatures.
KEY_OPTION: Final = "idempotency_key"
#: Message header: how often this message was deferred.
DEFERRALS_HEADER: Final = "idempotency_deferrals"
#: Message header of a deferred copy: the owner tokens of claims that its earlier deliveries requested without seeing
#: the answers; the last one first.
UNSEEN_HEADER: Final = "idempotency_unseen"
#: The most owner tokens in it.
MOST_UNSEEN: Final = 8
#: Message header of a deferred copy: a random token that no other message has, and the message that it is a copy of.
COPY_HEADER: Final = "idempotency_copy"
#: Message header of a deferred copy: the run that it waits for, as `AwaitedRun` writes it.
WAITS_HEADER: Final = "idempotency_waits_for"
#: Message header of a deferred copy: how often asking ``recover`` has failed before it.
RECOVERIES_HEADER: Final = "idempotency_recoveries"
# The worker's parent process sets three entries of the request dict.
#: The enforced hard time limit in seconds, or None.
HARD_LIMIT_ENTRY: Final = "idempotency_hard_limit"
#: The owner token of the claim that will be requested.
OWNER_ENTRY: Final = "idempotency_owner"
#: The parent's process id where it releases the claims of its children.
WATCHER_ENTRY: Final = "idempotency_watcher"
#: Entry of the request's ``properties``, set by the parent too: the `ReceivedMessage`.  Celery copies unknown entries
#: of the request dict itself to ``request.headers``, which bodies pass on to other messages.
MESSAGE_ENTRY: Final = "idempotency_message"
#: Removed when a message is sent again for another reason than deferral.
PRIVATE_HEADERS: Final = frozenset(
    (
        *(DEFERRALS_HEADER, COPY_HEADER, UNSEEN_HEADER, WAITS_HEADER, RECOVERIES_HEADER),
        *(HARD_LIMIT_ENTRY, OWNER_ENTRY, WATCHER_ENTRY),
    )
)
#: An owner token of this library; a message's sender can write anything else, such as a reservation's owner.
_TOKEN: Final = re.compile(r"[0-9a-f]{32}")
#: A `run_digest`, and two times in epoch seconds.
_WAITS: Final = re.compile(r"([0-9a-f]{32})/(\d{1,11}(?:\.\d{1,6})?)/(\d{1,11}(?:\.\d{1,6})?)")
#: A higher count is forged: deferred each second, a message reaches it after 11 days.
MOST_DEFERRALS: Final = 1_000_000
#: Where signatures stand, one or a list of them: in a message's body, a signature's options, a canvas's arguments.
_SIGNATURE_PLACES: Final = ("callbacks", "errbacks", "chain", "chord", "link", "link_error", "tasks", "header", "body")
#: How deep tracing SDKs nest ``headers`` in ``headers``: in the message's, or in those of an eager call.
_DEEPEST: Final = 2


@dataclass(frozen=True, kw_only=True, slots=True)
class ReceivedMessage:
    """The message of a delivery as the worker's parent process received it from the broker."""

    #: The queue that it was consumed from; None if unknown.
    queue: str | None
    #: Whether publishing to that queue's name reaches it: kombu's fanout on Redis has subscribers instead.
    is_addressable: bool = True
    #: Decompressed.
    body: bytes | str
    content_type: str
    content_encoding: str
    headers: Mapping[str, Any]
    #: As the transport delivers them, with those of the delivery itself.
    properties: Mapping[str, Any]
    #: How often the worker has requeued this message lately, because it could not be published again.
    returns: int = 0


class OwnerToken(str):
    """An owner token that the worker's parent process has set; no message can carry this type.

    A message's header named `OWNER_ENTRY` is a plain ``str``.  Where the entry has that type, no `GuardedRequest` made
    the request, so the hard limit and the watcher in it do not come from the parent process either.
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
    #: Whether it is a member of a group or chord, whose members may all have been given one key.
    grouped: bool = False
    #: How often the task was retried before.
    retries: int = 0
    #: How often this message was deferred before.
    deferrals: int = 0
    #: How often ``recover`` failed for this message before.
    failed_recoveries: int = 0
    #: Owner tokens of claims that earlier deliveries of this message may have been granted without running the body.
    unseen: tuple[str, ...] = ()
    #: The token of this deferred copy; None for any other message.
    copy: str | None = None
    #: Seconds after which the worker is certain to kill the body; None for never.
    hard_limit_seconds: float | None = None
    #: The owner token that the worker's parent process knows too; None outside a worker.
    owner: str | None = None
    #: The id of the process that releases the claim if this one dies; None for none.
    watcher: int | None = None
    #: The worker's node name.
    worker: str = ""
    #: Whether the task runs in the caller's process, where there is no message to send again.
    eager: bool = False
    #: The message; None where no parent process of ours received it from a queue.
    received: ReceivedMessage | None = None
    #: Whether it is no delivery but what an operator knows of one, and a required argument may be missing.
    partial: bool = False

    @property
    def message(self) -> str:
        """The id that all copies of this message share, and its retries do not."""
        return _message_id(self.task_id, self.retries)

    def successor(self) -> "Delivery":
        """Return the delivery of the next copy of this message: deferred once more, with a new token."""
        return replace(self, deferrals=self.deferrals + 1, copy=this_process().token())

    @property
    def headers(self) -> dict[str, Any]:
        """The headers of this copy: how often it was deferred, its token and its message."""
        return {DEFERRALS_HEADER: self.deferrals, COPY_HEADER: f"{self.copy}/{self.message}"}


def read_delivery(task: str, request: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Delivery:
    """Read a Celery request (``celery.app.task.Context``)."""
    owner = request.get(OWNER_ENTRY)
    from_parent = isinstance(owner, OwnerToken)
    properties = request.properties
    received = properties.get(MESSAGE_ENTRY) if isinstance(properties, Mapping) else None
    task_id, retries, places = id_text(request.id), request.retries or 0, tuple(_places(request))
    return Delivery(
        task=task,
        task_id=task_id,
        args=args,
        kwargs=kwargs,
        explicit_key=_header(places, KEY_HEADER),
        grouped=is_grouped(request.group, request.chain),
        retries=retries,
        deferrals=_count(_header(places, DEFERRALS_HEADER)),
        failed_recoveries=_count(_header(places, RECOVERIES_HEADER)),
        unseen=_tokens(_header(places, UNSEEN_HEADER)),
        copy=_token(_header(places, COPY_HEADER), _message_id(task_id, retries)),
        hard_limit_seconds=request.get(HARD_LIMIT_ENTRY) if from_parent else None,
        owner=str(owner) if from_parent else None,
        watcher=request.get(WATCHER_ENTRY) if from_parent else None,
        worker=request.hostname or "",
        eager=bool(request.is_eager) and not from_parent,
        # A message's own property of this name is never one.
        received=received if isinstance(received, ReceivedMessage) else None,
    )


def _message_id(task_id: str, retries: int) -> str:
    return f"{task_id}/{retries}"


@dataclass(frozen=True, slots=True)
class AwaitedRun:
    """The run that a deferred copy waits for; times are epoch seconds by the clock of the copy's publisher."""

    #: Its `run_digest`.
    digest: str
    #: When it was published; the run had its key shortly before.
    since: float
    #: Until when a worker may hold it for the run's end.
    until: float

    @property
    def header(self) -> str:
        """The value of `WAITS_HEADER`."""
        return f"{self.digest}/{self.since:.3f}/{self.until:.3f}"


def awaited_run(headers: Mapping[str, Any]) -> AwaitedRun | None:
    """Return what the message of a deferred copy waits for, from its headers; None for any other message."""
    waits, retries = headers.get(WAITS_HEADER), headers.get("retries") or 0
    # One that was copied from another message is not about this one.
    if (
        not isinstance(waits, str)
        or _token(headers.get(COPY_HEADER), f"{id_text(headers.get('id'))}/{retries}") is None
    ):
        return None
    found = _WAITS.fullmatch(waits)
    return None if found is None else AwaitedRun(found[1], float(found[2]), float(found[3]))


def run_digest(owner: str) -> str:
    """Return the name of a run in messages, which must not tell its owner token."""
    return sha256(owner.encode()).hexdigest()[:32]


def id_text(task_id: Any) -> str:
    """Return a task id as text: publishers also use ``uuid.UUID``, numbers and bytes."""
    return task_id.decode(errors="replace") if isinstance(task_id, bytes) else str(task_id)


def is_grouped(group_id: Any, chain: Iterable[Any] | None) -> bool:
    """Return whether a task is a member of a group or chord, or the first step of a member that is a chain.

    Args:
        group_id: the task's own group.
        chain: the signatures that follow it; of a member that is a chain, the last step has the group's id.
    """
    return bool(group_id) or any(options.get("group_id") for options in _options(chain))


def chord_with_key(key: object, chord: Any, chain: Iterable[Any] | None) -> Any:
    """Return a chord's body if it has its member's explicit key, as from a key given to the whole chord; else None.

    Args:
        key: the member's key, or None.
        chord: the body that waits for the task itself, or None.
        chain: the signatures that follow it; of a member that is a chain, the last step has the body.
    """
    if key is None:
        return None
    bodies = [body for body in (chord, *(options.get("chord") for options in _options(chain))) if body]
    return next((body for body in bodies if key in map(explicit_key, _options([body]))), None)


def explicit_key(options: Mapping[str, Any]) -> Any:
    """Return the key in the options of a call or signature, given as an option or as a header; None without one."""
    headers = options.get("headers")
    return options.get(KEY_OPTION) or (headers.get(KEY_HEADER) if isinstance(headers, Mapping) else None)


def following_signatures(body: Any) -> Iterator[Mapping[str, Any]]:
    """Yield each signature in a message that is sent after its task: links, steps of a chain, the body of a chord.

    Args:
        body: the message's, before it is serialized, under either of Celery's protocols.
    """
    waiting = _following(body[-1] if isinstance(body, tuple | list) and body else body)
    while waiting:
        signature = waiting.pop()
        if isinstance(signature, Mapping):
            yield signature
            waiting += _following(signature.get("options"))
            # A group, a chain or a chord has its members among its arguments.
            waiting += _following(signature.get("kwargs")) if signature.get("subtask_type") else []


def _following(place: Any) -> list[Any]:
    """Return what stands where Celery puts signatures: in a message, in a signature's options, in a canvas."""
    if not isinstance(place, Mapping):
        return []
    found = (place.get(name) for name in _SIGNATURE_PLACES)
    return [each for one in found for each in (one if isinstance(one, list | tuple) else [one])]


def _options(signatures: Iterable[Any] | None) -> list[Mapping[str, Any]]:
    """Return the options of each signature in a message; anything that is no signature is skipped."""
    found = (each.get("options") for each in signatures or () if isinstance(each, Mapping))
    return [options for options in found if isinstance(options, Mapping)]


def inherited_headers(request: Any, headers: Mapping[str, Any]) -> dict[str, Any]:
    """Return the headers for sending a request again for another reason than deferral.

    Args:
        request: the request, whose explicit key is kept.
        headers: those that Celery would send, from which `PRIVATE_HEADERS` are removed.
    """
    key = _header(_places(request), KEY_HEADER)
    kept = {} if key is None else {KEY_HEADER: key}
    return {**kept, **_public(headers, _DEEPEST)}


def _header(places: Iterable[Mapping[str, Any]], name: str) -> Any:
    """Return the first of a name in what `_places` yields; None if there is none."""
    for each in places:
        found = each.get(name)
        if found is not None:
            return found
    return None


def _places(request: Any) -> Iterator[Mapping[str, Any]]:
    """Yield the mappings in which a request may have its message's headers.

    A worker's request has headers as attributes, and in ``request.headers`` unless the message has an inner
    ``headers``, which replaces them: tracing SDKs add one (https://github.com/celery/celery/issues/4875).  The request
    of an eager call has them in ``request.headers`` only.
    """
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
    """Return the copy token in a `COPY_HEADER`; None if the header is malformed or was copied from another message."""
    token, _, of = header.partition("/") if isinstance(header, str) else ("", "", "")
    return token if token and of == message else None


def _tokens(header: object) -> tuple[str, ...]:
    """Return the owner tokens of a header, without anything else that a sender may have written there."""
    if not isinstance(header, list | tuple):
        return ()
    tokens = (each for each in header[:MOST_UNSEEN] if isinstance(each, str) and _TOKEN.fullmatch(each))
    return tuple(dict.fromkeys(tokens))
