"""What happened, as JSON lines on disk, and the gates that hold a body open until the test lets it go.

Processes that are killed at any moment write the lines, so each is one append to one file.
"""

import json
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.testbed.waiting import wait_for

__all__ = ["Entry", "Journal", "LineReader", "append_line"]

Entry = dict[str, Any]

#: How long a body stays at a shut gate at most, in seconds; then it fails, and says so in the journal.
GATE_SECONDS = 60.0


def append_line(path: Path, entry: Entry) -> None:
    """Append one JSON line in one write, so that a killed writer leaves no half of it behind."""
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    try:
        os.write(descriptor, json.dumps(entry).encode() + b"\n")
    finally:
        os.close(descriptor)


class LineReader:
    """Reads JSON lines while they are written: each call returns what was added since the one before."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._offset = 0

    def news(self) -> list[Entry]:
        """Return the lines that are complete and new, oldest first."""
        if not self._path.exists():
            return []
        with self._path.open("rb") as file:
            file.seek(self._offset)
            complete = file.read().rpartition(b"\n")[0]
        self._offset += len(complete) + 1 if complete else 0
        return [json.loads(line) for line in complete.splitlines()]


@dataclass(frozen=True)
class Journal:
    """What the bodies of one test wrote down, in one directory."""

    directory: Path

    @property
    def path(self) -> Path:
        """The JSON lines."""
        return self.directory / "journal.jsonl"

    def write(self, event: str, **fields: Any) -> None:
        """Append one line with the time in epoch seconds and the writer's process id, in one write."""
        append_line(self.path, {"event": event, "at": round(time.time(), 3), "pid": os.getpid(), **fields})

    def entries(self, event: str | None = None, **fields: Any) -> list[Entry]:
        """Return the lines of one event (or all) that have these values, oldest first."""
        wanted = fields if event is None else {"event": event, **fields}
        return [line for line in LineReader(self.path).news() if wanted.items() <= line.items()]

    def count(self, event: str, **fields: Any) -> int:
        """Return how many lines of this event have these values."""
        return len(self.entries(event, **fields))

    def wait_for(self, event: str, timeout_seconds: float = 20.0, *, times: int = 1, **fields: Any) -> Entry:
        """Return the newest of ``times`` lines of an event, as soon as there are that many.

        Raises:
            TimeoutError: with the whole journal.
        """
        self.wait_until(
            lambda: self.count(event, **fields) >= times, timeout_seconds, f"no {times} x {event} with {fields}"
        )
        return self.entries(event, **fields)[-1]

    def wait_until(self, condition: Callable[[], bool], timeout_seconds: float, message: str) -> None:
        """Return when a condition holds.

        Raises:
            TimeoutError: with the message and the whole journal.
        """
        wait_for(condition, timeout_seconds, lambda: f"{message}; the journal is\n{self.dump()}")

    def dump(self) -> str:
        """Return the journal as text."""
        return "\n".join(json.dumps(entry) for entry in self.entries()) or "(empty)"

    def shut(self, gate: str) -> None:
        """From now on hold everybody who comes to this gate."""
        self._gate(gate).touch()

    def open(self, gate: str) -> None:
        """Let go everybody who is held at this gate, or will come to it."""
        self._gate(gate).unlink()

    def pass_gate(self, gate: str) -> None:
        """Stay here while the gate is shut; its visitors are written down before they are held.

        Raises:
            TimeoutError: nobody opened it within `GATE_SECONDS`.
        """
        if not self._gate(gate).exists():
            return
        self.write("at-gate", gate=gate)
        try:
            wait_for(lambda: not self._gate(gate).exists(), GATE_SECONDS, f"gate {gate} stayed shut")
        except TimeoutError:
            self.write("gate-timeout", gate=gate)
            raise

    def _gate(self, gate: str) -> Path:
        return self.directory / f"{gate}.shut"
