"""What one contender has to itself (queue, prefixes, locks, table, journal), as a value that travels to its workers."""

import time
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Self

from benchmarks.chaos.history import Event, What
from tests.testbed.journal import Entry, LineReader, append_line
from tests.testbed.workers import WorkerConfig

__all__ = ["Arena", "Journal", "Reader", "now"]

_DEFAULTS = {field.name: field.default for field in fields(Event) if field.name not in ("what", "at")}


def now() -> float:
    """Return seconds on a clock that all processes of the machine share and that nobody sets."""
    return time.monotonic()


@dataclass(frozen=True, slots=True)
class Journal:
    """The writing end; safe to use from any number of processes at once."""

    path: Path

    @classmethod
    def of(cls, folder: Path) -> Self:
        """Return the journal in a contender's folder."""
        return cls(folder / "journal.jsonl")

    def append(self, what: What, *, at: float | None = None, **details: Any) -> None:
        """Write one line in one write, so that a killed writer leaves no half of it behind.

        Args:
            what: what happened.
            at: when; now by default.
            details: fields of `Event`.
        """
        event = asdict(Event(what=what, at=now() if at is None else at, **details))
        append_line(self.path, {name: value for name, value in event.items() if value != _DEFAULTS.get(name)})


class Reader:
    """The reading end: each call returns what was written since the one before."""

    def __init__(self, path: Path) -> None:
        self._reader = LineReader(path)
        self._lines = 0

    def news(self) -> list[Event]:
        """Return the lines that are complete and new, in their order, numbered from 1."""
        lines = self._reader.news()
        first = self._lines + 1
        self._lines += len(lines)
        return [_event(line, number) for number, line in enumerate(lines, start=first)]


def _event(details: Entry, number: int) -> Event:
    return Event(**{**details, "what": What(details["what"]), "line": number})


@dataclass(frozen=True, kw_only=True)
class Arena(WorkerConfig):
    """All that a worker process must know; nothing in it is shared with another contender or another run."""

    contender: str
    #: Begins the names of the task, of the queue and of all keys in Redis.
    prefix: str
    broker_url: str
    transport_options: dict[str, Any]
    #: A Redis database for the results, and one for the locks of those who keep theirs in Redis.
    result_backend: str
    lock_url: str
    #: The DynamoDB endpoint, region and table of those who keep records; empty for the others.
    endpoint: str
    region: str
    table: str
    #: Where its workers get their AWS credentials from; empty where their environment has them.
    credentials_uri: str
    #: Where the effects are: at a provider, or rows in a database; both empty where a body has them in its own process.
    provider_url: str
    database_url: str
    #: Whether its messages carry the headers of a tracing SDK.
    traced: bool
    #: Where the journal and the logs are.
    directory: str

    @property
    def journal(self) -> Journal:
        """Where everything about this contender is written down."""
        return Journal.of(Path(self.directory))

    @property
    def is_forgetful(self) -> bool:
        """Whether a killed worker can take a message along that the broker does not know to be unacknowledged.

        kombu pops a message from Redis and notes it afterwards; where the worker takes no more at the moment, long
        afterwards (``kombu.transport.redis.MultiChannelPoller``, of 5.7).
        """
        return self.broker_url.startswith("redis://")

    @property
    def items(self) -> str:
        """The DynamoDB table of the effects that are items."""
        return f"{self.prefix}.items"

    @property
    def has_items(self) -> bool:
        """Whether effects may be items: a database can take effects back, and there is a DynamoDB beside it."""
        return bool(self.database_url and self.table)

    @property
    def task_name(self) -> str:
        """The name of the one task."""
        return f"{self.prefix}.charge"

    @property
    def queue(self) -> str:
        """The name of the one queue."""
        return f"{self.prefix}.queue"
