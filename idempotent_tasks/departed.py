"""Releasing what dead processes held: after they are gone, and off the worker's event loop."""

import os
import select
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from threading import Thread
from typing import Final

from idempotent_tasks import events
from idempotent_tasks.clock import SystemClock
from idempotent_tasks.errors import IdempotencyError, StoreUnavailableError
from idempotent_tasks.reception import Reception
from idempotent_tasks.records import Claim, ClaimRequest, Released
from idempotent_tasks.retries import persistently
from idempotent_tasks.settings import Settings

__all__ = ["Departed", "gone"]

#: Seconds to wait for a process that was told to end; after them its claim is left to expire by itself.
EXIT_PATIENCE: Final = 10.0
#: Seconds for which a release is tried again while the delivery waits for it to go back to its queue; afterwards the
#: release is tried on, as long as the claim may live.
RELEASE_PATIENCE: Final = 2.0
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
            A future that is done when the claim is released, or cannot be for now; it never fails.
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
    if not gone(pid, EXIT_PATIENCE):
        return
    try:
        request = reception.claim_request
    except (IdempotencyError, TypeError):
        # No key, so no claim.
        return
    free = partial(_free, reception.settings, request, reason, crashed)
    if not free(RELEASE_PATIENCE):
        # This delivery cannot wait for the store any longer, but the next one must not wait for the claim's end.
        Thread(target=free, args=(request.lease_seconds,), name="idempotency-departed-later", daemon=True).start()


def _free(settings: Settings, request: ClaimRequest, reason: str, crashed: bool, patience: float) -> bool:  # noqa: FBT001 - for Thread()
    """Release the claim that the request was granted, and return whether the store answered within the seconds."""
    store = settings.store
    claim = Claim.unseen(request)
    try:
        answer = persistently(
            lambda: store.release(claim, reason, crashed=crashed),
            clock=store.clock,
            until=store.clock.now() + patience,
        )
    except StoreUnavailableError:
        return False
    except IdempotencyError:
        # The claim expires by itself.
        return True
    if isinstance(answer, Released):
        settings.observe(events.Released.about(request, reason=reason))
    return True
