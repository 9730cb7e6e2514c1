"""The demo's journal on disk: every process appends lines to it, and what it says is what happened."""

import os
from dataclasses import asdict, dataclass
from enum import StrEnum
from json import dumps, loads
from pathlib import Path

__all__ = ["Entry", "Journal", "LineReader", "Reader", "What", "append_line"]


class What(StrEnum):
    """What a line reports."""

    #: By a worker: it takes messages now.
    READY = "ready"
    #: By the producer: a message is with the broker.
    PUBLISHED = "published"
    #: By a pool child: a message reached it, whether or not the body runs for it.
    DELIVERED = "delivered"
    #: By the body: it runs.
    STARTED = "started"
    #: By the body: its side effect, the money has moved.
    CHARGED = "charged"
    #: By a pool child: it is done with a message.
    FINISHED = "finished"
    #: By the library: a stored result was returned instead of running the body.
    REPLAYED = "replayed"
    #: By the library: another delivery is at it, the message was put off.
    DEFERRED = "deferred"
    #: By the demo: a pool child, or a whole worker, was killed.
    CHILD_KILLED = "child killed"
    WORKER_KILLED = "worker killed"


@dataclass(frozen=True, kw_only=True, slots=True)
class Entry:
    """One line."""

    #: Epoch seconds.
    at: float
    what: What
    payment: str = ""
    #: The process that did it, or that was killed; and the worker that it belongs to.
    pid: int = 0
    worker: int = 0
    #: The money that moved.
    cents: int = 0


@dataclass(frozen=True, slots=True)
class Journal:
    """The writing end; safe to use from any number of processes at once."""

    path: Path

    def append(self, entry: Entry) -> None:
        """Write one line; see `append_line`."""
        append_line(self.path, dumps(asdict(entry)).encode())


class Reader:
    """The reading end: each call returns what was written since the one before."""

    def __init__(self, path: Path) -> None:
        self._lines = LineReader(path)

    def news(self) -> list[Entry]:
        """Return the entries that are new, oldest first."""
        return [_entry(line) for line in self._lines.news()]


def _entry(line: bytes) -> Entry:
    fields = loads(line)
    return Entry(**{**fields, "what": What(fields["what"])})


def append_line(path: Path, line: bytes) -> None:
    """Write one line with a single append, so that a killed writer leaves no half of it behind."""
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    try:
        os.write(descriptor, line + b"\n")
    finally:
        os.close(descriptor)


class LineReader:
    """The reading end: each call returns what was written since the one before."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._offset = 0

    def news(self) -> list[bytes]:
        """Return the lines that are complete and new, oldest first."""
        if not self._path.exists():
            return []
        with self._path.open("rb") as file:
            file.seek(self._offset)
            complete = file.read().rpartition(b"\n")[0]
        if not complete:
            return []
        self._offset += len(complete) + 1
        return complete.split(b"\n")
