"""Events of deliveries, as frozen dataclasses, and the observers that receive them."""

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
    "Parked",
    "RecordedLate",
    "Recovered",
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
    """The subject of an event, such as a claim request."""

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
    """Base of all events of a delivery, or of a message before it was published."""

    #: The level at which `log_event` logs it.
    level: ClassVar[int] = logging.INFO

    #: The Celery task's name and this delivery's task id; for a message that was not published, the id it would have.
    task: str
    task_id: str
    #: The record's key; a digest of the arguments, never the arguments.
    key: str
    #: The node name of the worker; empty outside a worker.
    worker: str

    @classmethod
    def about(cls, subject: _Subject, **details: Any) -> Self:
        """Return an event about a subject, such as a claim request, with the event's own fields."""
        return cls(task=subject.task, task_id=subject.task_id, key=subject.key, worker=subject.worker, **details)


@dataclass(frozen=True, kw_only=True, slots=True)
class Reserved(Event):
    """A producer reserved the key for the message that it is about to publish."""

    level = logging.DEBUG
    #: For how long, in seconds.
    seconds: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Joined(Event):
    """``at_publish="join"``: the key has a task already; the producer got its result and published nothing."""

    #: That task's id.
    holder_task_id: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Refused(Event):
    """``at_publish="raise"``: the key has a task already, and nothing was published."""

    #: That task's id; None if the record names none.
    holder_task_id: str | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Unreserved(Event):
    """The message was published without a reservation, because the store failed."""

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
    #: Whether a later delivery can get the outcome.
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
    """A claim ended without an outcome; the key is free for the next delivery, unless the reason says otherwise.

    Emitted once for each such claim: the reason says if the release found the claim lost or the store failed.
    """

    #: The exception's type, for example ``Retry``; ``Unseen`` if no body began under a claim whose answer was lost.
    reason: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Replayed(Event):
    """The stored outcome was returned, or raised if it is a failure; the body did not run."""

    #: The task id whose run gave the outcome; None if the record names none.
    holder_task_id: str | None
    #: Seconds since the outcome was stored; None if the record does not say when.
    age_seconds: float | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Deferred(Event):
    """The message was published again for later; the body did not run."""

    #: Seconds until the copy runs.
    countdown_seconds: float
    #: ``busy``; ``sending`` if another copy of the delivery may be sending the continuation; or the type of the store's
    #: error.
    reason: str
    #: How often this message has been deferred; 1 for the first time.
    deferrals: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Merged(Event):
    """The key was running and another copy of the message waits for it already; this copy was dropped."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Dispatched(Event):
    """The task's continuation (links, chain, chord) was sent; a redelivery does not send it again."""

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
    """The body finished, but its outcome was not stored: another delivery may run the body again."""

    level = logging.ERROR
    #: The type of the store's error; ``Released`` if the key was released, and of an outcome that was kept also
    #: ``Vanished`` if its record was deleted, ``Expired`` if nobody would get it any more, and ``ProcessEnds``.
    reason: str
    #: Whether the process keeps the outcome and goes on trying to store it: `RecordedLate`, `Superseded` or another
    #: `Unrecorded` says how that ends, unless the process dies.
    kept: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class RecordedLate(Event):
    """An outcome was stored that had been `Unrecorded`: nobody had taken the key meanwhile."""

    fence: int
    #: For how many seconds it was not on record, from when its run gave up.
    seconds: float


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
class Parked(Event):
    """The key waits for a person's decision, and so does the message: an earlier run left no outcome.

    Emitted for the delivery that parks the key, and for each that finds it parked.
    """

    level = logging.ERROR
    #: ``Rerun``; or why ``recover`` does not know, or the type of what it raised the last time.
    reason: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Recovered(Event):
    """``recover`` knew what came of an earlier run that left no outcome."""

    #: Whether that run's effect was made: then its result is the key's outcome, else the body starts.
    done: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class Renewed(Event):
    """The claim of a running body was renewed."""

    level = logging.DEBUG


@dataclass(frozen=True, kw_only=True, slots=True)
class Lost(Event):
    """The claim of a running body is gone: another delivery may run the body at the same time."""

    level = logging.ERROR


#: Every event class of this module, in the order above.
KINDS: Final[tuple[type[Event], ...]] = tuple(
    each for each in list(globals().values()) if isinstance(each, type) and Event in each.__bases__
)

Observer = Callable[[Event], None]

#: The fields that a log message begins with or, as the worker, has only in its ``extra``.
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
    """Notifies each observer of each event; an observer's exception is logged and changes nothing.

    Args:
        observers: notified in this order.
        interrupts: exceptions that are raised into this thread from outside; they are passed on.
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
