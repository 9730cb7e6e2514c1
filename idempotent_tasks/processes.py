"""Whether a process has ended, as far as this machine can tell for certain: only a "yes" counts.

A worker that a supervisor starts again on its old machine can so free what its predecessor held, without waiting for
the claims to expire.  What another machine or container held is left to expire.
"""

import os
import socket
from functools import lru_cache
from pathlib import Path
from typing import Final

__all__ = ["current_process", "has_ended"]

#: Between the name of a process and that of its watcher.
_WATCHED_BY: Final = "^"
_PROC: Final = Path("/proc")
#: Fields of ``/proc/PID/stat``, counted from the one after the command's closing bracket (``man 5 proc_pid_stat``).
_STATE, _THREADS, _START_TIME = 0, 17, 19


def current_process(watcher: int | None = None) -> str | None:
    """Return a name of this process that no other has, on this machine or elsewhere; None where it cannot be had.

    Host, boot, namespaces, process id and start time.  Linux only: it needs ``/proc``.

    Args:
        watcher: the id of the process that takes care of what this one leaves behind, which becomes part of the name.
    """
    return _name_of(os.getpid(), watcher)


def has_ended(process: str | None, *, and_watcher: bool = True) -> bool:
    """Return whether a process named by `current_process`, and its watcher, are certain to have ended.

    False where it ran on another machine, in another boot or in another container, and for None.

    Args:
        process: the name.
        and_watcher: whether the watcher must have ended, too: it may still free what the process held.
    """
    place, _, names = (process or "").rpartition("/")
    asked = names.split(_WATCHED_BY)[: None if and_watcher else 1]
    return bool(place) and place == _this_place() and all(map(_has_ended, asked))


def _has_ended(name: str) -> bool:
    pid, _, start = name.partition("@")
    if not pid.isdecimal():
        return False
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return True
    except (PermissionError, OverflowError):
        pass
    stat = _stat(int(pid))
    # Where processes of other users are hidden, there is nothing to read.
    return stat is not None and (stat[_START_TIME] != start or _is_zombie(stat))


# A forked child has another id, so it never finds its parent's name here.
@lru_cache(maxsize=1)
def _name_of(*pids: int | None) -> str | None:
    place = _this_place()
    stats = {pid: _stat(pid) for pid in pids if pid is not None}
    if place is None or None in stats.values():
        return None
    return f"{place}/" + _WATCHED_BY.join(f"{pid}@{stat[_START_TIME]}" for pid, stat in stats.items() if stat)


@lru_cache(maxsize=1)
def _this_place() -> str | None:
    """Return a name of what process ids and start times mean something in."""
    try:
        boot = (_PROC / "sys/kernel/random/boot_id").read_text(encoding="utf-8").strip()
        ids = (_PROC / "self/ns/pid").stat().st_ino
        times = _PROC / "self/ns/time"
        # Kernels before 5.6 have one time for all.
        time = times.stat().st_ino if times.exists() else 0
    except OSError:
        return None
    return f"{socket.gethostname()}/{boot}/{ids}/{time}"


def _stat(pid: int) -> list[str] | None:
    try:
        text = (_PROC / str(pid) / "stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    return text.rpartition(")")[2].split()


def _is_zombie(stat: list[str]) -> bool:
    """Return whether all that is left of a process is that its parent has not collected it.

    Its first thread may have ended before others that still run something.
    """
    return stat[_STATE] in ("Z", "X") and int(stat[_THREADS]) <= 1
