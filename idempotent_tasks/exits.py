"""Noticing at once that a process of the pool has ended, where Celery may notice it only seconds later.

Celery watches a pipe that closes when a process ends.  The kernel closes it a moment before the process can be reaped;
Celery then finds a process that lives, watches no longer, and looks again when a timer comes round, every 5 s
(``celery.concurrency.asynpool.AsynPool._event_process_exit``).  A ``pidfd`` tells the moment at which it can be reaped
(https://man7.org/linux/man-pages/man2/pidfd_open.2.html), and the pool is asked to look again at that moment.
"""

import os
from collections.abc import Callable
from contextlib import suppress
from typing import Any

__all__ = ["ExitWatch"]


class ExitWatch:
    """Has a worker's event loop watch processes, and look after the pool when one of them has ended.

    Linux only; does nothing where there is no ``pidfd``.
    """

    def __init__(self) -> None:
        self._handles: dict[int, int] = {}

    def watch(self, pid: int, loop: Any, look_after_pool: Callable[[], None]) -> None:
        """Watch one process; calling it again for the same one is cheap.

        Args:
            pid: a child of this process.
            loop: the worker's event loop, a ``kombu.asynchronous.Hub``.
            look_after_pool: called in the loop once the process has ended.
        """
        handle = self._handle_of(pid)
        # A loop forgets all that it watches when the worker connects anew.
        if handle is not None and handle not in loop.readers:
            loop.add_reader(handle, self._ended, pid, loop, look_after_pool)

    def _handle_of(self, pid: int) -> int | None:
        if pid not in self._handles and hasattr(os, "pidfd_open"):
            with suppress(OSError):
                self._handles[pid] = os.pidfd_open(pid)
        return self._handles.get(pid)

    def _ended(self, pid: int, loop: Any, look_after_pool: Callable[[], None]) -> None:
        handle = self._handles.pop(pid)
        loop.remove(handle)
        os.close(handle)
        look_after_pool()
