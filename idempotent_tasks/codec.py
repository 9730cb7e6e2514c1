"""Encode results to text or bytes under a codec's name, and decode them.

JSON as Celery writes it, or what the app's own serializer writes, so that a replay equals the result; compressed where
it is long.  A codec's name says all that a reader must know, and a reader that does not know the name refuses.
"""

import json as plain_json
import pickle
import zlib
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from typing import Any, Final

from kombu import serialization
from kombu.exceptions import DecodeError, EncodeError
from kombu.utils import json

from idempotent_tasks.errors import ResultEncodingError, ResultUnavailableError, StoredFailureError
from idempotent_tasks.powertools import result_text
from idempotent_tasks.records import Outcome, Record, Status

__all__ = [
    "CODECS",
    "COMPRESSED",
    "JSON",
    "MAX_RESULT_BYTES",
    "NONE",
    "PICKLE",
    "POWERTOOLS",
    "Interrupts",
    "as_bytes",
    "compressed",
    "decode_result",
    "encode_result",
    "is_codec",
    "loads",
    "size_of",
    "text_of",
    "unreplayable",
]

#: JSON text with kombu's tags for dates, Decimal, UUID, bytes and registered types (``kombu.utils.json``).
JSON: Final = "json"
#: Python's own format, which runs code when it is read: only where the app accepts it from its broker too.
PICKLE: Final = "pickle"
#: Plain JSON text as Powertools for AWS Lambda (Python) writes it; its own records name no codec.
POWERTOOLS: Final = "powertools"
#: No result was stored.
NONE: Final = "none"
#: Follows the name of the codec whose data was compressed (:rfc:`1950`).
COMPRESSED: Final = "+zlib"
#: The codecs of this library; a task may also name another serializer that kombu knows (``kombu.serialization``).
CODECS: Final = (JSON, PICKLE)

#: Shorter data stays as it is, in bytes: a person can read it, and it costs a unit or two.
COMPRESS_ABOVE: Final = 4096
#: The largest result that is stored, in bytes as it is before compression.  What is read stops there too, because a
#: few kilobytes can be made to inflate to all the memory that a process has.
MAX_RESULT_BYTES: Final = 32 * 1024 * 1024
_TAG: Final = {"__type__", "__value__"}
_LONGEST_TAG: Final = 100

_WRITERS: Final[Mapping[str, Callable[[Any], str | bytes]]] = {
    JSON: json.dumps,
    PICKLE: pickle.dumps,
    POWERTOOLS: result_text,
}

Interrupts = tuple[type[BaseException], ...]


def is_codec(name: object) -> bool:
    """Return whether a name is a codec: one of `CODECS`, or a serializer that kombu knows."""
    return name in CODECS or (isinstance(name, str) and name in serialization.registry.name_to_type)


def encode_result(value: Any, codec: str = JSON, *, interrupts: Interrupts = ()) -> Outcome:
    """Return a body's result as an outcome; one of more than `MAX_RESULT_BYTES` without its data.

    Args:
        value: what the body returned.
        codec: a name that `is_codec`, or `POWERTOOLS`, whose data stays as it is.
        interrupts: exceptions that something outside raises into this thread; they are no fault of the value's.

    Raises:
        ResultEncodingError: the value cannot be written so.
    """
    try:
        data = _WRITERS[codec](value) if codec in _WRITERS else _dumps_as(codec, value)
    except interrupts:
        raise
    except Exception as error:  # noqa: BLE001 - whatever the user's own types raise
        # The error's own text may quote the result.
        kind = type(value).__qualname__
        remedy = {JSON: "return JSON types, or register_type() its own", PICKLE: "have it picklable"}.get(
            codec, f"return what {codec} can write"
        )
        msg = (
            f"the body succeeded, but its result of type {kind} cannot be written as {codec.upper()} "
            f"({type(error).__name__}); {remedy}, or return None"
        )
        raise ResultEncodingError(msg) from None
    outcome = Outcome(status=Status.COMPLETED, codec=codec, data=data)
    return outcome if codec == POWERTOOLS else compressed(outcome)


def compressed(outcome: Outcome) -> Outcome:
    """Return an outcome with its data compressed where that saves bytes, and without data above `MAX_RESULT_BYTES`."""
    if outcome.data is None or size_of(outcome) <= COMPRESS_ABOVE:
        return outcome
    if size_of(outcome) > MAX_RESULT_BYTES:
        reason = f"the result has {size_of(outcome)} bytes as {outcome.codec}, at most {MAX_RESULT_BYTES} are stored"
        return unreplayable(outcome.error or reason, outcome.status)
    smaller = zlib.compress(as_bytes(outcome.data))
    if len(smaller) >= size_of(outcome):
        return outcome
    return replace(outcome, codec=outcome.codec + COMPRESSED, data=smaller)


def size_of(outcome: Outcome | Record) -> int:
    """Return how many bytes the data has."""
    return 0 if outcome.data is None else len(as_bytes(outcome.data))


def unreplayable(reason: str, status: Status = Status.COMPLETED) -> Outcome:
    """Return the outcome of a finished body whose result is not stored."""
    return Outcome(status=status, codec=NONE, data=None, error=reason)


def decode_result(
    record: Record, *, accepts_pickle: bool = False, accepted: Collection[str] = (), interrupts: Interrupts = ()
) -> Any:
    """Return the result in a completed record.

    A record without a codec's name was written by Powertools, as JSON text.

    Args:
        record: the record, with its data in it.
        accepts_pickle: whether pickle may be read, which runs code.
        accepted: the names of further serializers of kombu's that the app accepts.
        interrupts: as for `encode_result`.

    Raises:
        StoredFailureError: the record holds a failure.
        ResultUnavailableError: no result was stored, or it cannot be read.
    """
    if record.status is Status.FAILED:
        raise StoredFailureError.of(record.error, "an error is no result", record.task, record.key)
    if record.codec == NONE:
        raise _unavailable(record, record.error or "its result was not stored")
    codec = (record.codec or POWERTOOLS).removesuffix(COMPRESSED)
    _check_readable(record, codec, {*accepted, PICKLE} if accepts_pickle else accepted)
    if record.data is None and record.codec in (JSON, None):
        return None
    try:
        data = text_of(record)
        if codec == PICKLE:
            return pickle.loads(as_bytes(data))  # noqa: S301 - accepted by the app
        return _loads_as(codec, data)
    except interrupts:
        raise
    except _UnreadableError as error:
        raise _unavailable(record, f"its stored result is {error}") from None
    except Exception:  # noqa: BLE001 - the same
        raise _unavailable(record, f"its stored result is not readable {codec.upper()}") from None


def text_of(record: Record) -> str | bytes:
    """Return a record's data, decompressed.

    Raises:
        ValueError, zlib.error: it has none, it is not compressed as its codec says, or it is larger than any that this
            library stores.
    """
    if record.data is None:
        raise ValueError("no data")
    if not (record.codec or "").endswith(COMPRESSED):
        return record.data
    inflating = zlib.decompressobj()
    text = inflating.decompress(as_bytes(record.data), MAX_RESULT_BYTES + 1)
    if len(text) > MAX_RESULT_BYTES:
        msg = f"larger than the {MAX_RESULT_BYTES} bytes that are stored at most; find out who wrote it"
        raise _UnreadableError(msg)
    if not inflating.eof:
        raise zlib.error("the compressed data ends too early")
    return text


def loads(data: str | bytes) -> Any:
    """Read JSON as Celery does; raises what reading raises."""
    return json.loads(data, object_hook=_decoded_object)


def _dumps_as(codec: str, value: Any) -> str | bytes:
    try:
        data: str | bytes = serialization.dumps(value, codec)[2]
    except EncodeError as error:
        raise (error.__context__ or error) from None
    return data


def _check_readable(record: Record, codec: str, accepted: Collection[str]) -> None:
    if codec not in _WRITERS and not is_codec(codec):
        raise _unavailable(record, f"its result was stored with the unknown codec {record.codec!r}")
    if codec not in (JSON, POWERTOOLS, *accepted):
        why = f"its result was stored as {codec}, which this app does not accept; see accept_content"
        raise _unavailable(record, why)


def _loads_as(codec: str, data: str | bytes) -> Any:
    if codec == JSON:
        return loads(data)
    if codec == POWERTOOLS:
        return plain_json.loads(data)
    content_type = serialization.registry.name_to_type[codec]
    encoding = serialization.registry._encoders[codec].content_encoding  # noqa: SLF001 - else only with a message
    # As it was written: compressed text is bytes.
    data = data.decode() if isinstance(data, bytes) and encoding == "utf-8" else data
    try:
        return serialization.loads(data, content_type, encoding, accept=[content_type])
    except DecodeError as error:
        # kombu wraps whatever is raised meanwhile, an interrupt from outside too.
        raise (error.__context__ or error) from None


class _UnreadableError(ValueError):
    """Stored data cannot be read; the message says why and quotes none of it."""


def _decoded_object(found: dict[str, Any]) -> Any:
    try:
        return json.object_hook(found)
    except Exception as error:
        tag = found.get("__type__")
        if found.keys() != _TAG or not isinstance(tag, str) or len(tag) > _LONGEST_TAG:
            raise
        msg = (
            f"not readable JSON: a value of type {tag!r} cannot be made here ({type(error).__name__}); "
            "register_type() it in every process that runs the task"
        )
        raise _UnreadableError(msg) from None


def as_bytes(data: str | bytes) -> bytes:
    """Return data as the bytes that a store counts."""
    return data if isinstance(data, bytes) else data.encode()


def _unavailable(record: Record, why: str) -> ResultUnavailableError:
    msg = f"task {record.task_id or 'of another writer'} ran already, but {why}; the body does not run again"
    return ResultUnavailableError(msg, record.task, record.key)
