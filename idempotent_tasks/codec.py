"""A result to bytes under a codec's name, and back.  JSON as Celery writes it, so that a replay equals the result."""

import json as plain_json
from collections.abc import Callable, Mapping
from typing import Any, Final

from kombu.utils import json

from idempotent_tasks.errors import ResultEncodingError, ResultUnavailableError
from idempotent_tasks.powertools import result_text
from idempotent_tasks.records import Outcome, Record, Status

__all__ = ["JSON", "NONE", "POWERTOOLS", "decode_result", "encode_result", "unreplayable"]

#: JSON text with kombu's tags for dates, Decimal, UUID and bytes (``kombu.utils.json``).
JSON: Final = "json"
#: Plain JSON text as Powertools for AWS Lambda (Python) writes it; its own records name no codec.
POWERTOOLS: Final = "powertools"
#: No result was stored.
NONE: Final = "none"

_WRITERS: Final[Mapping[str, Callable[[Any], str]]] = {JSON: json.dumps, POWERTOOLS: result_text}
_READERS: Final[Mapping[str | None, Callable[[str | bytes], Any]]] = {
    JSON: json.loads,
    POWERTOOLS: plain_json.loads,
    None: plain_json.loads,
}


def encode_result(value: Any, max_data_bytes: int, codec: str = JSON) -> Outcome:
    """Return a body's result as an outcome; without data where it is larger than the store takes.

    Args:
        value: what the body returned.
        max_data_bytes: the store's limit for the encoded result, in bytes.
        codec: `JSON` or `POWERTOOLS`.

    Raises:
        ResultEncodingError: the value cannot be written as JSON.
    """
    try:
        text = _WRITERS[codec](value)
    except (TypeError, ValueError, RecursionError, AttributeError) as error:
        # The error's own text may quote the result.
        msg = (
            f"the body succeeded, but its result of type {type(value).__qualname__} cannot be written as JSON "
            f"({type(error).__name__}); return JSON types, or None"
        )
        raise ResultEncodingError(msg) from None
    size = len(text.encode())
    if size > max_data_bytes:
        return unreplayable(f"the result has {size} bytes as JSON, the store takes {max_data_bytes}")
    return Outcome(status=Status.COMPLETED, codec=codec, data=text)


def unreplayable(reason: str) -> Outcome:
    """Return the outcome of a body that succeeded with a result that is not stored."""
    return Outcome(status=Status.COMPLETED, codec=NONE, data=None, error=reason)


def decode_result(record: Record) -> Any:
    """Return the result in a completed record.

    A record without a codec's name was written by Powertools, as JSON text.

    Raises:
        ResultUnavailableError: none was stored, or it cannot be read.
    """
    if record.status is Status.FAILED:
        raise _unavailable(record, f"it failed for good ({record.error})")
    if record.codec == NONE:
        raise _unavailable(record, record.error or "its result was not stored")
    if record.codec not in _READERS:
        raise _unavailable(record, f"its result was stored with the unknown codec {record.codec!r}")
    if record.data is None:
        return None
    try:
        return _READERS[record.codec](record.data)
    except (TypeError, ValueError, KeyError, AttributeError, ArithmeticError, RecursionError):
        raise _unavailable(record, "its stored result is not readable JSON") from None


def _unavailable(record: Record, why: str) -> ResultUnavailableError:
    msg = f"task {record.task_id or 'of another writer'} ran already, but {why}; the body does not run again"
    return ResultUnavailableError(msg, record.task, record.key)
