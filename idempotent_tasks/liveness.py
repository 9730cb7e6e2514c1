"""Whether a process has ended, as far as this machine can tell for certain: only a "yes" counts.

A worker that a supervisor starts again on its old machine can so free what its predecessor held, without waiting for
the claims to expire.  What another machine or container held is left to expire.
"""

import os
import select
import socket
from functools import lru_cache
from pathlib import Path
from typing import Final

from idempotent_tasks.clock import SystemClock

__all__ = ["current_process", "gone", "has_ended"]

_POLL_SECONDS: Final = 0.05
_PROC: Final = Path("/proc")
#: The start time is the 22nd field of ``/proc/PID/stat``, the 20th after the command's closing bracket (``man proc``).
_START_FIELD: Final = 19


def current_process() -> str | None:
    """Return a name of this process that no other has, on this machine or elsewhere; None where it cannot be had.

    Host, boot, process id namespace, process id and start time.  Linux only: it needs ``/proc`` and pidfds.
    """
    return _name_of(os.getpid())


def has_ended(process: str | None) -> bool:
    """Return whether a process named by `current_process` is certain to have ended.

    False where it lives, where it ran on another machine, in another boot or in another container, and for None.
    """
    place, _, name = (process or "").rpartition("/")
    pid, _, start = name.partition("@")
    if not place or place != _this_place() or not pid.isdecimal():
        return False
    return gone(int(pid), 0) or _start_time(int(pid)) not in (start, None)


def gone(pid: int, seconds: float) -> bool:
    """Wait up to so many seconds for a process to end, and return whether it did.

    A zombie counts as gone: it runs nothing any more.
    """
    # eventlet takes ``select.poll`` away from the whole process.
    if not (hasattr(os, "pidfd_open") and hasattr(select, "poll")):
        return _gone_by_polling(pid, seconds)
    try:
        handle = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    except OSError:
        # Some sandboxes have no pidfds.
        return _gone_by_polling(pid, seconds)
    try:
        poller = select.poll()
        poller.register(handle, select.POLLIN)
        return bool(poller.poll(seconds * 1000))
    finally:
        os.close(handle)


def _gone_by_polling(pid: int, seconds: float) -> bool:
    clock = SystemClock()
    give_up_at = clock.now() + seconds
    while clock.now() < give_up_at:
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return True
        clock.sleep(_POLL_SECONDS)
    return False


# A forked child has another id, so it never finds its parent's name here.
@lru_cache(maxsize=1)
def _name_of(pid: int) -> str | None:
    place, start = _this_place(), _start_time(pid)
    return f"{place}/{pid}@{start}" if place and start else None


@lru_cache(maxsize=1)
def _this_place() -> str | None:
    """Return a name of what process ids and start times mean something in."""
    try:
        boot = (_PROC / "sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        ids = (_PROC / "self/ns/pid").stat().st_ino
        times = _PROC / "self/ns/time"
        # Kernels before 5.6 have one time for all.
        time = times.stat().st_ino if times.exists() else 0
    except OSError:
        return None
    return f"{socket.gethostname()}/{boot}/{ids}/{time}"


def _start_time(pid: int) -> str | None:
    try:
        stat = (_PROC / str(pid) / "stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    return stat.rpartition(")")[2].split()[_START_FIELD]
