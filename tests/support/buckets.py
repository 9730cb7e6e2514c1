"""A bucket for results in this process's memory, which fails as a test plans it; the real one is a test's of S3."""

from collections.abc import Iterable, Iterator
from hashlib import sha256

from idempotent_tasks.errors import ResultUnavailableError

__all__ = ["MemoryBucket"]


class MemoryBucket:
    """A `idempotent_tasks.stores.ResultStore`.

    Args:
        above_bytes: from which size on results shall lie here.
        failures: what the next calls raise, one each; None for one that succeeds.
    """

    def __init__(self, above_bytes: int | None = None, failures: Iterable[Exception | None] = ()) -> None:
        self.above_bytes = above_bytes
        self.objects: dict[str, bytes] = {}
        #: Until when each object is wanted, in epoch seconds.
        self.expiries: dict[str, float] = {}
        #: The calls, in order.
        self.calls: list[str] = []
        self._failures: Iterator[Exception | None] = iter(failures)

    def put(self, data: bytes, expires_at: float) -> str:
        """Keep data under its digest."""
        self._take_step("put")
        address = f"s3://results/{sha256(data).hexdigest()}"
        self.objects[address] = data
        self.expiries[address] = expires_at
        return address

    def get(self, address: str) -> bytes:
        """Return it."""
        self._take_step("get")
        if address not in self.objects:
            raise ResultUnavailableError(f"its result {address} is gone")
        return self.objects[address]

    def _take_step(self, call: str) -> None:
        self.calls.append(call)
        failure = next(self._failures, None)
        if failure is not None:
            raise failure
