"""Releasing what dead processes held, after they are gone, and what dropped messages had reserved.

All of it off the worker's event loop, from the parent process of a prefork pool; and the watcher that has the end of a
child noticed at once.
"""

import os
from collections.abc import Callable
from concurrent.futures import Executor, Future
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any, Final

from idempotent_tasks.core.processes import ForkGate, Process, this_process
from idempotent_tasks.core.records import Claim, ClaimRequest, Released, reservation_owner
from idempotent_tasks.core.retry import RetryingStore
from idempotent_tasks.events import Event
from idempotent_tasks.settings import Settings

__all__ = ["ChildExitWatcher", "ClaimReaper"]

#: Seconds to wait for a process that was told to end; after them its claim is left to expire by itself.
EXIT_WAIT_SECONDS: Final = 10.0
#: Seconds for which a release is tried again while the delivery waits for it to go back to its queue.
RELEASE_RETRY_SECONDS: Final = 2.0
#: Seconds between further releases, which are tried for as long as the claim may live: a process may die while its
#: request for a claim is on the way.  A claim that the store grants later than all of them is left to expire by itself.
LATER_PAUSES: Final = (1.0, 4.0, 16.0)
_THREADS: Final = 4


@dataclass(frozen=True, slots=True)
class _Release:
    """The release of a claim that one request was granted, or may have been."""

    process: Process
    settings: Settings
    request: ClaimRequest
    reason: str
    crashed: bool

    def try_for(self, seconds: float) -> bool:
        """Try for so many seconds; return whether there is no more to do."""
        store = RetryingStore(store=self.settings.store, observe=self._observe)
        claim = Claim.unseen(self.request)
        answer = store.withdraw(claim, self.reason, crashed=self.crashed, began=True, seconds=seconds)
        return isinstance(answer, Released)

    def _observe(self, event: Event) -> None:
        # Just now the worker forks the successor of the dead process.
        with self.process.own(ForkGate).closed():
            self.settings.observe(event)

    def after_the_end_of(self, pid: int) -> None:
        """Release when a process is gone: at once, or later where there is no store, or no claim yet."""
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
    """Releases the claims of processes that died, from a few threads of the worker's parent process."""

    def __init__(self) -> None:
        self._process = this_process()
        self._executor: Executor | None = None

    def release(
        self, settings: Settings, request: ClaimRequest | None, pid: int, reason: str, *, crashed: bool
    ) -> Future[None]:
        """Release a delivery's claim once the process that ran it is gone.

        Args:
            settings: of the app.
            request: what the process claimed, or may have; None where it cannot have a claim.
            pid: the process.
            reason: why it died, for the record.
            crashed: whether the body is to blame, so that the crash counts.

        Returns:
            A future that is done when the claim is released, or cannot be for now; it never fails.
        """
        if request is None:
            return self._threads.submit(lambda: None)
        release = _Release(self._process, settings, request, reason, crashed)
        return self._threads.submit(release.after_the_end_of, pid)

    def withdraw(self, settings: Settings, request: ClaimRequest, reason: str) -> Future[bool]:
        """Free a key that is reserved for a delivery that will never run.

        Args:
            settings: of the app.
            request: the delivery's own.
            reason: why it does not run, for the record.
        """
        reserved = replace(request, owner=reservation_owner(request.task_id))
        release = _Release(self._process, settings, reserved, reason, crashed=True)
        return self._threads.submit(release.try_for, RELEASE_RETRY_SECONDS)

    @property
    def _threads(self) -> Executor:
        if self._executor is None:
            self._executor = self._process.executor(_THREADS, "idempotency-reaper")
        return self._executor


class ChildExitWatcher:
    """Has a worker's event loop notice at once that a child has ended, where Celery may notice it only seconds later.

    Celery watches a pipe that closes when a process ends.  The kernel closes it a moment before the process can be
    reaped; Celery then finds a process that lives, watches no longer, and looks again when a timer comes round, every
    5 s (``celery.concurrency.asynpool.AsynPool._event_process_exit``).  A ``pidfd`` tells the moment at which it can be
    reaped (https://man7.org/linux/man-pages/man2/pidfd_open.2.html), and the pool is asked to look again then.

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
