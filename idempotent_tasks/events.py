"""Events of deliveries, as frozen dataclasses, and the observers that they are sent to."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any, ClassVar, Final, Protocol, Self

__all__ = [
    "KINDS",
    "Claimed",
    "Committed",
    "CrashLooped",
    "Deferred",
    "Dispatched",
    "Event",
    "Joined",
    "Lost",
    "Merged",
    "Mismatched",
    "Observer",
    "Observers",
    "Refused",
    "Released",
    "Renewed",
    "Replayed",
    "Reserved",
    "Skipped",
    "Superseded",
    "Unrecorded",
    "Unreplayable",
    "Unreserved",
    "log_event",
]

logger = logging.getLogger("idempotent_tasks")


class _Subject(Protocol):
    """What an event is about, such as a claim request."""

    @property
    def task(self) -> str: ...
    @property
    def task_id(self) -> str: ...
    @property
    def key(self) -> str: ...
    @property
    def worker(self) -> str: ...


@dataclass(frozen=True, kw_only=True, slots=True)
class Event:
    """Base of all events: something happened to a delivery of a key, or to a message before it was published."""

    #: The severity under which `log_event` logs it.
    level: ClassVar[int] = logging.INFO

    #: The Celery task's name and this delivery's task id; of what was not published the id that it would have had.
    task: str
    task_id: str
    #: The record's key; a digest of the arguments, never the arguments.
    key: str
    #: The node name of the worker that has the delivery; empty outside a worker.
    worker: str

    @classmethod
    def about(cls, subject: _Subject, **details: Any) -> Self:
        """Return the event of one delivery, such as its claim request, with the event's own fields."""
        return cls(task=subject.task, task_id=subject.task_id, key=subject.key, worker=subject.worker, **details)


@dataclass(frozen=True, kw_only=True, slots=True)
class Reserved(Event):
    """A producer reserved the key for the message that it is about to publish."""

    level = logging.DEBUG
    #: For how long, in seconds.
    seconds: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Joined(Event):
    """``at_publish="join"``: the key has a task already, whose result the producer got instead of publishing."""

    #: That task's id.
    holder_task_id: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Refused(Event):
    """``at_publish="raise"``: the key has a task already, and nothing was published."""

    #: That task's id, where the record names it.
    holder_task_id: str | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Unreserved(Event):
    """The message was published without a reservation, because the store could not be asked for one."""

    #: The type of the store's error.
    reason: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Claimed(Event):
    """The key was claimed; the body starts."""

    level = logging.DEBUG
    fence: int
    #: 1 for a first try; each crash since the last clean end adds 1.
    attempt: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Committed(Event):
    """The body's outcome was stored; it is the key's outcome."""

    level = logging.DEBUG
    fence: int
    #: Whether a later delivery can have the result.
    replayable: bool
    #: Seconds from the claim to the commit.
    seconds: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Unreplayable(Event):
    """The outcome was stored without its data: a later delivery fails, unless the result backend has the result."""

    level = logging.WARNING
    #: Why there is no data; for a failure its type.
    reason: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Released(Event):
    """The body did not finish; the key is free for the next delivery.

    Sent once for each claim that ends without an outcome, also where the release found the claim lost or the store took
    none: the reason says so.
    """

    #: The exception's type, for example ``Retry``; ``Unseen`` where no body began under a claim whose answer was lost.
    reason: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Replayed(Event):
    """The stored outcome was returned, or raised where it is a failure; the body did not run."""

    #: The task id whose run gave the outcome, where the record names it.
    holder_task_id: str | None
    #: Seconds since the outcome was stored; None where the record does not say when.
    age_seconds: float | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Deferred(Event):
    """The message was published again for later; the body did not run."""

    #: Seconds until the copy runs.
    countdown_seconds: float
    #: ``busy``; ``sending`` where another copy of the delivery may be sending what follows; or the type of the store's
    #: error.
    reason: str
    #: How often this message has been deferred by now; 1 for the first time.
    deferrals: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Merged(Event):
    """The key was running and another copy of the same message waits for it already; this copy was dropped."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Dispatched(Event):
    """What follows the task (links, chain, chord) was sent, which a redelivery will know."""

    level = logging.DEBUG


@dataclass(frozen=True, kw_only=True, slots=True)
class Skipped(Event):
    """The key was running and ``on_busy="skip"`` dropped the delivery."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Superseded(Event):
    """The body ran, but another delivery claimed the key meanwhile; its outcome counts and this one was dropped."""

    level = logging.WARNING
    fence: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Unrecorded(Event):
    """The body finished, but the store took no outcome: another delivery may run the body again."""

    level = logging.ERROR
    #: The type of the store's error; ``Released`` where somebody had freed the key while the body ran.
    reason: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Mismatched(Event):
    """The key was used with a different payload; the delivery failed."""

    level = logging.WARNING


@dataclass(frozen=True, kw_only=True, slots=True)
class CrashLooped(Event):
    """The body crashed its worker too often; the delivery failed."""

    level = logging.ERROR
    #: How many runs in a row ended without commit or release.
    crashes: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Renewed(Event):
    """The claim of a running body was renewed."""

    level = logging.DEBUG


@dataclass(frozen=True, kw_only=True, slots=True)
class Lost(Event):
    """The claim of a running body is gone: another delivery may run the body at the same time."""

    level = logging.ERROR


#: Every kind of event.
KINDS: Final[tuple[type[Event], ...]] = (
    Reserved,
    Joined,
    Refused,
    Unreserved,
    Claimed,
    Committed,
    Unreplayable,
    Released,
    Replayed,
    Deferred,
    Merged,
    Dispatched,
    Skipped,
    Superseded,
    Unrecorded,
    Mismatched,
    CrashLooped,
    Renewed,
    Lost,
)

Observer = Callable[[Event], None]

#: The fields that the log's text has at its beginning or, as the worker, only in the ``extra``.
_EVENT_FIELDS: Final = ("task", "task_id", "key", "worker")


def log_event(event: Event) -> None:
    """Log an event on the logger ``idempotent_tasks``, its fields as ``idempotency_*`` in the record's ``extra``."""
    if not logger.isEnabledFor(event.level):
        return
    name = type(event).__name__
    details = {field.name: getattr(event, field.name) for field in fields(event) if field.name not in _EVENT_FIELDS}
    extra = {f"idempotency_{field.name}": getattr(event, field.name) for field in fields(event)}
    logger.log(
        event.level,
        "%s %s[%s] key %s%s",
        name.lower(),
        event.task,
        event.task_id,
        event.key,
        "".join(f" {name}={value}" for name, value in details.items()),
        extra={"idempotency_event": name, **extra},
    )


class Observers:
    """Notifies each observer of each event; one that raises is logged and changes nothing.

    Args:
        observers: in the order in which they are notified.
        interrupts: exceptions that something outside raises into this thread; they are no observer's failure.
    """

    def __init__(self, observers: Sequence[Observer], interrupts: tuple[type[BaseException], ...] = ()) -> None:
        self.observers = tuple(observers)
        self._interrupts = interrupts

    def __call__(self, event: Event) -> None:
        """Notify the observers of an event."""
        for observer in self.observers:
            try:
                observer(event)
            except self._interrupts:
                raise
            except Exception:
                logger.exception("idempotency observer %r failed on %s", observer, type(event).__name__)
