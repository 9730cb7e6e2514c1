"""Derive a record's key, its payload's digest and the key for downstream systems from a delivery."""

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from difflib import get_close_matches
from hashlib import sha256
from typing import Any, Final
from uuid import UUID, uuid5

import jmespath
from jmespath.exceptions import JMESPathError
from jmespath.functions import Functions
from jmespath.visitor import Options, TreeInterpreter

from idempotent_tasks.core.canonical import UncanonicalError, canonical, fields_of
from idempotent_tasks.core.delivery import Delivery
from idempotent_tasks.core.expressions import ALL_ARGUMENTS, constants_of, names_read
from idempotent_tasks.core.powertools import PowertoolsFunctions, digest, prepared
from idempotent_tasks.errors import ConfigurationError, KeyEncodingError, MissingKeyError

__all__ = [
    "KeySource",
    "KnownPart",
    "Selector",
    "arguments_digest",
    "calls_of",
    "check_explicit_key",
    "check_prefix",
    "check_task_id",
    "downstream_key",
    "inputs_digest",
    "parameter_names",
    "payload_digest",
    "record_key",
    "signature_of",
    "step_key",
    "task_id_key",
]

#: A JMESPath expression over the bound arguments, a callable over the arguments, or None for the task id.
KeySource = str | Callable[..., Any] | None

#: A longer key is a payload by mistake; Stripe has the same limit (https://docs.stripe.com/api/idempotent_requests).
MAX_EXPLICIT_KEY_CHARACTERS: Final = 255
#: With the digest, a key fits into DynamoDB's 1,024 bytes of a sort key.
MAX_PREFIX_BYTES: Final = 512
#: Digested before the canonical form, so that another version of the form has other digests.
FORM_VERSION: Final = b"1:"
#: The namespace of downstream keys. Providers keep them, so it never changes: another form would need another one.
DOWNSTREAM_NAMESPACE: Final = UUID("6f0166d2-f434-41b1-b57a-e6da11cdda40")


class _Interpreter(TreeInterpreter):
    """JMESPath interpreter that also reads fields of dataclasses and pydantic models."""

    def visit(self, node: dict[str, Any], value: Any) -> Any:
        """Visit a node with a tuple as a list, which is what JSON makes of it in a message."""
        return super().visit(node, list(value) if isinstance(value, tuple) else value)

    def visit_field(self, node: dict[str, Any], value: Any) -> Any:
        """Return a field of a mapping, a dataclass or a model; None where there is no such field."""
        if isinstance(value, Mapping):
            return value.get(node["value"])
        fields = fields_of(value)
        return None if fields is None else fields.get(node["value"])


class _NothingSelectedError(Exception):
    """A part of an expression selects nothing; the message names it."""


class _UnknownError(Exception):
    """A key depends on something of a partial delivery that is not known; the message names it."""


class KnownPart(dict[str, Any]):
    """A mapping of which only some entries are known: whatever depends on another one raises.

    Args:
        known: the known entries.
        name: of the whole mapping, for messages; empty for the arguments themselves.
        unknown: the names of the others; None where there may be any.
    """

    def __init__(self, known: Mapping[str, Any], name: str, unknown: frozenset[str] | None = None) -> None:
        super().__init__(known)
        self._name = name
        self._unknown = unknown

    def get(self, key: str, default: Any = None) -> Any:
        """Return a known entry; the default for one that is known to be absent."""
        return self[key] if key in self else default  # noqa: SIM401 - this is `get`

    def mapped(self, change: Callable[[Any], Any]) -> "KnownPart":
        """Return the same with each known value changed."""
        return KnownPart({name: change(each) for name, each in super().items()}, self._name, self._unknown)

    def __missing__(self, key: str) -> Any:
        raise self._unknown_entry(key)

    def __contains__(self, key: object) -> bool:
        if super().__contains__(key):
            return True
        if self._unknown is None or key in self._unknown:
            raise self._unknown_entry(key)
        return False

    def __bool__(self) -> bool:
        return True

    def _unknown_entry(self, key: object) -> _UnknownError:
        return _UnknownError(repr(f"{self._name}.{key}" if self._name else key))

    def _whole(self, *_: Any) -> Any:
        names = ", ".join(map(repr, sorted(self._unknown or ())))
        raise _UnknownError(f"the whole of {self._name!r}" if self._name else names)

    __eq__ = __iter__ = __len__ = copy = items = keys = values = _whole
    __hash__ = None


class _StrictInterpreter(_Interpreter):
    """JMESPath interpreter that refuses null as a part of a compound value.

    JMESPath yields null for what is absent.  Different calls whose parts are null would share one key, so a null part
    is an error: a member of a list or mapping, an argument of a function, a selection from an element.  ``||`` and
    ``not_null()`` give a default for a part that may be absent.  Conditions of filters only choose, so they may be
    null.
    """

    def visit(self, node: dict[str, Any], value: Any) -> Any:
        """Visit a node; return a selected tuple as a list."""
        found = super().visit(node, value)
        return list(found) if isinstance(found, tuple) else found

    def visit_multi_select_list(self, node: dict[str, Any], value: Any) -> Any:
        """Return the selected parts; None if the value is null."""
        parts = super().visit_multi_select_list(node, value)
        for number, part in enumerate(parts or (), 1):
            _require(part, f"part {number} of a list")
        return parts

    def visit_multi_select_dict(self, node: dict[str, Any], value: Any) -> Any:
        """Return the selected parts by name; None if the value is null."""
        parts = super().visit_multi_select_dict(node, value)
        for name, part in (parts or {}).items():
            _require(part, f"part {name!r}")
        return parts

    def visit_function_expression(self, node: dict[str, Any], value: Any) -> Any:
        """Call a function; only ``not_null()`` takes null."""
        name, given = node["value"], [self.visit(child, value) for child in node["children"]]
        if name == "not_null":
            return self._functions.call_function(name, given)
        for number, argument in enumerate(given, 1):
            _require(argument, f"argument {number} of {name}()")
        result = self._functions.call_function(name, given)
        for each in result if name == "map" else ():
            _require(each, "an element in map()")
        return result

    def visit_projection(self, node: dict[str, Any], value: Any) -> Any:
        """Select from each element of a list; None for any other value."""
        elements = self.visit(node["children"][0], value)
        return self._of_each(node["children"][1], elements) if isinstance(elements, list) else None

    def visit_value_projection(self, node: dict[str, Any], value: Any) -> Any:
        """Select from each value of a mapping; None for any other value."""
        whole = self.visit(node["children"][0], value)
        return self._of_each(node["children"][1], whole.values()) if isinstance(whole, Mapping) else None

    def visit_filter_projection(self, node: dict[str, Any], value: Any) -> Any:
        """Select from each element of a list that meets a condition; None if none does."""
        base, selected, condition = node["children"]
        elements = self.visit(base, value)
        if not isinstance(elements, list):
            return None
        chosen = [each for each in elements if self._is_true(_OF_CONDITIONS.visit(condition, each))]
        return self._of_each(selected, chosen) or None

    def _of_each(self, selected: dict[str, Any], elements: Iterable[Any]) -> list[Any]:
        found = []
        for element in elements:
            # JMESPath leaves out elements that are null themselves.
            if element is not None:
                part = self.visit(selected, element)
                _require(part, "an element of a projection")
                found.append(part)
        return found


#: They keep nothing of what they visit, so all threads share them.
_STRICT: Final = _StrictInterpreter()
_OF_CONDITIONS: Final = _Interpreter()
_OF_POWERTOOLS: Final = _Interpreter(Options(custom_functions=PowertoolsFunctions()))


@dataclass(frozen=True)
class Selector:
    """A compiled key source: a JMESPath expression, or a callable."""

    #: The option's name and the source, for messages.
    option: str
    text: str
    #: The hash function of Powertools for AWS Lambda, where values are selected and digested as there.
    powertools_hash: str | None = None
    _parsed: Any = None
    _call: Callable[..., Any] | None = None

    @property
    def identity(self) -> str:
        """The expression, or the callable's ``module:name``: equal in all processes and versions that select alike."""
        return self.text if self._call is None else f"{getattr(self._call, '__module__', '')}:{self.text}"

    @property
    def distinction(self) -> list[Any] | Callable[..., Any]:
        """What keeps the source's values apart from another source's, unlike the arguments, which may be equal.

        The constants in the expression, such as ``'charge'``; or the callable, since what it returns is not known.
        """
        return constants_of(self._parsed) if self._call is None else self._call

    @classmethod
    def of(cls, option: str, source: str | Callable[..., Any], powertools_hash: str | None = None) -> "Selector":
        """Compile a key source.

        Raises:
            ConfigurationError: the expression does not parse, or the source is neither text nor callable.
        """
        if callable(source):
            return cls(option, getattr(source, "__qualname__", repr(source)), powertools_hash, _call=source)
        if not isinstance(source, str):
            raise ConfigurationError(f"{option}={source!r} is neither a JMESPath expression nor a callable")
        try:
            parsed = jmespath.compile(source).parsed
        except JMESPathError as error:
            raise ConfigurationError(f"{option}={source!r} is not a JMESPath expression: {error}") from error
        functions = PowertoolsFunctions if powertools_hash else Functions
        unknown = sorted(_functions_in(parsed) - functions.FUNCTION_TABLE.keys())
        if unknown:
            raise ConfigurationError(f"{option}={source!r} calls {unknown}, which JMESPath does not have")
        return cls(option, source, powertools_hash, _parsed=parsed)

    def select(self, delivery: Delivery, signature: inspect.Signature, *, required: bool = True) -> Any:
        """Return the value that the source selects from a delivery's arguments.

        Raises:
            MissingKeyError: it selects nothing, and something is required; or a part of it selects nothing, unless it
                selects as Powertools does.
            KeyEncodingError: it cannot be applied to these arguments.
            TypeError: the arguments do not fit the task's signature; calling the body would raise it too.
        """
        try:
            if self._call is not None:
                _require_all(signature, delivery)
                value = self._called(self._call, delivery)
            else:
                value = self._search(delivery, _bound(signature, delivery))
        except _NothingSelectedError as nothing:
            raise self._missing(delivery, signature, f" for {nothing}") from None
        if required and _is_missing(value):
            raise self._missing(delivery, signature)
        return value

    def misfit(self, body: inspect.Signature) -> str | None:
        """Return why the source cannot select from a body's arguments; None if it can, or if that cannot be known.

        Args:
            body: the body's signature, without ``self``.
        """
        if self._call is not None:
            return self._untaken(self._call, body)
        unknown = sorted(names_read(self._parsed) - {ALL_ARGUMENTS} - body.parameters.keys())
        if not unknown:
            return None
        what = f"{self.option}={self.text!r} reads {unknown[0]!r}, which is no parameter of the body"
        return f"{what}; {_hint(unknown[0], body)}"

    def reads_nothing(self, body: inspect.Signature) -> bool:
        """Return whether the source reads no argument of a body, which then has one key for all calls.

        Args:
            body: the body's signature, without ``self``.
        """
        if not body.parameters:
            return True
        if self._call is None:
            return not names_read(self._parsed)
        taken = signature_of(self._call)
        return taken is not None and not taken.parameters

    def _untaken(self, call: Callable[..., Any], body: inspect.Signature) -> str | None:
        taken = signature_of(call)
        if taken is None or _takes(taken, body):
            return None
        return (
            f"{self.option}={self.text} takes {parameter_names(taken)} and is called with the arguments of the body, "
            f"{parameter_names(body)}; give it the same parameters, or **_ for those that it does not need"
        )

    def _missing(self, delivery: Delivery, signature: inspect.Signature, part: str = "") -> MissingKeyError:
        optional = "" if not part else "; where it may be absent, say what stands for it, as in number || 'none'"
        msg = (
            f"{self.option}={self.text!r} selects nothing{part} in the arguments {sorted(signature.parameters)}"
            f'{optional}; fix the expression or the call, or set missing_key="run" to run such calls unguarded'
        )
        return MissingKeyError(msg, delivery.task)

    def _called(self, call: Callable[..., Any], delivery: Delivery) -> Any:
        value = call(*delivery.args, **delivery.kwargs)
        if self.powertools_hash:
            return prepared(value)
        # An argument that the callable returns as it is is data, which may contain None.
        if not any(value is each for each in (*delivery.args, *delivery.kwargs.values())):
            parts = value.values() if isinstance(value, Mapping) else value if isinstance(value, list | tuple) else ()
            for number, part in enumerate(parts, 1):
                _require(part, f"part {number} of what it returns")
        return value

    def _search(self, delivery: Delivery, arguments: dict[str, Any]) -> Any:
        interpreter: _Interpreter = _STRICT
        if self.powertools_hash:
            if isinstance(arguments, KnownPart):
                arguments = arguments.mapped(prepared)
            else:
                arguments = {name: prepared(each) for name, each in arguments.items()}
            interpreter = _OF_POWERTOOLS
        try:
            return interpreter.visit(self._parsed, arguments)
        except (JMESPathError, ValueError) as error:
            msg = f"{self.option}={self.text!r} cannot be applied to the arguments ({type(error).__name__})"
            # JMESPath's own message quotes the arguments.
            raise KeyEncodingError(msg, delivery.task) from None


def record_key(delivery: Delivery, prefix: str, selector: Selector | None, signature: inspect.Signature) -> str:
    """Return the record's key, ``{prefix}#{task id or digest}``.

    From the key given with the call, else the selector, else the task id; equal values from any of them give equal
    keys.

    Raises:
        MissingKeyError: the explicit key is empty, or the selector or a part of it selects nothing, or needs what is
            not known of a partial delivery.
        KeyEncodingError: the explicit key is not 1 to 255 printable characters, or the selected value has no canonical
            form.
        TypeError: the arguments do not fit the task's signature.
    """
    if delivery.explicit_key is not None:
        value: Any = check_explicit_key(delivery.explicit_key, delivery.task)
    elif selector is not None:
        try:
            return f"{prefix}#{_digest(selector.select(delivery, signature), selector, delivery)}"
        except _UnknownError as unknown:
            msg = f"{selector.option}={selector.text!r} needs {unknown}, which is not given"
            raise MissingKeyError(msg, delivery.task) from None
    else:
        return task_id_key(delivery, prefix)
    return f"{prefix}#{_digest(value, selector, delivery)}"


def task_id_key(delivery: Delivery, prefix: str) -> str:
    """Return the key of a delivery whose key is its task id."""
    task_id = delivery.task_id
    is_short = task_id.isprintable() and len(task_id) <= MAX_EXPLICIT_KEY_CHARACTERS
    return f"{prefix}#{task_id if is_short else _digest(task_id, None, delivery)}"


def arguments_digest(delivery: Delivery, signature: inspect.Signature) -> str:
    """Return the digest of all of a delivery's arguments; raises as `record_key` does."""
    try:
        return _digest(_bound(signature, delivery), None, delivery)
    except KeyEncodingError:
        msg = (
            "a member of a group or chord has an idempotency_key, and its arguments, which have no canonical form, "
            "cannot be compared with those of the other members; name with validate= what must not differ"
        )
        raise KeyEncodingError(msg, delivery.task) from None


def payload_digest(delivery: Delivery, selector: Selector, signature: inspect.Signature) -> str:
    """Return the digest of the validated part of the payload; raises as `record_key` does."""
    # Powertools digests an empty selection like any other.
    selected = selector.select(delivery, signature, required=selector.powertools_hash is None)
    return _digest(selected, selector, delivery)


def downstream_key(delivery: Delivery, selector: Selector, signature: inspect.Signature) -> str:
    """Return the key for downstream systems: a UUID of version 5 (:rfc:`9562`), made of the selected value alone.

    Its name is the value's canonical form.  Whatever renames or re-keys the task, equal values give equal keys.

    Raises:
        MissingKeyError, KeyEncodingError, TypeError: as `record_key`.
    """
    # SHA-1 is no weaker here than another digest: about 2**61 tries find two values that share any 122 bits.
    return str(uuid5(DOWNSTREAM_NAMESPACE, _canonical(selector.select(delivery, signature), selector, delivery)))


def inputs_digest(args: Sequence[Any], kwargs: Mapping[str, Any]) -> str:
    """Return the digest of a step's arguments: 32 hexadecimal digits of the SHA-256 of their canonical form.

    Raises:
        UncanonicalError: one of them has none.
    """
    return sha256(canonical([list(args), dict(kwargs)]).encode()).hexdigest()[:32]


def step_key(downstream: str, name: str) -> str:
    """Return the key for downstream systems of one step: a UUID of version 5 (:rfc:`9562`).

    Args:
        downstream: the key for downstream systems of the whole body.
        name: of the step.
    """
    return str(uuid5(uuid5(DOWNSTREAM_NAMESPACE, f"steps of {downstream}"), name))


def check_explicit_key(key: object, task: str) -> str:
    """Validate a key given with a call: 1 to 255 printable characters.  Return it.

    Raises:
        MissingKeyError: it is empty.
        KeyEncodingError: it is anything else.
    """
    remedy = "pass the identifier of what must happen once, such as an order number"
    if not isinstance(key, str):
        raise KeyEncodingError(f"idempotency_key is a {type(key).__name__}, not text; {remedy}", task)
    if not key.strip():
        raise MissingKeyError(f"idempotency_key is empty; {remedy}", task)
    if len(key) > MAX_EXPLICIT_KEY_CHARACTERS:
        limit = f"at most {MAX_EXPLICIT_KEY_CHARACTERS}"
        raise KeyEncodingError(f"idempotency_key has {len(key)} characters, {limit} are allowed; {remedy}", task)
    if not key.isprintable():
        raise KeyEncodingError(f"idempotency_key has control or other unprintable characters; {remedy}", task)
    return key


def check_task_id(task_id: str, task: str) -> str:
    """Validate that a task id can be encoded in UTF-8, as stores and brokers need.  Return it.

    Raises:
        KeyEncodingError: it cannot, because it has half of a surrogate pair, which JSON can carry (:rfc:`8259`,
            section 8.2).
    """
    try:
        str(task_id).encode()
    except UnicodeEncodeError:
        msg = "the task id has half of a surrogate pair, which cannot be stored; publish the task with another id"
        raise KeyEncodingError(msg, task) from None
    return task_id


def check_prefix(prefix: str) -> str:
    """Validate a key prefix: printable text of at most 512 bytes.  Return it.

    Raises:
        ConfigurationError: it is not.
    """
    if not isinstance(prefix, str) or not prefix.strip() or not prefix.isprintable():
        raise ConfigurationError(f"prefix={prefix!r} is not printable text")
    if len(prefix.encode()) > MAX_PREFIX_BYTES:
        raise ConfigurationError(f"prefix={prefix[:40]!r}… is longer than {MAX_PREFIX_BYTES} bytes; set a shorter one")
    return prefix


def _functions_in(node: dict[str, Any]) -> set[str]:
    children = (child for child in node.get("children", ()) if isinstance(child, dict))
    own = {str(node["value"])} if node["type"] == "function_expression" else set()
    return own.union(*map(_functions_in, children))


def _hint(name: str, body: inspect.Signature) -> str:
    close = get_close_matches(name, body.parameters, n=1)
    if close:
        return f"did you mean {close[0]!r}?"
    collecting = [each.name for each in body.parameters.values() if each.kind is inspect.Parameter.VAR_KEYWORD]
    if collecting:
        return f"what **{collecting[0]} collects is read as {collecting[0]}.{name}"
    return f"it takes {parameter_names(body)}"


def parameter_names(signature: inspect.Signature) -> str:
    """Return the names of parameters, without their defaults, which may be secrets."""
    return f"({', '.join(signature.parameters)})"


def signature_of(call: Callable[..., Any]) -> inspect.Signature | None:
    """Return a callable's signature; None for a builtin that has none."""
    try:
        return inspect.signature(call)
    except (TypeError, ValueError):
        return None


def _takes(callee: inspect.Signature, body: inspect.Signature) -> bool:
    """Return whether a callable takes all arguments of a body, by position or by name."""
    # What *args and **kwargs collect may be what the callable needs besides.
    bind = callee.bind if len(_named(body)) == len(body.parameters) else callee.bind_partial
    for args, kwargs in calls_of(body):
        with suppress(TypeError):
            bind(*args, **kwargs)
            return True
    return False


def calls_of(body: inspect.Signature) -> Iterator[tuple[list[str], dict[str, str]]]:
    """Yield the calls of a body: all that can be by position, then all that can be by name; each argument is its name.

    What ``*args`` and ``**kwargs`` collect is not in them.
    """
    kinds, named = inspect.Parameter, _named(body)
    for by_position in ((kinds.POSITIONAL_ONLY, kinds.POSITIONAL_OR_KEYWORD), (kinds.POSITIONAL_ONLY,)):
        args = [each.name for each in named if each.kind in by_position]
        yield args, {each.name: each.name for each in named if each.kind not in by_position}


def _named(body: inspect.Signature) -> list[inspect.Parameter]:
    collecting = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return [each for each in body.parameters.values() if each.kind not in collecting]


def _bound(signature: inspect.Signature, delivery: Delivery) -> dict[str, Any]:
    if not delivery.partial:
        bound = signature.bind(*delivery.args, **delivery.kwargs)
        bound.apply_defaults()
        return bound.arguments
    bound = signature.bind_partial(*delivery.args, **delivery.kwargs)
    bound.apply_defaults()
    unknown = signature.parameters.keys() - bound.arguments.keys()
    return KnownPart(bound.arguments, "", frozenset(unknown)) if unknown else bound.arguments


def _require_all(signature: inspect.Signature, delivery: Delivery) -> None:
    """Raise for a partial delivery without a required argument: what a callable does without it, nobody knows."""
    if delivery.partial and isinstance(arguments := _bound(signature, delivery), KnownPart):
        len(arguments)


def _require(part: Any, which: str) -> None:
    if part is None:
        raise _NothingSelectedError(which)


def _is_missing(value: Any) -> bool:
    if isinstance(value, str):
        return not value.strip()
    if isinstance(value, Mapping):
        return all(_is_missing(each) for each in value.values())
    if isinstance(value, list | tuple | set | frozenset):
        return all(_is_missing(each) for each in value)
    return value is None


def _digest(value: Any, selector: Selector | None, delivery: Delivery) -> str:
    if selector is not None and selector.powertools_hash:
        try:
            return digest(value, selector.powertools_hash)
        except (TypeError, ValueError, RecursionError) as error:
            source = f"{selector.option}={selector.text!r}"
            msg = f"{source} selects what Powertools cannot digest ({type(error).__name__}); select JSON types"
            # The error's own text may quote the arguments.
            raise KeyEncodingError(msg, delivery.task) from None
    digested = sha256(FORM_VERSION)
    # Not concatenated: that would copy a form that may be large.
    digested.update(_canonical(value, selector, delivery).encode())
    return digested.hexdigest()


def _canonical(value: Any, selector: Selector | None, delivery: Delivery) -> str:
    try:
        return canonical(value)
    except UncanonicalError as error:
        source = f"{selector.option}={selector.text!r}" if selector else "idempotency_key"
        msg = f"{source} selects {error}; select something that has a canonical form"
        raise KeyEncodingError(msg, delivery.task) from None
