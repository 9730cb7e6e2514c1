"""The bucket for large results: the port `idempotent_tasks.core.store.ResultStore`, with faults of its own."""

from hashlib import sha256
from typing import Final

from idempotent_tasks.errors import ResultUnavailableError, StoreUnavailableError
from simulation.faults import Faults
from simulation.process import check_alive
from simulation.scheduler import Scheduler

__all__ = ["Bucket"]

#: Seconds that a slow call takes at most: longer than a soft time limit.
SLOW_SECONDS: Final = 8
#: Seconds for which the bucket fails at most: longer than a call is tried again.
LONGEST_AWAY_SECONDS: Final = 20


class Bucket:
    """Objects in memory, each under the digest of its bytes.

    Args:
        scheduler: of the history.
        faults: what goes wrong.
        above_bytes: as in `idempotent_tasks.core.store.ResultStore`.
    """

    def __init__(self, scheduler: Scheduler, faults: Faults, above_bytes: int | None) -> None:
        self.above_bytes = above_bytes
        self.objects: dict[str, bytes] = {}
        #: Until when it fails each call, in epoch seconds.
        self.away_until = 0.0
        self._scheduler = scheduler
        self._faults = faults

    def put(self, data: bytes, expires_at: float) -> str:
        """Store data under its digest, perhaps without an answer."""
        self._wait()
        address = sha256(data).hexdigest()
        if not self._faults.happens("upload-lost"):
            self.objects[address] = data
            self._answer()
            return address
        raise StoreUnavailableError("simulated: the upload does not arrive")

    def get(self, address: str) -> bytes:
        """Return the data of an address."""
        self._wait()
        self._answer()
        if address not in self.objects:
            raise ResultUnavailableError("simulated: there is no such object")
        return self.objects[address]

    def _wait(self) -> None:
        check_alive()
        slow = self._faults.happens("bucket-slow")
        self._scheduler.sleep(self._scheduler.draw.uniform(0, SLOW_SECONDS if slow else 0.1))

    def _answer(self) -> None:
        if self._faults.happens("bucket-failed"):
            self.away_until = self._scheduler.now + self._scheduler.draw.uniform(0, LONGEST_AWAY_SECONDS)
        if self._scheduler.now <= self.away_until:
            raise StoreUnavailableError("simulated: the bucket does not answer")
