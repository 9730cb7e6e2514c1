"""Encode a task's final failure, and rebuild the same exception from it; no type is imported by a stored name."""

from collections.abc import Sequence
from typing import Any, Final

from kombu.utils import json

from idempotent_tasks.codec import COMPRESSED, NONE, Interrupts, compressed, loads, text_of, unreplayable
from idempotent_tasks.errors import IdempotencyError, StoredFailureError
from idempotent_tasks.records import Outcome, Record, Status

__all__ = ["FAILURE", "decode_failure", "encode_failure"]

#: JSON text, as a result's: ``type`` by module and name; ``args`` and ``state`` as in ``BaseException.__reduce__``.
FAILURE: Final = "failure"


def encode_failure(error: BaseException, *, interrupts: Interrupts = ()) -> Outcome:
    """Encode an exception as the outcome of its key, without data where it has no JSON form.

    Args:
        error: the final failure that the body raised.
        interrupts: exceptions that something outside raises into this thread.
    """
    named = _name(type(error))
    # As pickle would, but without the type's own `__reduce__`; an OSError has more than its `args`.
    _, args, *state = _builtin(type(error)).__reduce__(error)
    try:
        data = json.dumps({"type": named, "args": list(args), "state": state[0] if state else {}})
    except interrupts:
        raise
    except Exception:  # noqa: BLE001 - whatever the forms of its arguments raise: it has none
        return unreplayable(named, Status.FAILED)
    return compressed(Outcome(status=Status.FAILED, codec=FAILURE, data=data, error=named))


def decode_failure(
    record: Record,
    types: Sequence[type[BaseException]],
    *,
    never: tuple[type[BaseException], ...] = (),
    interrupts: Interrupts = (),
) -> BaseException:
    """Rebuild the exception in a failed record: same type, same arguments, same attributes.

    The exception's own initialiser is not called, because it takes other arguments than ``args`` as a rule.

    Args:
        record: the record, with its data in it.
        types: what may be raised, subclasses included; other types are named, never imported.
        never: what may not be raised although it is of these types, subclasses included: exceptions that tell a worker
            what to do with a message, which a record must not decide.  This library's errors never are raised.
        interrupts: as for `encode_failure`.

    Raises:
        StoredFailureError: the record holds no failure of these types that can be read here.
    """

    def refused(why: str) -> StoredFailureError:
        return StoredFailureError.of(record.error, why, record.task, record.key)

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
    except Exception:  # noqa: BLE001 - its text may quote what is stored
        raise refused("what is stored of it cannot be read") from None
    raise refused(
        "it is none of the task's store_failures, nor of their subclasses that this process has imported and that "
        "can be final"
    )


def _name(kind: type[BaseException]) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"


def _find(
    name: str, types: Sequence[type[BaseException]], never: tuple[type[BaseException], ...]
) -> type[BaseException] | None:
    waiting = list(types)
    while waiting:
        kind = waiting.pop()
        # Its subclasses are none either.
        if issubclass(kind, never):
            continue
        if _name(kind) == name:
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
    """Return the built-in exception that a type is derived from, which knows what it keeps beside ``__dict__``."""
    return next(each for each in kind.__mro__ if each.__module__ == "builtins")
