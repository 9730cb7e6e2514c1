"""Errors of the library, all under one root.

The tree::

    IdempotencyError
    ├── ConfigurationError          an option, a URL or a setting is wrong
    ├── MissingKeyError             the key (or validated) expression selected nothing
    ├── KeyEncodingError            the selected value has no canonical form
    ├── PayloadMismatchError        one key, two different payloads
    ├── InProgressError             another delivery holds the key (on_busy="raise")
    ├── CrashLoopError              the body killed its worker too many times
    ├── UnresolvedError             a run left no outcome, and a person is to say what came of it
    ├── StepMismatchError           a step was done with other arguments
    ├── AtomicWriteError            a write of the body's transaction was refused, and nothing was written
    ├── ResultEncodingError         the body succeeded, its result cannot be stored
    ├── ResultUnavailableError      the result to replay was never stored, or is gone
    │   └── StoredFailureError      the failure to replay cannot be raised again as it was
    ├── DuplicateError              refused when published (at_publish="raise")
    └── StoreError                  the store could not answer
        ├── StoreUnavailableError   for now: network, throttling, a 5xx
        ├── StoreMisconfiguredError until an operator acts: table, schema, permission, clock
        ├── RecordCorruptError      an item that is not one of ours
        ├── RecordNotFoundError     no item has this key
        └── RecordExistsError       an item has this key already

An error names the task and the key, never an argument or a result.  All its state is in ``args``, because pickle and
Celery's JSON result backends rebuild it as ``type(*args)`` (``celery.backends.base.Backend.exception_to_python``).
"""

from collections.abc import Sequence
from typing import ClassVar, Self

__all__ = [
    "AtomicWriteError",
    "ConfigurationError",
    "CrashLoopError",
    "DuplicateError",
    "IdempotencyError",
    "InProgressError",
    "KeyEncodingError",
    "MissingKeyError",
    "PayloadMismatchError",
    "RecordCorruptError",
    "RecordExistsError",
    "RecordNotFoundError",
    "ResultEncodingError",
    "ResultUnavailableError",
    "StepMismatchError",
    "StoreError",
    "StoreMisconfiguredError",
    "StoreUnavailableError",
    "StoredFailureError",
    "UnresolvedError",
]


class IdempotencyError(Exception):
    """Something went wrong in idempotent_tasks.

    Attributes:
        message: what happened and what to do about it; by default `default_message`.
        task: the Celery task's name, or None.
        key: the record's key, or None.
    """

    #: The message of an error that is raised without one; not taken from the docstring, which ``python -OO`` removes.
    default_message: ClassVar[str] = "Something went wrong in idempotent_tasks."

    def __init__(self, message: str = "", task: str | None = None, key: str | None = None, *more: object) -> None:
        self.message = message or self.default_message
        self.task = task
        self.key = key
        super().__init__(self.message, task, key, *more)

    def __str__(self) -> str:
        where = [f"{name} {value!r}" for name, value in (("task", self.task), ("key", self.key)) if value]
        return f"{self.message} [{', '.join(where)}]" if where else self.message


class ConfigurationError(IdempotencyError):
    """An option, a store URL or a setting is wrong."""

    default_message = "An option, a store URL or a setting is wrong."


class MissingKeyError(IdempotencyError):
    """The key expression selected nothing in the arguments."""

    default_message = "The key expression selected nothing in the arguments."


class KeyEncodingError(IdempotencyError):
    """The selected key has no canonical form."""

    default_message = "The selected key has no canonical form."


class PayloadMismatchError(IdempotencyError):
    """The key was used before with a different payload."""

    default_message = "The key was used before with a different payload."


class InProgressError(IdempotencyError):
    """Another delivery with this key is running.

    Attributes:
        until: when its claim expires at the latest, in epoch seconds by the store's clock.
    """

    default_message = "Another delivery with this key is running."

    def __init__(
        self, message: str = "", task: str | None = None, key: str | None = None, until: float | None = None
    ) -> None:
        super().__init__(message, task, key, until)
        self.until = until


class CrashLoopError(IdempotencyError):
    """The body ended its worker process too many times in a row."""

    default_message = "The body ended its worker process too many times in a row."


class UnresolvedError(IdempotencyError):
    """An earlier run left no outcome, and the next one waits for a person's decision."""

    default_message = "An earlier run left no outcome, and the next one waits for a person's decision."


class StepMismatchError(IdempotencyError):
    """An earlier run of the key has done this step with other arguments.

    Attributes:
        step: its name.
    """

    default_message = "An earlier run of the key has done this step with other arguments."

    def __init__(
        self, message: str = "", task: str | None = None, key: str | None = None, step: str | None = None
    ) -> None:
        super().__init__(message, task, key, step)
        self.step = step


class AtomicWriteError(IdempotencyError):
    """A write of the body's transaction was refused; neither the writes nor the result took effect.

    Attributes:
        codes: for each write of `Atomic`, in order, DynamoDB's code, such as ``ConditionalCheckFailed``; ``None`` (a
            text) for one that was not the reason.
    """

    default_message = "A write of the body's transaction was refused; neither the writes nor the result took effect."

    def __init__(
        self, message: str = "", task: str | None = None, key: str | None = None, codes: Sequence[str] = ()
    ) -> None:
        super().__init__(message, task, key, list(codes))
        self.codes = tuple(codes)


class ResultEncodingError(IdempotencyError):
    """The body succeeded, but its result cannot be stored for replay."""

    default_message = "The body succeeded, but its result cannot be stored for replay."


class ResultUnavailableError(IdempotencyError):
    """The task already ran; its result was not stored and cannot be replayed."""

    default_message = "The task already ran; its result was not stored and cannot be replayed."


class StoredFailureError(ResultUnavailableError):
    """The key failed for good; its error cannot be raised again as it was.

    Attributes:
        original: the error's type by module and name; None if the record names none.
    """

    default_message = "The key failed for good; its error cannot be raised again as it was."

    def __init__(
        self, message: str = "", task: str | None = None, key: str | None = None, original: str | None = None
    ) -> None:
        super().__init__(message, task, key, original)
        self.original = original

    @classmethod
    def of(cls, original: str | None, why: str, task: str | None, key: str) -> Self:
        """Return the error for a record whose ``original`` cannot be raised, and ``why``."""
        msg = f"it failed for good ({original}), and the body does not run again; {why}"
        return cls(msg, task, key, original)


class DuplicateError(IdempotencyError):
    """A task with this key is already published, running or done.

    Attributes:
        task_id: the id of the task that has the key.
    """

    default_message = "A task with this key is already published, running or done."

    def __init__(
        self, message: str = "", task: str | None = None, key: str | None = None, task_id: str | None = None
    ) -> None:
        super().__init__(message, task, key, task_id)
        self.task_id = task_id


class StoreError(IdempotencyError):
    """The idempotency store could not answer."""

    default_message = "The idempotency store could not answer."


class StoreUnavailableError(StoreError):
    """The idempotency store cannot be reached for now."""

    default_message = "The idempotency store cannot be reached for now."


class StoreMisconfiguredError(StoreError):
    """The idempotency store refuses until its configuration is fixed."""

    default_message = "The idempotency store refuses until its configuration is fixed."


class RecordCorruptError(StoreError):
    """The stored item is not an idempotency record."""

    default_message = "The stored item is not an idempotency record."


class RecordNotFoundError(StoreError):
    """No record has this key."""

    default_message = "No record has this key."


class RecordExistsError(StoreError):
    """A record with this key exists already."""

    default_message = "A record with this key exists already."
