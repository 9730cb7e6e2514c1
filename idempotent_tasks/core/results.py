"""Results and final failures: written so that the store takes them, and read back from wherever they are stored."""

from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import Any, Final

from idempotent_tasks.core.encoding import (
    NONE,
    POWERTOOLS,
    as_bytes,
    decode_failure,
    decode_result,
    encode_failure,
    encode_result,
    size_of,
    unreplayable,
)
from idempotent_tasks.core.policy import Idempotency
from idempotent_tasks.core.records import Claim, Outcome, Record, expiration_seconds
from idempotent_tasks.core.retry import RetryingResults, RetryingStore
from idempotent_tasks.core.store import ResultStore
from idempotent_tasks.errors import ConfigurationError, ResultUnavailableError, StoredFailureError, StoreError

__all__ = ["Recalled", "Results"]

#: Follows the name of the codec whose data is stored in a bucket; the record has its address.
ELSEWHERE: Final = "+s3"


@dataclass(frozen=True, slots=True)
class Recalled:
    """A result that the record has not, and somebody else has."""

    value: Any


@dataclass(frozen=True, kw_only=True)
class Results:
    """Writes and reads the outcomes of one task's keys."""

    store: RetryingStore
    policy: Idempotency
    #: Takes what the store does not; without one such a result is not stored.
    bucket: ResultStore | None = None
    #: The serializers, pickle among them, that the app reads from its broker or result backend.
    accepted: Collection[str] = ()
    #: Exceptions that are never a key's outcome, whatever ``store_failures`` says.
    never_final: tuple[type[BaseException], ...] = ()

    def is_final(self, error: BaseException) -> bool:
        """Return whether an exception of the body is the key's outcome."""
        return isinstance(error, self.policy.final_errors) and not isinstance(error, self.never_final)

    def completed(self, value: Any, claim: Claim) -> Outcome:
        """Return a result as an outcome that the store takes; what is too large is stored in the bucket before.

        Args:
            value: what the body returned.
            claim: its claim.

        Raises:
            ResultEncodingError: the result cannot be written.
        """
        codec = POWERTOOLS if self.policy.powertools else self.policy.codec
        return self._placed(encode_result(value, codec, interrupts=self.store.interrupts), claim)

    def failed(self, error: BaseException, claim: Claim) -> Outcome:
        """Return a final failure as an outcome that the store takes, as `completed` does with a result."""
        return self._placed(encode_failure(error, interrupts=self.store.interrupts), claim)

    def result(self, record: Record, recalled: Recalled | None = None) -> Any:
        """Return the result of a completed record.

        Args:
            record: the record.
            recalled: the result, where the record has none and another has it.

        Raises:
            ResultUnavailableError: there is none, or it cannot be read.
            StoreError: the bucket does not answer.
        """
        if recalled is not None and record.codec == NONE:
            return recalled.value
        return decode_result(self._whole(record), accepted=self.accepted, interrupts=self.store.interrupts)

    def failure(self, record: Record) -> BaseException:
        """Return the exception of a failed record, or the `StoredFailureError` that says why it cannot be raised.

        Raises:
            StoreError: the bucket does not answer.
        """
        try:
            whole = self._whole(record)
            return decode_failure(
                whole, self.policy.final_errors, never=self.never_final, interrupts=self.store.interrupts
            )
        except StoredFailureError as error:
            return error
        except ResultUnavailableError as error:
            return StoredFailureError.of(record.error, error.message, record.task, record.key)

    def replayed(self, value: Any, record: Record) -> Any:
        """Return what ``on_replay`` makes of a result; what it raises is passed on.

        Raises:
            ConfigurationError: it returned None for another result, as one does that returns nothing.
        """
        hook = self.policy.on_replay
        if not callable(hook):
            return value
        replayed = hook(value, record)
        if replayed is None and value is not None:
            msg = "on_replay returned None for a result that is not None; have it return the value"
            raise ConfigurationError(msg, record.task, record.key)
        return replayed

    def _placed(self, outcome: Outcome, claim: Claim) -> Outcome:
        # Powertools does not look into a bucket.
        size, bucket = size_of(outcome), None if outcome.codec == POWERTOOLS else self.bucket
        most = self.store.store.max_data_bytes
        fits = size <= most
        if fits and (bucket is None or bucket.above_bytes is None or size <= bucket.above_bytes):
            return outcome
        if bucket is None:
            reason = f"the result has {size} bytes as {outcome.codec}, the store takes {most}"
            return unreplayable(outcome.error or reason, outcome.status)
        data = as_bytes(outcome.data or b"")
        expires_at = expiration_seconds(
            claim.request.retention_seconds, claim.in_progress_expiration, self.store.clock.now()
        )
        try:
            address = self._retrying(bucket).put(data, expires_at)
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
            data = self._fetched(record.data)
        except ResultUnavailableError as error:
            msg = f"task {record.task_id} ran already, but {error.message}; the body does not run again"
            raise ResultUnavailableError(msg, record.task, record.key) from error
        return replace(record, codec=(record.codec or "").removesuffix(ELSEWHERE), data=data)

    def _fetched(self, address: str | bytes | None) -> bytes:
        if self.bucket is None or not isinstance(address, str):
            raise ResultUnavailableError("its result lies in a bucket; set idempotency_results_bucket here too")
        return self._retrying(self.bucket).get(address)

    def _retrying(self, bucket: ResultStore) -> RetryingResults:
        return RetryingResults(results=bucket, clock=self.store.clock, deadline=self.store.deadline)
