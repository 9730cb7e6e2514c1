"""The operating-system process: its clock, threads, randomness and name, and whether another process has ended.

The rest of the package gets these from `this_process`, so that a simulation can run several processes in one
(`running_as`).
"""

import os
import random
import select
import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import ContextVar
from functools import lru_cache
from pathlib import Path
from typing import Any, Final, TypeVar
from uuid import uuid4

from kombu.asynchronous import get_event_loop

from idempotent_tasks.core.clock import Clock, SystemClock

__all__ = ["ForkGate", "Process", "current_process", "has_ended", "pid_exists", "running_as", "this_process"]

T = TypeVar("T")

#: The most seconds that a fork waits; then the pool gets its process in spite of a held lock.
FORK_WAIT_SECONDS: Final = 1.0
#: Seconds between two checks of a process on systems without process handles.
_POLL_SECONDS: Final = 0.05
#: Separates the name of a process from its watcher's.
_WATCHED_BY: Final = "^"
_PROC: Final = Path("/proc")
#: Indexes of fields of ``/proc/PID/stat`` after the command's closing bracket (``man 5 proc_pid_stat``).
_STATE, _THREADS, _START_TIME = 0, 17, 19


def current_process(watcher: int | None = None) -> str | None:
    """Return a globally unique name of this process, or None if unavailable.

    Host, boot, namespaces, process id and start time.  Linux only: it needs ``/proc``.

    Args:
        watcher: the id of the process that releases the claims that this one leaves behind; part of the name.
    """
    return _name_of(os.getpid(), watcher)


def has_ended(process: str | None, *, and_watcher: bool = True) -> bool:
    """Return whether a process named by `current_process`, and its watcher, are certain to have ended.

    False for None, and for a process of another machine, boot or container.

    Args:
        process: the name.
        and_watcher: whether the watcher must have ended, too: it may still release the process's claims.
    """
    place, _, names = (process or "").rpartition("/")
    must_end = names.split(_WATCHED_BY)[: None if and_watcher else 1]
    return bool(place) and place == _this_place() and all(map(_has_ended, must_end))


def _has_ended(name: str) -> bool:
    pid, _, start = name.partition("@")
    if not pid.isdecimal():
        return False
    if not pid_exists(int(pid)):
        return True
    stat = _stat(int(pid))
    # There is none where other users' processes are hidden.
    return stat is not None and (stat[_START_TIME] != start or _is_zombie(stat))


def pid_exists(pid: int) -> bool:
    """Return whether this machine has a process of this id, a zombie included."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        pass
    return True


# A forked child has another id, so it never gets its parent's name.
@lru_cache(maxsize=1)
def _name_of(*pids: int | None) -> str | None:
    place = _this_place()
    stats = {pid: _stat(pid) for pid in pids if pid is not None}
    if place is None or None in stats.values():
        return None
    return f"{place}/" + _WATCHED_BY.join(f"{pid}@{stat[_START_TIME]}" for pid, stat in stats.items() if stat)


@lru_cache(maxsize=1)
def _this_place() -> str | None:
    """Return the name of the scope of process ids and start times: host, boot and namespaces."""
    try:
        boot = (_PROC / "sys/kernel/random/boot_id").read_text(encoding="utf-8").strip()
        ids = (_PROC / "self/ns/pid").stat().st_ino
        times = _PROC / "self/ns/time"
        # Kernels before 5.6 have no time namespaces.
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
    """Return whether a process is a zombie without live threads: the state is that of its first thread alone."""
    return stat[_STATE] in ("Z", "X") and int(stat[_THREADS]) <= 1


class Process:
    """This operating-system process, as the rest of the package sees it.

    A subclass stands in for it as a whole: see `running_as`.
    """

    def __init__(self) -> None:
        #: Never corrected, unlike a store's: for measurements on this machine only.
        self.clock: Clock = SystemClock()
        #: Without state that forked children would share.
        self.random: random.Random = random.SystemRandom()
        self._owned: dict[tuple[int, Callable[[], Any]], Any] = {}

    @property
    def pid(self) -> int:
        """The process id."""
        return os.getpid()

    def token(self) -> str:
        """Return a unique random token: 32 hexadecimal digits."""
        return uuid4().hex

    def own(self, kind: Callable[[], T]) -> T:
        """Return this process's singleton of a kind: made on first use, and again in a forked child.

        Args:
            kind: its class or another factory; racing threads may call it twice.
        """
        # Without a lock, which a child might inherit locked. A child ignores its parent's objects.
        owner = self.pid, kind
        owned = self._owned.get(owner)
        if owned is None:
            owned = self._owned.setdefault(owner, kind())
        return owned  # type: ignore[no-any-return]

    def provide(self, kind: Callable[[], T], owned: T) -> None:
        """Set the object that `own` returns for a kind."""
        self._owned[self.pid, kind] = owned

    def spawn(self, work: Callable[[], None], name: str) -> threading.Thread:
        """Start a daemon thread (or greenlet); raises ``RuntimeError`` where the machine has none left."""
        thread = threading.Thread(target=work, name=name, daemon=True)
        thread.start()
        return thread

    def executor(self, threads: int, name: str) -> Executor:
        """Return a pool of so many threads, for whose work the interpreter waits before it exits."""
        return ThreadPoolExecutor(threads, name)

    def event(self) -> threading.Event:
        """Return an event that threads of this process wait for and set."""
        return threading.Event()

    def lock(self) -> threading.Lock:
        """Return a lock between threads of this process."""
        return threading.Lock()

    def event_loop(self) -> Any | None:
        """Return the event loop of this thread (``kombu.asynchronous.Hub``), None where it has none."""
        return get_event_loop()

    def name(self, watcher: int | None = None) -> str | None:
        """Return a globally unique name of this process, as `current_process` does."""
        return current_process(watcher)

    def has_ended(self, name: str | None, *, and_watcher: bool = True) -> bool:
        """Return whether a process is certain to have ended, as the function `has_ended` does."""
        return has_ended(name, and_watcher=and_watcher)

    def wait_for_end(self, pid: int, seconds: float) -> bool:
        """Wait up to so many seconds for a process of this machine to end, or to be a zombie; return whether it did."""
        if not hasattr(os, "pidfd_open"):
            return self._poll_for_end(pid, seconds)
        try:
            handle = os.pidfd_open(pid)
        except ProcessLookupError:
            return True
        try:
            poller = select.poll()
            poller.register(handle, select.POLLIN)
            return bool(poller.poll(seconds * 1000))
        finally:
            os.close(handle)

    def _poll_for_end(self, pid: int, seconds: float) -> bool:
        give_up_at = self.clock.monotonic() + seconds
        while self.clock.monotonic() < give_up_at:
            if not pid_exists(pid):
                return True
            self.clock.sleep(_POLL_SECONDS)
        return False


class ForkGate:
    """Blocks ``fork()`` while a thread holds locks that the child would inherit locked."""

    def __init__(self) -> None:
        self._reset()
        os.register_at_fork(before=self._wait, after_in_parent=self._go_on, after_in_child=self._reset)

    @contextmanager
    def closed(self) -> Iterator[None]:
        """Make other threads' forks of this process wait for the block's end, for `FORK_WAIT_SECONDS` at most."""
        # Evaluated once: a child that is forked inside the block has another lock, from `_reset`.
        with self._lock:
            yield

    def _wait(self) -> None:
        self._waited = self._lock.acquire(timeout=FORK_WAIT_SECONDS)

    def _go_on(self) -> None:
        if self._waited:
            self._lock.release()

    def _reset(self) -> None:
        # Re-entrant: a thread that forks inside its own block must not wait for itself.
        self._lock = threading.RLock()
        self._waited = False


#: The real process; a context variable holds what replaces it.
_OWN: Final = Process()
_current: Final[ContextVar[Process]] = ContextVar("idempotency_process")


def this_process() -> Process:
    """Return the process in which the caller runs."""
    return _current.get(_OWN)


@contextmanager
def running_as(process: Process) -> Iterator[Process]:
    """Have `this_process` return another process during a block, in this thread (or greenlet) and context."""
    token = _current.set(process)
    try:
        yield process
    finally:
        _current.reset(token)
