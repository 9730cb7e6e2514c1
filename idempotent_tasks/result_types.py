"""Register user types for results, each under a name that is stored with its values."""

from collections.abc import Callable
from importlib import import_module
from typing import Any, Final, TypeVar

from kombu.utils import json

from idempotent_tasks.errors import ConfigurationError

__all__ = ["register_type"]

T = TypeVar("T")

#: The names of the types that kombu's JSON has registered itself.
_KOMBUS: Final = frozenset({"base64", "bytes", "date", "datetime", "decimal", "time", "uuid"})
#: JSON writes these and their subclasses without looking for a registered type.
_JSONS: Final = (str, int, float, list, tuple, dict)
_LONGEST_NAME: Final = 100

_registered: Final[dict[str, type[Any]]] = {}


def register_type(
    cls: type[T], name: str, *, encode: Callable[[T], Any] | None = None, decode: Callable[[Any], T] | None = None
) -> None:
    """Register a type, so that its values in results replay as that type.

    Call it where the type is defined, so that every process does.  The type is registered with kombu's JSON
    (``kombu.utils.json.register_type``), and so with everything that Celery writes as JSON: results for the result
    backend, and arguments of the tasks that follow.

    Args:
        cls: a dataclass, a pydantic model, or any other class; values of subclasses need a registration of their own.
        name: stored with each value; keep it when the class is renamed.
        encode: returns what JSON can write of a value; without it and ``decode`` pydantic does both, which must be
            installed.
        decode: returns the value of what ``encode`` returned.

    Raises:
        ConfigurationError: the name is taken or no short printable text; JSON never asks for such a type; or nothing
            says how it is written.
    """
    _check(cls, name)
    if encode is None or decode is None:
        if encode is not decode:
            raise ConfigurationError(f"register_type({cls.__qualname__}) has one of encode= and decode=; give both")
        encode, decode = _pydantics(cls)
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
    if name in _KOMBUS or (holder is not None and _path(holder) != _path(cls)):
        raise refused(f"the name is taken by {'kombu' if holder is None else _path(holder)}")
    if issubclass(cls, _JSONS):
        raise refused(f"it is a {next(each for each in _JSONS if issubclass(cls, each)).__name__}, written as such")
    if hasattr(cls, "__json__"):
        raise refused("it has __json__(), which kombu prefers and which says nothing about the way back")
    base = next((each for each in _registered.values() if each in cls.__mro__[1:]), None)
    if base is not None:
        raise refused(f"register it before {_path(base)}, which it is derived from: kombu takes the first that fits")


def _path(cls: type[Any]) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"


def _pydantics(cls: type[T]) -> tuple[Callable[[T], Any], Callable[[Any], T]]:
    try:
        adapter: Any = import_module("pydantic").TypeAdapter(cls)
    except ImportError as error:
        remedy = "pip install 'idempotent-tasks[pydantic]'"
        msg = f"register_type({cls.__qualname__}) needs encode= and decode=, or: {remedy}"
        raise ConfigurationError(msg) from error
    except Exception as error:
        msg = f"register_type({cls.__qualname__}) needs encode= and decode=: pydantic does not know the class"
        raise ConfigurationError(msg) from error

    def encode(value: T) -> str:
        # A field that holds something else than it says would come back as something else.
        text: bytes = adapter.dump_json(value, by_alias=True, round_trip=True, warnings="error")
        return text.decode()

    return encode, adapter.validate_json
