"""The demo's journal: an append-only file of JSON lines, to which every process writes what it does."""

import os
from dataclasses import asdict, dataclass
from enum import StrEnum
from json import dumps, loads
from pathlib import Path

__all__ = ["Entry", "Journal", "Reader", "What"]


class What(StrEnum):
    """The kind of an entry."""

    #: By a worker: it is ready to take messages.
    READY = "ready"
    #: By the producer: the broker has the message.
    PUBLISHED = "published"
    #: By a pool child: it received a message, whether or not the body runs.
    DELIVERED = "delivered"
    #: By the body: it begins.
    STARTED = "started"
    #: By the body: its side effect, money was moved.
    CHARGED = "charged"
    #: By a pool child: it has finished with the message.
    FINISHED = "finished"
    #: By the library: a stored result was returned instead of running the body.
    REPLAYED = "replayed"
    #: By the library: another delivery holds the claim, so the message was deferred.
    DEFERRED = "deferred"
    #: By the demo: a pool child or a whole worker was killed.
    CHILD_KILLED = "child killed"
    WORKER_KILLED = "worker killed"


@dataclass(frozen=True, kw_only=True, slots=True)
class Entry:
    """One line of the journal."""

    #: Epoch seconds.
    at: float
    what: What
    payment: str = ""
    #: The process that did it or was killed, and the worker that it belongs to.
    pid: int = 0
    worker: int = 0
    #: The money that was moved.
    cents: int = 0


@dataclass(frozen=True, slots=True)
class Journal:
    """Writes entries; any number of processes may write at once."""

    path: Path

    def append(self, entry: Entry) -> None:
        """Append an entry as one line in one write, so that a writer that is killed leaves no partial line."""
        descriptor = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        try:
            os.write(descriptor, dumps(asdict(entry)).encode() + b"\n")
        finally:
            os.close(descriptor)


class Reader:
    """Reads the entries that were appended since the last read."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._offset = 0

    def news(self) -> list[Entry]:
        """Return the new entries whose lines are complete, oldest first."""
        if not self._path.exists():
            return []
        with self._path.open("rb") as file:
            file.seek(self._offset)
            complete = file.read().rpartition(b"\n")[0]
        if not complete:
            return []
        self._offset += len(complete) + 1
        return [_entry(line) for line in complete.split(b"\n")]


def _entry(line: bytes) -> Entry:
    fields = loads(line)
    return Entry(**{**fields, "what": What(fields["what"])})
