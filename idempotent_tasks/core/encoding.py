"""Encode and decode results and final failures under a codec's name, and register users' types.

JSON as Celery writes it, or the app's own serializer, so that a replay equals the result; compressed where it is long.
The codec's name is all that a reader needs; an unknown name is refused.
"""

import json as plain_json
import pickle
import zlib
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from functools import partial
from importlib import import_module
from typing import Any, Final, TypeVar

from kombu import serialization
from kombu.exceptions import DecodeError, EncodeError
from kombu.utils import json

from idempotent_tasks.core.powertools import result_text
from idempotent_tasks.core.records import Outcome, Record, Status
from idempotent_tasks.errors import (
    ConfigurationError,
    IdempotencyError,
    ResultEncodingError,
    ResultUnavailableError,
    StoredFailureError,
)

__all__ = [
    "CODECS",
    "COMPRESSED",
    "FAILURE",
    "JSON",
    "MAX_RESULT_BYTES",
    "NONE",
    "OMITTED",
    "PICKLE",
    "POWERTOOLS",
    "Interrupts",
    "as_bytes",
    "compressed",
    "decode_failure",
    "decode_result",
    "encode_failure",
    "encode_result",
    "is_codec",
    "register_type",
    "size_of",
    "text_of",
    "unavailable",
    "unreplayable",
]

T = TypeVar("T")

#: JSON text with kombu's tags for dates, Decimal, UUID, bytes and registered types (``kombu.utils.json``).
JSON: Final = "json"
#: Runs code when it is read: only where the app accepts it from its broker or result backend too.
PICKLE: Final = "pickle"
#: Plain JSON text of Powertools for AWS Lambda (Python), whose own records name no codec.
POWERTOOLS: Final = "powertools"
#: As a task's codec: store no data.  In a record: there is none because it could not be stored; ``error`` says why.
NONE: Final = "none"
#: In a record: there is no data because the task's codec is `NONE`.
OMITTED: Final = "omitted"
#: Suffix of the codec's name where the data is compressed (:rfc:`1950`).
COMPRESSED: Final = "+zlib"
#: The codecs of this library; a task may also name another serializer that kombu knows (``kombu.serialization``).
CODECS: Final = (JSON, PICKLE)

#: Bytes; shorter data stays readable for people, and costs DynamoDB a unit or two.
COMPRESS_ABOVE: Final = 4096
#: The largest stored result in bytes before compression.  Reading stops there too, because a few kilobytes can inflate
#: to all the memory of a process.
MAX_RESULT_BYTES: Final = 32 * 1024 * 1024
#: JSON text like `JSON`: ``type`` by module and name; ``args`` and ``state`` as in ``BaseException.__reduce__``.
FAILURE: Final = "failure"
#: The members of an object in which kombu's JSON writes a value of a registered type.
_TAG: Final = {"__type__", "__value__"}
#: The names that kombu's JSON registers itself.
_KOMBU_NAMES: Final = frozenset({"base64", "bytes", "date", "datetime", "decimal", "time", "uuid"})
#: JSON writes these and their subclasses without looking for a registered type.
_JSON_TYPES: Final = (str, int, float, list, tuple, dict)
#: Characters in the name of a registered type.
_LONGEST_NAME: Final = 100

_registered: Final[dict[str, type[Any]]] = {}
_WRITERS: Final[Mapping[str, Callable[[Any], str | bytes]]] = {
    JSON: json.dumps,
    PICKLE: pickle.dumps,
    POWERTOOLS: result_text,
}

Interrupts = tuple[type[BaseException], ...]


def is_codec(name: object) -> bool:
    """Return whether a name is a codec: one of `CODECS`, or a serializer that kombu knows."""
    return name in CODECS or (isinstance(name, str) and name in serialization.registry.name_to_type)


def encode_result(value: Any, codec: str = JSON, *, interrupts: Interrupts = (), of: str = "the body") -> Outcome:
    """Encode a body's result as an outcome; under `NONE`, or above `MAX_RESULT_BYTES`, it has no data.

    Args:
        value: what was returned.
        codec: a name that `is_codec`, or `NONE`, or `POWERTOOLS`, which is never compressed.
        interrupts: exceptions that are raised into this thread from outside; they are passed on.
        of: what returned it.

    Raises:
        ResultEncodingError: the codec cannot write the value.
    """
    if codec == NONE:
        return Outcome(status=Status.COMPLETED, codec=OMITTED, data=None)
    try:
        data = _WRITERS[codec](value) if codec in _WRITERS else _dumps_as(codec, value)
    except interrupts:
        raise
    except Exception as error:  # noqa: BLE001 - from the user's own types
        # The error's own text may quote the result.
        kind = type(value).__qualname__
        remedy = {JSON: "return JSON types, or register_type() its own", PICKLE: "have it picklable"}.get(
            codec, f"return what {codec} can write"
        )
        msg = (
            f"{of} succeeded, but its result of type {kind} cannot be written as {codec.upper()} "
            f"({type(error).__name__}); {remedy}, or return None"
        )
        raise ResultEncodingError(msg) from None
    outcome = Outcome(status=Status.COMPLETED, codec=codec, data=data)
    return outcome if codec == POWERTOOLS else compressed(outcome)


def compressed(outcome: Outcome) -> Outcome:
    """Compress an outcome's data where that saves bytes, and drop data above `MAX_RESULT_BYTES`."""
    size = size_of(outcome)
    if outcome.data is None or size <= COMPRESS_ABOVE:
        return outcome
    if size > MAX_RESULT_BYTES:
        reason = f"the result has {size} bytes as {outcome.codec}, at most {MAX_RESULT_BYTES} are stored"
        return unreplayable(outcome.error or reason, outcome.status)
    smaller = zlib.compress(as_bytes(outcome.data))
    return outcome if len(smaller) >= size else replace(outcome, codec=outcome.codec + COMPRESSED, data=smaller)


def size_of(outcome: Outcome | Record) -> int:
    """Return the size of the data in bytes."""
    return 0 if outcome.data is None else len(as_bytes(outcome.data))


def unreplayable(reason: str, status: Status = Status.COMPLETED) -> Outcome:
    """Return an outcome without data; ``reason`` says why it has none, or is the type of a failure."""
    return Outcome(status=status, codec=NONE, data=None, error=reason)


def decode_result(record: Record, *, accepted: Collection[str] = (), interrupts: Interrupts = (), of: str = "") -> Any:
    """Decode the result of a completed record: None if it is `OMITTED`; JSON if it names no codec, as of Powertools.

    Args:
        record: the record, with its data in it.
        accepted: the serializers of kombu that may be read beside JSON; reading `PICKLE` runs code.
        interrupts: as for `encode_result`.
        of: as for `unavailable`.

    Raises:
        StoredFailureError: the record holds a failure.
        ResultUnavailableError: no result was stored, or it cannot be read.
    """
    refused = partial(unavailable, record, of=of)
    if record.status is Status.FAILED:
        raise StoredFailureError.of(record.error, "an error is no result", record.task, record.key)
    if record.codec == NONE:
        raise refused(record.error or "its result was not stored")
    codec = (record.codec or POWERTOOLS).removesuffix(COMPRESSED)
    if codec not in (OMITTED, *_WRITERS) and not is_codec(codec):
        raise refused(f"its result was stored with the unknown codec {record.codec!r}")
    if codec not in (JSON, POWERTOOLS, OMITTED, *accepted):
        raise refused(f"its result was stored as {codec}, which this app does not accept; see accept_content")
    if record.data is None and record.codec in (JSON, OMITTED, None):
        return None
    try:
        data = text_of(record)
        if codec == PICKLE:
            return pickle.loads(as_bytes(data))  # noqa: S301 - accepted by the app
        return _loads_as(codec, data)
    except interrupts:
        raise
    except _UnreadableError as error:
        raise refused(f"its stored result is {error}") from None
    except Exception:  # noqa: BLE001 - from the user's own types
        raise refused(f"its stored result is not readable {codec.upper()}") from None


def text_of(record: Record) -> str | bytes:
    """Return a record's data, decompressed.

    Raises:
        ValueError, zlib.error: there is none, it is not compressed as its codec says, or it has more than
            `MAX_RESULT_BYTES`.
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
    """Read JSON as Celery does; raises whatever that raises."""
    return json.loads(data, object_hook=_decoded_object)


def _dumps_as(codec: str, value: Any) -> str | bytes:
    try:
        data: str | bytes = serialization.dumps(value, codec)[2]
    except EncodeError as error:
        raise (error.__context__ or error) from None
    return data


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
        # kombu wraps every exception, an interrupt from outside too.
        raise (error.__context__ or error) from None


class _UnreadableError(ValueError):
    """Stored data cannot be read; the message quotes none of it."""


def _decoded_object(found: dict[str, Any]) -> Any:
    try:
        return json.object_hook(found)
    except Exception as error:
        tag = found.get("__type__")
        if found.keys() != _TAG or not isinstance(tag, str) or len(tag) > _LONGEST_NAME:
            raise
        msg = (
            f"not readable JSON: a value of type {tag!r} cannot be made here ({type(error).__name__}); "
            "register_type() it in every process that runs the task"
        )
        raise _UnreadableError(msg) from None


def as_bytes(data: str | bytes) -> bytes:
    """Return data as the bytes that a store counts."""
    return data if isinstance(data, bytes) else data.encode()


def unavailable(record: Record, why: str, of: str = "") -> ResultUnavailableError:
    """Return the error for a record whose result cannot be replayed, and why; ``of`` a step, if it is one's."""
    msg = f"task {record.task_id or 'of another writer'} ran already, but {why}; the body does not run again"
    if of:
        msg = f"{of} was done already, but {why}; it is not done again"
    return ResultUnavailableError(msg, record.task, record.key)


def encode_failure(error: BaseException, codec: str = JSON, *, interrupts: Interrupts = ()) -> Outcome:
    """Encode a final failure as an outcome, without data where it has no JSON form.

    Args:
        error: the exception that the body raised.
        codec: of the task's results; under `NONE` only the exception's type is stored.
        interrupts: as for `encode_result`.
    """
    named = _type_name(type(error))
    if codec == NONE:
        return Outcome(status=Status.FAILED, codec=OMITTED, data=None, error=named)
    # As pickle does, but never by the type's own `__reduce__`; an OSError has more than its `args`.
    _, args, *state = _builtin(type(error)).__reduce__(error)
    try:
        data = json.dumps({"type": named, "args": list(args), "state": state[0] if state else {}})
    except interrupts:
        raise
    except Exception:  # noqa: BLE001 - from the user's own types
        return unreplayable(named, Status.FAILED)
    return compressed(Outcome(status=Status.FAILED, codec=FAILURE, data=data, error=named))


def decode_failure(
    record: Record,
    types: Sequence[type[BaseException]],
    *,
    never: tuple[type[BaseException], ...] = (),
    interrupts: Interrupts = (),
) -> BaseException:
    """Rebuild the exception of a failed record: same type, same arguments, same attributes.

    The exception's own ``__init__`` is not called, because it rarely takes ``args`` as its arguments.

    Args:
        record: the record, with its data in it.
        types: what may be raised, subclasses included; other types are named, never imported.
        never: types of exceptions, subclasses included, that are not rebuilt: raised, they would have the worker
            requeue or drop a message.  This library's own errors are never rebuilt.
        interrupts: as for `encode_result`.

    Raises:
        StoredFailureError: the record holds no failure of these types that can be read here.
    """

    def refused(why: str) -> StoredFailureError:
        return StoredFailureError.of(record.error, why, record.task, record.key)

    if record.codec == OMITTED:
        raise refused("its task stores no data (codec='none')")
    if record.codec == NONE:
        raise refused("its arguments or attributes have no JSON form, or are too large; give it others")
    if record.codec not in (FAILURE, FAILURE + COMPRESSED):
        raise refused(f"it was stored with the unknown codec {record.codec!r}")
    try:
        stored = loads(text_of(record))
        found = _find(stored["type"], types, (*never, IdempotencyError))
        if found is not None:
            return _rebuilt(found, stored["args"], stored["state"])
    except interrupts:
        raise
    except Exception:  # noqa: BLE001 - its text may quote the data
        raise refused("what is stored of it cannot be read") from None
    raise refused(
        "it is none of the task's store_failures, nor of their subclasses that this process has imported and that "
        "can be final"
    )


def _find(
    name: str, types: Sequence[type[BaseException]], never: tuple[type[BaseException], ...]
) -> type[BaseException] | None:
    waiting = list(types)
    while waiting:
        kind = waiting.pop()
        if not issubclass(kind, never):
            if _type_name(kind) == name:
                return kind
            waiting.extend(kind.__subclasses__())
    return None


def _rebuilt(kind: type[BaseException], args: list[Any], state: dict[str, Any]) -> BaseException:
    builtin = _builtin(kind)
    error: BaseException = builtin.__new__(kind, *args)
    builtin.__init__(error, *args)
    builtin.__setstate__(error, state)
    return error


def _builtin(kind: type[BaseException]) -> Any:
    """Return the built-in base of an exception type; one such as `OSError` keeps state outside ``__dict__``."""
    return next(each for each in kind.__mro__ if each.__module__ == "builtins")


def register_type(
    cls: type[T], name: str, *, encode: Callable[[T], Any] | None = None, decode: Callable[[Any], T] | None = None
) -> None:
    """Register a type, so that its values in results replay as that type.

    Call it where the type is defined, so that every process does.  The type is registered with kombu's JSON
    (``kombu.utils.json.register_type``), and so for all JSON that Celery writes: results in the result backend, and
    arguments of the tasks that follow.

    Args:
        cls: a dataclass, a pydantic model, or any other class; register subclasses separately.
        name: stored with each value, at most 100 printable characters; keep it when the class is renamed.
        encode: returns a value that JSON can write; without it and ``decode`` pydantic, which must be installed,
            does both.
        decode: rebuilds the value from what ``encode`` returned.

    Raises:
        ConfigurationError: the name is taken or not 1 to 100 printable characters; JSON has its own way to write the
            type; only one of ``encode`` and ``decode`` is given; or neither is, and pydantic is missing or does not
            know the class.
    """
    _check(cls, name)
    if encode is None or decode is None:
        if encode is not decode:
            raise ConfigurationError(f"register_type({cls.__qualname__}) has one of encode= and decode=; give both")
        encode, decode = _pydantic_codec(cls)
    write = encode

    def encode_exactly(value: T) -> Any:
        if type(value) is not cls:
            msg = f"{type(value).__qualname__} is a subclass of the registered {cls.__qualname__}; register it before"
            raise TypeError(msg)
        return write(value)

    json.register_type(cls, name, encode_exactly, decode)
    _registered[name] = cls


def _check(cls: type[Any], name: str) -> None:
    def refused(why: str) -> ConfigurationError:
        return ConfigurationError(f"register_type({getattr(cls, '__qualname__', cls)!s}, {name!r}): {why}")

    if not isinstance(cls, type):
        raise refused("it is no class")
    if not isinstance(name, str) or not name.strip() or not name.isprintable() or len(name) > _LONGEST_NAME:
        raise refused(f"the name is not 1 to {_LONGEST_NAME} printable characters")
    holder = _registered.get(name)
    if name in _KOMBU_NAMES or (holder is not None and _type_name(holder) != _type_name(cls)):
        raise refused(f"the name is taken by {'kombu' if holder is None else _type_name(holder)}")
    written_as = next((each for each in _JSON_TYPES if issubclass(cls, each)), None)
    if written_as is not None:
        raise refused(f"it is a {written_as.__name__}, written as such")
    if hasattr(cls, "__json__"):
        raise refused("it has __json__(), which kombu prefers and which does not say how to decode it")
    base = next((each for each in _registered.values() if each in cls.__mro__[1:]), None)
    if base is not None:
        raise refused(f"register it before its base {_type_name(base)}: kombu takes the first that fits")


def _type_name(cls: type[Any]) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"


def _pydantic_codec(cls: type[T]) -> tuple[Callable[[T], Any], Callable[[Any], T]]:
    try:
        adapter: Any = import_module("pydantic").TypeAdapter(cls)
    except ImportError as error:
        remedy = "pip install 'pydantic>=2.7'"
        msg = f"register_type({cls.__qualname__}) needs encode= and decode=, or: {remedy}"
        raise ConfigurationError(msg) from error
    except Exception as error:
        msg = f"register_type({cls.__qualname__}) needs encode= and decode=: pydantic does not know the class"
        raise ConfigurationError(msg) from error

    def encode(value: T) -> str:
        # A field whose value is not of its declared type would be decoded as another value.
        text: bytes = adapter.dump_json(value, by_alias=True, round_trip=True, warnings="error")
        return text.decode()

    return encode, adapter.validate_json
