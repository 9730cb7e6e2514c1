"""When a process of a pool began its first task and ended its last, and how many it ended: 24 bytes that it shares.

Nothing is written to a file or sent while tasks run, so that the marks do not cost what they measure.
"""

import mmap
import struct
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Final

__all__ = ["Marks", "Tally", "tally_of"]

_FORM: Final = struct.Struct("ddq")
_SUFFIX: Final = ".marks"


class Marks:
    """The marks of one process; times are of its monotonic clock, which all processes of a machine share.

    Args:
        path: the file; made where there is none.
    """

    def __init__(self, path: Path) -> None:
        if not path.exists():
            path.write_bytes(bytes(_FORM.size))
        with path.open("r+b") as file:
            self._memory = mmap.mmap(file.fileno(), _FORM.size)

    @classmethod
    def of_process(cls, folder: Path, pid: int) -> "Marks":
        """Open the marks of a process."""
        return cls(folder / f"{pid}{_SUFFIX}")

    def read(self) -> tuple[float, float, int]:
        """Return when the first task began and the last ended, in seconds, 0.0 for never; and how many ended."""
        first, last, count = _FORM.unpack(self._memory)
        return first, last, count

    def clear(self) -> None:
        """Begin anew."""
        self._memory[:] = bytes(_FORM.size)

    def begun(self, at: float) -> None:
        """Mark that a task begins."""
        first, last, count = self.read()
        if not first:
            _FORM.pack_into(self._memory, 0, at, last, count)

    def ended(self, at: float) -> None:
        """Mark that a task ends."""
        first, _, count = self.read()
        _FORM.pack_into(self._memory, 0, first, at, count + 1)

    def close(self) -> None:
        """Let go of the memory."""
        self._memory.close()


@dataclass(frozen=True, slots=True)
class Tally:
    """What the processes of a pool did together."""

    count: int
    #: From the first begin to the last end.
    seconds: float


def tally_of(folder: Path, *, clear: bool = False) -> Tally:
    """Add up the marks in a folder, and clear them if told to, which is for a pool at rest."""
    read = []
    with ExitStack() as stack:
        for path in folder.glob(f"*{_SUFFIX}"):
            marks = Marks(path)
            stack.callback(marks.close)
            read.append(marks.read())
            if clear:
                marks.clear()
    return _added(read)


def _added(read: Iterable[tuple[float, float, int]]) -> Tally:
    busy = [marks for marks in read if marks[2]]
    if not busy:
        return Tally(0, 0.0)
    seconds = max(last for _, last, _ in busy) - min(first for first, _, _ in busy)
    return Tally(sum(count for _, _, count in busy), seconds)
