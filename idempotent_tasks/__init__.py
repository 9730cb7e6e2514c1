"""Celery tasks that take effect once: a claim in DynamoDB before the body, the stored result on redelivery.

The limit: a body that dies after its side effect and before its commit runs again, unless its task has another rule for
reruns (`Idempotency.recover`, `Idempotency.on_rerun`).
"""

from idempotent_tasks.core.atomic import Atomic
from idempotent_tasks.core.encoding import register_type
from idempotent_tasks.core.policy import Idempotency
from idempotent_tasks.core.records import Record, Status
from idempotent_tasks.core.recovery import Done, NotDone, Unknown
from idempotent_tasks.core.store import Store
from idempotent_tasks.errors import (
    AtomicWriteError,
    ConfigurationError,
    CrashLoopError,
    DuplicateError,
    IdempotencyError,
    InProgressError,
    KeyEncodingError,
    MissingKeyError,
    PayloadMismatchError,
    RecordCorruptError,
    RecordExistsError,
    RecordNotFoundError,
    ResultEncodingError,
    ResultUnavailableError,
    StepMismatchError,
    StoredFailureError,
    StoreError,
    StoreMisconfiguredError,
    StoreUnavailableError,
    UnresolvedError,
)
from idempotent_tasks.stores.dynamodb import DynamoDBStore
from idempotent_tasks.stores.memory import MemoryStore
from idempotent_tasks.stores.s3 import S3Results
from idempotent_tasks.task import IdempotentTask
from idempotent_tasks.worker import signals as _signals

__all__ = [
    "Atomic",
    "AtomicWriteError",
    "ConfigurationError",
    "CrashLoopError",
    "Done",
    "DuplicateError",
    "DynamoDBStore",
    "Idempotency",
    "IdempotencyError",
    "IdempotentTask",
    "InProgressError",
    "KeyEncodingError",
    "MemoryStore",
    "MissingKeyError",
    "NotDone",
    "PayloadMismatchError",
    "Record",
    "RecordCorruptError",
    "RecordExistsError",
    "RecordNotFoundError",
    "ResultEncodingError",
    "ResultUnavailableError",
    "S3Results",
    "Status",
    "StepMismatchError",
    "Store",
    "StoreError",
    "StoreMisconfiguredError",
    "StoreUnavailableError",
    "StoredFailureError",
    "Unknown",
    "UnresolvedError",
    "register_type",
]

del _signals
