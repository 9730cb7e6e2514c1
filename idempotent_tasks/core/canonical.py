"""Canonical JSON: equal values give equal text, different values different text.

A value and what a worker receives of it after Celery's JSON serialisation have the same form: a tuple is a list, an
enumeration member is its value, a dataclass or pydantic model is a mapping of its fields.
"""

import base64
import dataclasses
import json
import math
from collections.abc import Callable, Collection, Mapping
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from enum import Enum
from pathlib import PurePath
from typing import Any, Final
from uuid import UUID

__all__ = ["UncanonicalError", "canonical", "fields_of"]

#: The only member of an object that stands for a value JSON has no type for: ``{"": [type, text]}``.
_TAG: Final = ""
_LEAF_TYPES: Final = frozenset({str, int, float, bool, type(None)})
#: The most levels written as plain JSON: a value that contains itself has no end.
_DEEPEST: Final = 100
#: Made once, because `json.dumps` makes one per call with options. It is never given a value that contains itself.
_ENCODER: Final = json.JSONEncoder(sort_keys=True, separators=(",", ":"), allow_nan=False, check_circular=False)


class UncanonicalError(ValueError):
    """A value has no canonical form; the message gives its type and path, without keys of mappings, which are data."""


def canonical(value: Any) -> str:
    """Return the canonical form of a value, as ASCII JSON.

    Raises:
        UncanonicalError: the value, or a part of it, has no canonical form.
    """
    try:
        return _plain_text(value) or _text(_form(value, "it"))
    except RecursionError:
        raise UncanonicalError("a value that is nested too deeply or contains itself") from None
    except UncanonicalError:
        raise
    except ValueError:
        # sys.set_int_max_str_digits() limits what Python writes.
        raise UncanonicalError("a whole number with too many digits") from None


def _plain_text(value: Any) -> str | None:
    """Return the canonical form of a value if plain JSON is canonical for it, as for most; else None."""
    if not _is_plain(value):
        return None
    try:
        text = _ENCODER.encode(value)
    except (ValueError, RecursionError):
        return None
    return None if "-0.0" in text else text


def _is_plain(value: Any, levels: int = _DEEPEST) -> bool:
    """Return whether a value has only JSON's types, no mapping with the key `_TAG`, and at most ``levels`` levels."""
    kind = type(value)
    if kind in _LEAF_TYPES:
        return True
    if kind is dict:
        for name in value:
            if type(name) is not str or name == _TAG:
                return False
        value = value.values()
    elif kind is not list and kind is not tuple:
        return False
    # No call for a leaf, and no generator as for all(): this halves the cost.
    for each in value:
        if type(each) not in _LEAF_TYPES and (not levels or not _is_plain(each, levels - 1)):
            return False
    return True


def fields_of(value: Any) -> Mapping[str, Any] | None:
    """Return the fields of a dataclass instance or a pydantic model by name, None for any other value."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    dump = getattr(value, "model_dump", None)
    if callable(dump) and not isinstance(value, type):
        dumped: Mapping[str, Any] = dump()
        return dumped
    return None


def _form(value: Any, path: str) -> Any:
    if value is None or type(value) in (str, int, bool):
        return value
    if isinstance(value, Enum):
        return _form(value.value, path)
    if isinstance(value, Mapping):
        return _mapping(value, path)
    if isinstance(value, list | tuple):
        return [_form(each, f"{path}[{index}]") for index, each in enumerate(value)]
    for kind, write in _WRITERS:
        if isinstance(value, kind):
            return write(value, path)
    fields = fields_of(value)
    if fields is None:
        raise UncanonicalError(f"a {type(value).__module__}.{type(value).__qualname__} at {path}")
    # A model may hold fields that its class does not declare.
    declared = fields if dataclasses.is_dataclass(value) else getattr(type(value), "model_fields", ())
    return _mapping(fields, path, declared)


def _mapping(value: Mapping[Any, Any], path: str, declared: Collection[str] = ()) -> Any:
    # A path shows no keys of a mapping, which are data, such as a person's name, but the fields that a class declares.
    pairs = [
        [_form(name, f"a key of {path}"), _form(each, f"{path}.{name}" if name in declared else f"{path}[…]")]
        for name, each in value.items()
    ]
    names = {name for name, _ in pairs if type(name) is str}
    if len(names) == len(pairs) and _TAG not in names:
        return dict(pairs)
    return _tagged("mapping", sorted(pairs, key=_text))


def _tagged(kind: str, payload: Any) -> dict[str, Any]:
    return {_TAG: [kind, payload]}


def _text(form: Any) -> str:
    return _ENCODER.encode(form)


def _float(value: float, path: str) -> float:
    if not math.isfinite(value):
        raise UncanonicalError(f"a float that is not finite at {path}")
    # Adding 0.0 turns -0.0, which equals it, into 0.0.
    return float(value) + 0.0


def _decimal(value: Decimal, path: str) -> Any:
    if not value.is_finite():
        raise UncanonicalError(f"a Decimal that is not finite at {path}")
    # Not Decimal.normalize(), which rounds to the context's precision.
    sign, digits, exponent = value.as_tuple()
    text = "".join(map(str, digits)).lstrip("0")
    stripped = text.rstrip("0")
    if not stripped:
        return _tagged("decimal", "0")
    return _tagged("decimal", f"{'-' if sign else ''}{stripped}e{int(exponent) + len(text) - len(stripped)}")


def _datetime(value: datetime, path: str) -> Any:
    if value.utcoffset() is None:
        return _tagged("datetime", value.isoformat())
    try:
        return _tagged("instant", value.astimezone(UTC).isoformat())
    except OverflowError:
        raise UncanonicalError(f"an instant outside the years 1 to 9999 at {path}") from None


def _time(value: time, _path: str) -> Any:
    offset = value.utcoffset()
    if offset is None:
        return _tagged("time", value.isoformat())
    since_midnight = timedelta(
        hours=value.hour, minutes=value.minute, seconds=value.second, microseconds=value.microsecond
    )
    return _tagged("time", _duration(since_midnight - offset))


def _duration(value: timedelta) -> list[int]:
    return [value.days, value.seconds, value.microseconds]


def _set(value: Any, path: str) -> Any:
    return _tagged("set", sorted((_form(each, f"an element of {path}") for each in value), key=_text))


def _plain(kind: str, text: Callable[[Any], Any]) -> Callable[[Any, str], Any]:
    return lambda value, _path: _tagged(kind, text(value))


#: The first match is used, so a subclass stands before its base.
_WRITERS: Final[tuple[tuple[type | tuple[type, ...], Callable[[Any, str], Any]], ...]] = (
    (str, lambda value, _path: str.__str__(value)),
    (int, lambda value, _path: int(value)),
    (float, _float),
    (Decimal, _decimal),
    (datetime, _datetime),
    (date, _plain("date", date.isoformat)),
    (time, _time),
    (timedelta, _plain("timedelta", _duration)),
    (UUID, _plain("uuid", str)),
    ((bytes, bytearray, memoryview), _plain("bytes", lambda value: base64.b64encode(value).decode())),
    (PurePath, _plain("path", str)),
    ((set, frozenset), _set),
)
