"""Claim reaper: releases the claims of dead child processes and the reservations of dropped messages.

It runs in threads of a prefork pool's parent process; only `ChildExitWatcher` runs in the worker's event loop.
"""

import os
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any, Final

from idempotent_tasks.core.processes import ForkGate, Process, this_process
from idempotent_tasks.core.records import Claim, ClaimRequest, Released, reservation_owner
from idempotent_tasks.core.retry import RetryingStore
from idempotent_tasks.events import Event
from idempotent_tasks.settings import Settings

__all__ = ["ChildExitWatcher", "ClaimReaper"]

#: Seconds to wait for a process that is ending, after which its claim is left to expire.
EXIT_WAIT_SECONDS: Final = 10.0
#: Seconds for which a release is retried before the delivery goes back to its queue.
RELEASE_RETRY_SECONDS: Final = 2.0
#: Seconds before each further release while the claim may live: a process may die with its claim request under way.  A
#: claim that the store grants after all of them is left to expire.
LATER_PAUSES: Final = (1.0, 4.0, 16.0)
_THREADS: Final = 4


@dataclass(frozen=True, slots=True)
class _Release:
    """The release of a claim that a request was granted, or may have been."""

    process: Process
    settings: Settings
    request: ClaimRequest
    reason: str
    crashed: bool
    #: The keys that this release has freed.
    freed: set[str] = field(default_factory=set)

    def try_for(self, seconds: float) -> bool:
        """Try for so many seconds; return whether the claim, and that of its lock, is released."""
        # The lock first: the next delivery of the key needs both.
        for part in reversed(self.request.parts):
            if part.key not in self.freed and self._is_released(part, seconds):
                self.freed.add(part.key)
        return len(self.freed) == len(self.request.parts)

    def _is_released(self, request: ClaimRequest, seconds: float) -> bool:
        # The end of a lock is not the end of a run.
        observe = self._observe if request is self.request else lambda _: None
        store = RetryingStore(store=self.settings.store, observe=observe)
        claim = Claim.unseen(request)
        answer = store.withdraw(claim, self.reason, crashed=self.crashed, began=True, seconds=seconds)
        return isinstance(answer, Released)

    def _observe(self, event: Event) -> None:
        # At this time the worker forks the successor of the dead process.
        with self.process.own(ForkGate).closed():
            self.settings.observe(event)

    def after_the_end_of(self, pid: int) -> None:
        """Release once a process is gone; retry in a thread where the store is unavailable or has no claim yet."""
        ended = self.process.wait_for_end(pid, EXIT_WAIT_SECONDS)
        if ended and not self.try_for(RELEASE_RETRY_SECONDS):
            self.process.spawn(self._try_later, "idempotency-reaper-later")

    def _try_later(self) -> None:
        clock = self.settings.store.clock
        give_up_at = clock.monotonic() + self.request.lease_seconds
        for pause in LATER_PAUSES:
            if clock.monotonic() + pause > give_up_at:
                return
            clock.sleep(pause)
            if self.try_for(give_up_at - clock.monotonic()):
                return


class ClaimReaper:
    """Releases the claims of dead child processes, in a few threads of the worker's parent process."""

    def __init__(self) -> None:
        self._process = this_process()
        self._threads = self._process.executor(_THREADS, "idempotency-reaper")

    def release(
        self, settings: Settings, request: ClaimRequest | None, pid: int, reason: str, *, crashed: bool
    ) -> Future[None]:
        """Release a delivery's claim once the process that ran it is gone.

        Args:
            settings: of the app.
            request: the claim request of the process; None if it cannot have a claim.
            pid: of the process.
            reason: why it died, for the record.
            crashed: whether to count it as a crash of the body.

        Returns:
            A future, which never fails, for the end of the first try.
        """
        if request is None:
            return self._threads.submit(lambda: None)
        release = _Release(self._process, settings, request, reason, crashed)
        return self._threads.submit(release.after_the_end_of, pid)

    def withdraw(self, settings: Settings, request: ClaimRequest, reason: str) -> Future[bool]:
        """Release the reservation of a delivery that will never run; the future's result is whether that succeeded.

        Args:
            settings: of the app.
            request: the delivery's claim request.
            reason: why it does not run, for the record.
        """
        reserved = replace(request.parts[-1], owner=reservation_owner(request.task_id))
        release = _Release(self._process, settings, reserved, reason, crashed=True)
        return self._threads.submit(release.try_for, RELEASE_RETRY_SECONDS)


class ChildExitWatcher:
    """Lets a prefork pool notice at once that a child has ended, where Celery may take 5 s.

    Celery watches a pipe, which the kernel closes a moment before the process can be reaped.  Celery then finds a live
    process, stops watching, and looks again with its 5 s timer
    (``celery.concurrency.asynpool.AsynPool._event_process_exit``).  A ``pidfd`` becomes readable once the process can
    be reaped (https://man7.org/linux/man-pages/man2/pidfd_open.2.html).

    Linux only; does nothing without ``pidfd_open``.
    """

    def __init__(self) -> None:
        self._handles: dict[int, int] = {}

    def watch(self, pid: int, loop: Any, look_after_pool: Callable[[], None]) -> None:
        """Watch one process; cheap to call again for the same one.

        Args:
            pid: a child of this process.
            loop: the worker's event loop, a ``kombu.asynchronous.Hub``.
            look_after_pool: called in the loop once the process has ended.
        """
        handle = self._handle_of(pid)
        # A loop loses its readers when the worker reconnects.
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
