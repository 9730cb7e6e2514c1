"""Results and final failures, in the record or in a bucket: what is too large for the one is stored in the other."""

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
    unavailable,
    unreplayable,
)
from idempotent_tasks.core.policy import Idempotency
from idempotent_tasks.core.records import Claim, Outcome, Record, committed_record, expiration_seconds
from idempotent_tasks.core.retry import RetryingResults, RetryingStore
from idempotent_tasks.core.store import ResultStore
from idempotent_tasks.errors import (
    ConfigurationError,
    ResultEncodingError,
    ResultUnavailableError,
    StoredFailureError,
    StoreError,
)

__all__ = ["Recalled", "Results"]

#: Suffix of the codec's name where the data is in a bucket, and the record has its address.
ELSEWHERE: Final = "+s3"


@dataclass(frozen=True, slots=True)
class Recalled:
    """A result that the record lacks and the result backend has."""

    value: Any


@dataclass(frozen=True, kw_only=True)
class Results:
    """Writer and reader of the outcomes of one task's keys."""

    store: RetryingStore
    policy: Idempotency
    #: For results that are too large for the store; without one they are not stored.
    bucket: ResultStore | None = None
    #: The serializers, pickle among them, that the app reads from its broker or result backend.
    accepted: Collection[str] = ()
    #: Exceptions that are never a key's outcome, in spite of ``store_failures``.
    never_final: tuple[type[BaseException], ...] = ()

    def is_final(self, error: BaseException) -> bool:
        """Return whether an exception of the body is the key's outcome."""
        return isinstance(error, self.policy.final_errors) and not isinstance(error, self.never_final)

    def completed(self, value: Any, claim: Claim) -> Outcome:
        """Encode a body's result as an outcome that fits into the record, and upload it to the bucket if too large.

        Raises:
            ResultEncodingError: the result cannot be encoded.
        """
        codec = POWERTOOLS if self.policy.powertools else self.policy.codec
        outcome = encode_result(value, codec, interrupts=self.store.interrupts)
        return self._offloaded(outcome, claim, claim.request.retention_seconds)

    def failed(self, error: BaseException, claim: Claim) -> Outcome:
        """Encode a final failure as an outcome, as `completed` does a result."""
        outcome = encode_failure(error, self.policy.codec, interrupts=self.store.interrupts)
        return self._offloaded(outcome, claim, claim.request.retention_seconds)

    def of_step(self, name: str, value: Any) -> Outcome:
        """Encode the result of a step as an outcome; of one that cannot be encoded it has no data, and says why."""
        try:
            return encode_result(value, self.policy.codec, interrupts=self.store.interrupts, of=f"step {name!r}")
        except ResultEncodingError as error:
            return unreplayable(error.message)

    def stored_step(self, outcome: Outcome, claim: Claim) -> Outcome:
        """Return a step's outcome as its item can have it: uploaded to the bucket, or without data, if too large."""
        return self._offloaded(outcome, claim, claim.request.kept_seconds)

    def result_of_step(self, name: str, outcome: Outcome, claim: Claim) -> Any:
        """Return the result of a step.

        Raises:
            ResultUnavailableError: there is none, or it cannot be read.
            StoreError: the bucket does not answer.
        """
        return self.result(committed_record(claim, outcome, 0, 0), of=f"step {name!r}")

    def result(self, record: Record, recalled: Recalled | None = None, of: str = "") -> Any:
        """Return the result of a completed record, or ``of`` a step; ``recalled`` where it was not stored.

        Raises:
            ResultUnavailableError: there is none, or it cannot be read.
            StoreError: the bucket does not answer.
        """
        if recalled is not None and record.codec == NONE:
            return recalled.value
        whole = self._with_data(record, of)
        return decode_result(whole, accepted=self.accepted, interrupts=self.store.interrupts, of=of)

    def failure(self, record: Record) -> BaseException:
        """Return the exception of a failed record, or a `StoredFailureError` with why it cannot be rebuilt.

        Raises:
            StoreError: the bucket does not answer.
        """
        try:
            whole = self._with_data(record)
            return decode_failure(
                whole, self.policy.final_errors, never=self.never_final, interrupts=self.store.interrupts
            )
        except StoredFailureError as error:
            return error
        except ResultUnavailableError as error:
            return StoredFailureError.of(record.error, error.message, record.task, record.key)

    def replayed(self, value: Any, record: Record) -> Any:
        """Pass a result through ``on_replay``; what that raises is passed on.

        Raises:
            ConfigurationError: it returned None for another result, as a function without ``return`` does.
        """
        hook = self.policy.on_replay
        if not callable(hook):
            return value
        replayed = hook(value, record)
        if replayed is None and value is not None:
            msg = "on_replay returned None for a result that is not None; have it return the value"
            raise ConfigurationError(msg, record.task, record.key)
        return replayed

    def _offloaded(self, outcome: Outcome, claim: Claim, retention: float) -> Outcome:
        if outcome.codec.endswith(ELSEWHERE):
            return outcome
        # Powertools does not read from a bucket.
        size, bucket = size_of(outcome), None if outcome.codec == POWERTOOLS else self.bucket
        most = self.store.store.max_data_bytes - claim.parked_bytes
        fits = size <= most
        if fits and (bucket is None or bucket.above_bytes is None or size <= bucket.above_bytes):
            return outcome
        reason = f"the store takes {most}"
        if bucket is not None:
            now = self.store.clock.now()
            expires_at = expiration_seconds(retention, claim.in_progress_expiration, now)
            try:
                address = self._retrying(bucket).put(as_bytes(outcome.data or b""), expires_at)
                return replace(outcome, codec=outcome.codec + ELSEWHERE, data=address)
            except StoreError as error:
                reason = f"and its bucket failed: {error.message}"
        if fits:
            return outcome
        reason = f"the result has {size} bytes as {outcome.codec}, {reason}"
        return unreplayable(outcome.error or reason, outcome.status)

    def _with_data(self, record: Record, of: str = "") -> Record:
        """Return a record with its data, fetched from the bucket if it is stored there."""
        codec = record.codec or ""
        if not codec.endswith(ELSEWHERE):
            return record
        if self.bucket is None or not isinstance(record.data, str):
            raise unavailable(record, "its result is in a bucket; set idempotency_results_bucket here too", of)
        try:
            data = self._retrying(self.bucket).get(record.data)
        except ResultUnavailableError as error:
            raise unavailable(record, error.message, of) from error
        return replace(record, codec=codec.removesuffix(ELSEWHERE), data=data)

    def _retrying(self, bucket: ResultStore) -> RetryingResults:
        return RetryingResults(results=bucket, clock=self.store.clock, deadline=self.store.deadline)
