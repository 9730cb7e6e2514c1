"""What a body leaves behind, written so that the store takes it, and read back from wherever it lies.

No Celery here: whoever can recall a result from elsewhere is given as a function.
"""

import math
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from typing import Any, Final, TypeVar

from idempotent_tasks.codec import (
    NONE,
    POWERTOOLS,
    Interrupts,
    as_bytes,
    decode_result,
    encode_result,
    size_of,
    unreplayable,
)
from idempotent_tasks.errors import (
    ConfigurationError,
    ResultUnavailableError,
    StoredFailureError,
    StoreError,
    StoreUnavailableError,
)
from idempotent_tasks.failures import decode_failure, encode_failure
from idempotent_tasks.policy import Idempotency
from idempotent_tasks.records import Claim, Outcome, Record, expiration_seconds
from idempotent_tasks.retries import persistently
from idempotent_tasks.stores import ResultStore, Store

__all__ = ["Outcomes", "Recalled"]

T = TypeVar("T")

#: Follows the name of the codec whose data lies in a bucket; the record has its address.
ELSEWHERE: Final = "+s3"
#: Seconds for which a bucket is asked again while it is unavailable.
BUCKET_PATIENCE: Final = 5.0
#: Seconds after which one try has failed, if nothing moves.
UPLOAD_SECONDS: Final = 8.0


@dataclass(frozen=True, slots=True)
class Recalled:
    """A result that the record has not, and somebody else has."""

    value: Any


@dataclass(frozen=True, kw_only=True)
class Outcomes:
    """Writes and reads the outcomes of one task's keys."""

    store: Store
    policy: Idempotency
    #: Takes what the store does not; without one such a result is not stored.
    results: ResultStore | None = None
    #: Whether the app reads pickle from its broker or result backend.
    accepts_pickle: bool = False
    #: The names of further serializers that the app reads.
    accepted: Collection[str] = ()
    #: Asks for the result of a record that has none; raises `StoreError` where the answer is not to be had for now.
    recall: Callable[[Record], Recalled | None] = lambda _: None
    #: Exceptions that something outside raises into this thread at any moment.
    interrupts: Interrupts = ()
    #: Exceptions that are never a key's outcome, whatever ``store_failures`` says.
    never_final: tuple[type[BaseException], ...] = ()
    #: Returns the seconds in which the delivery must come to an end, because this process is killed after them.
    time_left: Callable[[], float] = lambda: math.inf

    def of_result(self, value: Any, claim: Claim) -> Outcome:
        """Return a result as an outcome that the store takes; what is too large lies in the bucket before.

        Args:
            value: what the body returned.
            claim: its claim.

        Raises:
            ResultEncodingError: the result cannot be written.
        """
        codec = POWERTOOLS if self.policy.powertools else self.policy.codec
        outcome = encode_result(value, codec, interrupts=self.interrupts)
        return self._placed(outcome, claim)

    def of_failure(self, error: BaseException, claim: Claim) -> Outcome:
        """Return a final failure likewise."""
        return self._placed(encode_failure(error, interrupts=self.interrupts), claim)

    def result(self, record: Record) -> Any:
        """Return the result of a completed record.

        Args:
            record: the record.

        Raises:
            ResultUnavailableError: there is none, or it cannot be read.
            StoreError: the bucket or the result backend does not answer.
        """
        recalled = self.recall(record) if record.codec == NONE else None
        if recalled is not None:
            return recalled.value
        whole = self._whole(record)
        return decode_result(
            whole, accepts_pickle=self.accepts_pickle, accepted=self.accepted, interrupts=self.interrupts
        )

    def failure(self, record: Record) -> BaseException:
        """Return the exception of a failed record, or the `StoredFailureError` that says why it cannot be raised.

        Raises:
            StoreError: the bucket does not answer.
        """
        try:
            whole = self._whole(record)
            return decode_failure(whole, self.policy.final_errors, never=self.never_final, interrupts=self.interrupts)
        except StoredFailureError as error:
            return error
        except ResultUnavailableError as error:
            return StoredFailureError.of(record.error, error.message, record.task, record.key)

    def as_wished(self, value: Any, record: Record) -> Any:
        """Return what ``on_replay`` makes of a result; what it raises is passed on.

        Raises:
            ConfigurationError: it returned None for another result, as one does that returns nothing.
        """
        hook = self.policy.on_replay
        if not callable(hook):
            return value
        wished = hook(value, record)
        if wished is None and value is not None:
            msg = "on_replay returned None for a result that is not None; have it return the value"
            raise ConfigurationError(msg, record.task, record.key)
        return wished

    def _placed(self, outcome: Outcome, claim: Claim) -> Outcome:
        # Powertools does not look into a bucket.
        size, bucket = size_of(outcome), None if outcome.codec == POWERTOOLS else self.results
        fits = size <= self.store.max_data_bytes
        if fits and (bucket is None or bucket.above_bytes is None or size <= bucket.above_bytes):
            return outcome
        if bucket is None:
            reason = f"the result has {size} bytes as {outcome.codec}, the store takes {self.store.max_data_bytes}"
            return unreplayable(outcome.error or reason, outcome.status)
        data = as_bytes(outcome.data or b"")
        expires_at = expiration_seconds(
            claim.request.retention_seconds, claim.in_progress_expiration, self.store.clock.now()
        )
        try:
            address = self._uploaded(bucket, data, expires_at)
        except StoreError as error:
            if fits:
                return outcome
            reason = f"the result has {size} bytes as {outcome.codec}, and its bucket failed: {error.message}"
            return unreplayable(outcome.error or reason, outcome.status)
        return replace(outcome, codec=outcome.codec + ELSEWHERE, data=address)

    def _whole(self, record: Record) -> Record:
        """Return a record with its data in it."""
        if not (record.codec or "").endswith(ELSEWHERE):
            return record
        try:
            data = self._patiently(lambda: self._fetched(record.data), self.time_left())
        except ResultUnavailableError as error:
            msg = f"task {record.task_id} ran already, but {error.message}; the body does not run again"
            raise ResultUnavailableError(msg, record.task, record.key) from error
        return replace(record, codec=(record.codec or "").removesuffix(ELSEWHERE), data=data)

    def _fetched(self, address: str | bytes | None) -> bytes:
        if self.results is None or not isinstance(address, str):
            raise ResultUnavailableError("its result lies in a bucket; set idempotency_results_bucket here too")
        return self.results.get(address)

    def _uploaded(self, bucket: ResultStore, data: bytes, expires_at: float) -> str:
        # A try without an answer must leave time for the commit.
        left = self.time_left() - UPLOAD_SECONDS
        if left < 0:
            raise StoreUnavailableError("too little time is left before the hard time limit")
        return self._patiently(lambda: bucket.put(data, expires_at), left, overtime=UPLOAD_SECONDS)

    def _patiently(self, call: Callable[[], T], left: float, overtime: float = 0.0) -> T:
        """Call a bucket for a while; a call that has begun may go on for the seconds that are left, and overtime."""
        patience = min(BUCKET_PATIENCE, left)
        longest = math.inf if left == math.inf else left - patience + overtime
        return persistently(call, clock=self.store.clock, seconds=patience, overtime=longest)
