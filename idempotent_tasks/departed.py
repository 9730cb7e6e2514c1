"""Releasing what dead processes held: after they are gone, and off the worker's event loop."""

import os
import select
import threading
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Final

from idempotent_tasks import events
from idempotent_tasks.clock import SystemClock
from idempotent_tasks.errors import IdempotencyError, StoreError
from idempotent_tasks.reception import Reception
from idempotent_tasks.records import Claim, Released
from idempotent_tasks.retries import persistently

__all__ = ["Departed", "gone"]

#: Seconds to wait for a process that was told to end; after them its claim is left to expire by itself.
EXIT_PATIENCE: Final = 10.0
#: Seconds for which a release is tried again; the delivery waits for it to go back to its queue.
RELEASE_PATIENCE: Final = 2.0
#: Seconds between further releases where the first found no claim: a process may die while its request for one is on
#: the way.  A claim that the store grants later than all of them is left to expire by itself.
LATE_CLAIM_PAUSES: Final = (1.0, 4.0, 16.0)
_POLL_SECONDS: Final = 0.05
_THREADS: Final = 4


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
            A future that is done when the claim is released, or cannot be; it never fails.
        """
        if self._threads is None:
            self._threads = ThreadPoolExecutor(_THREADS, "idempotency-departed")
        return self._threads.submit(_release, reception, pid, reason, crashed)


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
    give_up_at = clock.now() + seconds
    while clock.now() < give_up_at:
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return True
        clock.sleep(_POLL_SECONDS)
    return False


def _release(reception: Reception, pid: int, reason: str, crashed: bool) -> None:  # noqa: FBT001 - for submit()
    if gone(pid, EXIT_PATIENCE) and not _released(reception, reason, crashed=crashed):
        _release_later(reception, reason, LATE_CLAIM_PAUSES, crashed=crashed)


def _release_later(reception: Reception, reason: str, pauses: tuple[float, ...], *, crashed: bool) -> None:
    """Release after each pause until there is something to release; nobody waits for it, not even the exit."""
    if not pauses:
        return
    first, *others = pauses

    def release() -> None:
        if not _released(reception, reason, crashed=crashed):
            _release_later(reception, reason, tuple(others), crashed=crashed)

    timer = threading.Timer(first, release)
    timer.daemon = True
    timer.start()


def _released(reception: Reception, reason: str, *, crashed: bool) -> bool:
    """Release, and return whether that is all there is to do."""
    try:
        request = reception.claim_request
    except (IdempotencyError, TypeError):
        # No key, so no claim.
        return True
    store = reception.settings.store
    try:
        answer: Any = persistently(
            lambda: store.release(Claim.unseen(request), reason, crashed=crashed),
            clock=store.clock,
            until=store.clock.now() + RELEASE_PATIENCE,
        )
    except StoreError:
        return False
    if not isinstance(answer, Released):
        return False
    reception.settings.observe(events.Released.about(request, reason=reason))
    return True
