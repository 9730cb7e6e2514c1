"""One written form for each value: equal values give equal text, different ones different text.

The form survives Celery's JSON serialisation: a value and what a worker receives of it have the same form, so a
tuple is a list, an enumeration member is its value, a dataclass or pydantic model is a mapping of its fields.
"""

import base64
import dataclasses
import json
import math
from collections.abc import Callable, Mapping
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from enum import Enum
from pathlib import PurePath
from typing import Any, Final
from uuid import UUID

__all__ = ["UncanonicalError", "canonical", "fields_of"]

#: The one member of an object that stands for a value JSON has no type for: ``{"": [type, text]}``.
_TAG: Final = ""


class UncanonicalError(ValueError):
    """A value has no canonical form; the message says where and of what type, never what."""


def canonical(value: Any) -> str:
    """Return the written form of a value, as ASCII JSON.

    Raises:
        UncanonicalError: the value, or a part of it, has no canonical form.
    """
    try:
        return json.dumps(_form(value, "it"), sort_keys=True, separators=(",", ":"))
    except RecursionError:
        raise UncanonicalError("a value that is nested too deeply or contains itself") from None


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
    return _mapping(fields, path)


def _mapping(value: Mapping[Any, Any], path: str) -> Any:
    if _TAG not in value and all(type(name) is str for name in value):
        return {name: _form(each, f"{path}.{name}") for name, each in value.items()}
    pairs = [[_form(name, f"a key of {path}"), _form(each, f"{path}[…]")] for name, each in value.items()]
    return _tagged("mapping", sorted(pairs, key=_text))


def _tagged(kind: str, payload: Any) -> dict[str, Any]:
    return {_TAG: [kind, payload]}


def _text(form: Any) -> str:
    return json.dumps(form, sort_keys=True, separators=(",", ":"))


def _float(value: float, path: str) -> float:
    if not math.isfinite(value):
        raise UncanonicalError(f"a float that is not finite at {path}")
    return float(value)


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


def _datetime(value: datetime, _path: str) -> Any:
    if value.tzinfo is None:
        return _tagged("datetime", value.isoformat())
    return _tagged("instant", value.astimezone(UTC).isoformat())


def _set(value: Any, path: str) -> Any:
    return _tagged("set", sorted((_form(each, f"an element of {path}") for each in value), key=_text))


def _plain(kind: str, text: Callable[[Any], Any]) -> Callable[[Any, str], Any]:
    return lambda value, _path: _tagged(kind, text(value))


#: A type comes before those that it is a kind of.
_WRITERS: Final[tuple[tuple[type | tuple[type, ...], Callable[[Any, str], Any]], ...]] = (
    (str, lambda value, _path: str.__str__(value)),
    (int, lambda value, _path: int(value)),
    (float, _float),
    (Decimal, _decimal),
    (datetime, _datetime),
    (date, _plain("date", date.isoformat)),
    (time, _plain("time", time.isoformat)),
    (timedelta, _plain("timedelta", lambda value: [value.days, value.seconds, value.microseconds])),
    (UUID, _plain("uuid", str)),
    ((bytes, bytearray, memoryview), _plain("bytes", lambda value: base64.b64encode(value).decode())),
    (PurePath, _plain("path", str)),
    ((set, frozenset), _set),
)
