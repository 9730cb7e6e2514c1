"""A file of lines that processes append to while others read it, and that a killed writer leaves whole."""

import os
from pathlib import Path

__all__ = ["LineReader", "append_line"]


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
