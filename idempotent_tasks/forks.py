"""Forks of this process, held back while a thread of it does what takes locks: a child would inherit them shut."""

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Final

__all__ = ["PATIENCE", "held"]

#: Seconds for which a fork waits at most; then the pool gets its process, whatever a thread still does.
PATIENCE: Final = 1.0


@contextmanager
def held() -> Iterator[None]:
    """Let no other thread fork this process during a block, for as long as they have `PATIENCE`."""
    with _gate().closed():
        yield


@cache
def _gate() -> "_Gate":
    return _Gate()


class _Gate:
    def __init__(self) -> None:
        self._reset()
        os.register_at_fork(before=self._wait, after_in_parent=self._go_on, after_in_child=self._reset)

    @contextmanager
    def closed(self) -> Iterator[None]:
        # By name, once: in a child that is forked inside the block it is another lock that `_reset` left.
        with self._lock:
            yield

    def _wait(self) -> None:
        self._waited = self._lock.acquire(timeout=PATIENCE)

    def _go_on(self) -> None:
        if self._waited:
            self._lock.release()

    def _reset(self) -> None:
        # A thread that forks inside its own block must not wait for itself.
        self._lock = threading.RLock()
        self._waited = False
