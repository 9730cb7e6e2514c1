"""Releasing what dead processes held, after they are gone, and what dropped messages had reserved.

All of it off the worker's event loop.
"""

import os
import select
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from threading import Thread
from typing import Final

from idempotent_tasks import events, forks
from idempotent_tasks.clock import SystemClock
from idempotent_tasks.errors import StoreError
from idempotent_tasks.handler import Reception
from idempotent_tasks.records import Claim, ClaimRequest, Released
from idempotent_tasks.reservation import reservation_owner
from idempotent_tasks.retries import persistently
from idempotent_tasks.settings import Settings

__all__ = ["Departed", "gone"]

#: Seconds to wait for a process that was told to end; after them its claim is left to expire by itself.
EXIT_PATIENCE: Final = 10.0
#: Seconds for which a release is tried again while the delivery waits for it to go back to its queue.
RELEASE_PATIENCE: Final = 2.0
#: Seconds between further releases, which are tried for as long as the claim may live: a process may die while its
#: request for a claim is on the way.  A claim that the store grants later than all of them is left to expire by itself.
LATER_PAUSES: Final = (1.0, 4.0, 16.0)
_POLL_SECONDS: Final = 0.05
_THREADS: Final = 4


@dataclass(frozen=True, slots=True)
class _Freeing:
    """Releases the claim that one request was granted, or may have been."""

    settings: Settings
    request: ClaimRequest
    reason: str
    crashed: bool

    def __call__(self, patience: float) -> bool:
        """Try for so many seconds; return whether there is no more to do."""
        store = self.settings.store
        claim = Claim.unseen(self.request)
        try:
            answer = persistently(
                lambda: store.release(claim, self.reason, crashed=self.crashed),
                clock=store.clock,
                seconds=patience,
                retried=StoreError,
            )
        except StoreError:
            return False
        if not isinstance(answer, Released):
            return False
        # Just now the worker forks the successor of the dead process.
        with forks.held():
            self.settings.observe(events.Released.about(self.request, reason=self.reason))
        return True


class Departed:
    """Releases the claims of processes that died, from a few threads of the worker's parent process."""

    def __init__(self) -> None:
        self._threads: ThreadPoolExecutor | None = None

    def release(self, reception: Reception, pid: int, reason: str, *, crashed: bool) -> Future[None]:
        """Release a delivery's claim once the process that ran it is gone.

        Args:
            reception: the delivery that the process was given.
            pid: the process.
            reason: why it died, for the record.
            crashed: whether the body is to blame, so that the crash counts.

        Returns:
            A future that is done when the claim is released, or cannot be for now; it never fails.
        """
        free = _freeing(reception, reason, crashed=crashed)
        return self._pool().submit(_release, pid, free)

    def withdraw(self, reception: Reception, reason: str) -> Future[bool] | None:
        """Free a key that is reserved for a delivery that will never run; None where it has no key.

        Args:
            reception: the delivery.
            reason: why it does not run, for the record.
        """
        free = _freeing(reception, reason, crashed=True)
        if free is None:
            return None
        reserved = replace(free.request, owner=reservation_owner(free.request.task_id))
        return self._pool().submit(replace(free, request=reserved), RELEASE_PATIENCE)

    def _pool(self) -> ThreadPoolExecutor:
        if self._threads is None:
            self._threads = ThreadPoolExecutor(_THREADS, "idempotency-departed")
        return self._threads


def gone(pid: int, seconds: float) -> bool:
    """Wait up to so many seconds for a process to end, and return whether it did.

    A zombie counts as gone: it runs nothing any more.
    """
    if not hasattr(os, "pidfd_open"):
        return _gone_by_polling(pid, seconds)
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


def _gone_by_polling(pid: int, seconds: float) -> bool:
    clock = SystemClock()
    give_up_at = clock.monotonic() + seconds
    while clock.monotonic() < give_up_at:
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return True
        clock.sleep(_POLL_SECONDS)
    return False


def _freeing(reception: Reception, reason: str, *, crashed: bool) -> _Freeing | None:
    """Return what releases the delivery's claim; None where it cannot have one.

    Called where the worker forks, not in a thread beside it: working out a key may import modules, and a child that is
    forked meanwhile waits for ever for the lock of a module that another thread was importing.
    """
    try:
        request = reception.claim_request
    except Exception:  # noqa: BLE001 - whatever it is, the key's own code raised it in the child too
        return None
    return _Freeing(reception.settings, request, reason, crashed)


def _release(pid: int, free: _Freeing | None) -> None:
    if free is None or not gone(pid, EXIT_PATIENCE) or free(RELEASE_PATIENCE):
        return
    Thread(target=_free_later, args=(free,), name="idempotency-departed-later", daemon=True).start()


def _free_later(free: _Freeing) -> None:
    """Release what could not be released at once, because there was no store, or no claim yet."""
    clock = free.settings.store.clock
    give_up_at = clock.monotonic() + free.request.lease_seconds
    for pause in LATER_PAUSES:
        if clock.monotonic() + pause > give_up_at:
            return
        clock.sleep(pause)
        if free(give_up_at - clock.monotonic()):
            return
