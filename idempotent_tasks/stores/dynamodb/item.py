"""The format of an item: attribute names, update expressions over them, `Record` to item and back.

Knows neither boto3 nor a clock: values in, request parameters out.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from idempotent_tasks.core.records import KeptSteps, Record, Status, Step, without_stale_previous
from idempotent_tasks.errors import ConfigurationError, RecordCorruptError

__all__ = ["BOOKKEEPING", "ROLES", "Item", "ItemSchema", "Update", "Value", "values_of"]

#: A DynamoDB item or key as requests have it: attribute name to ``{type: value}``.
Item = dict[str, dict[str, Any]]
#: The types of an attribute's value.
Value = str | int | bytes | frozenset[str] | Mapping[str, "Value"] | Mapping[str, int] | Mapping[str, bytes]

#: The attributes that Powertools does not have, by their default names.
BOOKKEEPING: Final = (
    "owner",
    "fence",
    "attempt",
    "runs",
    "generation",
    "unresolved_since",
    "counted_fence",
    "previous_owner",
    "previous_task_id",
    "previous_claimed_at",
    "task",
    "task_id",
    "worker",
    "process",
    "claimed_at",
    "completed_at",
    "stands_in_until",
    "validated_by",
    "codec",
    "error",
    "continuation",
    "deferred",
    "dispatched",
    "settled_at",
    "parked_at",
    "parked",
    "parked_bytes",
    "resolved_fence",
    "steps",
    "steps_elsewhere",
    "step",
    "inputs",
)

#: The roles of all attributes but the key's.
ROLES: Final = ("status", "expiration", "in_progress_expiration", "data", "validation", *BOOKKEEPING)

_TEXTS: Final = (
    "validation",
    "validated_by",
    "owner",
    "previous_owner",
    "previous_task_id",
    "task",
    "task_id",
    "worker",
    "process",
    "codec",
    "error",
    "continuation",
)
#: The numbers that a record has as 0 where an item has none.
_COUNTS: Final = ("fence", "attempt", "runs", "parked_bytes")
#: What a claim copies; where there is nothing to copy, an item has an empty text or a 0.
_COPIED: Final = ("previous_owner", "previous_task_id", "previous_claimed_at")
_NUMBERS: Final = (
    "in_progress_expiration",
    "generation",
    "unresolved_since",
    "counted_fence",
    "previous_claimed_at",
    "claimed_at",
    "completed_at",
    "stands_in_until",
    "settled_at",
    "parked_at",
    "resolved_fence",
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Update:
    """One conditional ``UpdateItem``, written with roles (see `ItemSchema.roles`) instead of attribute names."""

    #: Role to its new value.
    values: Mapping[str, Value] = field(default_factory=dict)
    #: Roles whose attributes are removed.
    remove: tuple[str, ...] = ()
    #: Further ``SET`` actions, written with ``#role`` and ``:name``.
    actions: tuple[str, ...] = ()
    #: Role to the members that are added to its set.
    add: Mapping[str, frozenset[str]] = field(default_factory=dict)
    #: The condition, written with ``#role`` and ``:name``.
    condition: str
    #: The values of ``:name`` in `actions` and `condition`.
    operands: Mapping[str, Value]
    #: The values of ``#name`` where it is no role but an entry inside an attribute.
    entries: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class ItemSchema:
    """The attribute names of one table, by the role that each attribute plays in a record.

    Raises:
        ConfigurationError: two roles share one attribute, or an unknown role is renamed.
    """

    key_attr: str
    sort_key_attr: str | None
    static_pk_value: str
    status_attr: str
    expiry_attr: str
    in_progress_expiry_attr: str
    data_attr: str
    validation_key_attr: str
    bookkeeping: Mapping[str, str] = field(default_factory=dict)
    #: Each role and its attribute, the partition key as ``key``.
    roles: Mapping[str, str] = field(init=False)
    #: The ``UpdateExpression`` and ``ExpressionAttributeNames`` that all updates of one shape share.
    _expressions: dict[object, tuple[str, dict[str, str]]] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "roles", self._named_roles())
        object.__setattr__(self, "_expressions", {})
        unknown = sorted(set(self.bookkeeping) - set(BOOKKEEPING))
        if unknown:
            msg = f"attributes= renames {unknown}, but only {list(BOOKKEEPING)} can be renamed there"
            raise ConfigurationError(msg)
        names = [*self.roles.values(), *([self.sort_key_attr] if self.sort_key_attr is not None else [])]
        shared = sorted({name for name in names if names.count(name) > 1})
        if shared:
            msg = f"each attribute of a record needs a name of its own, but {shared} is used more than once"
            if self.key_attr == self.sort_key_attr:
                msg = f"key_attr and sort_key_attr must differ, both are {self.key_attr!r}"
            raise ConfigurationError(msg)
        if not all(names):
            raise ConfigurationError("an attribute name of the record layout is empty")

    def _named_roles(self) -> dict[str, str]:
        return {
            "key": self.key_attr,
            "status": self.status_attr,
            "expiration": self.expiry_attr,
            "in_progress_expiration": self.in_progress_expiry_attr,
            "data": self.data_attr,
            "validation": self.validation_key_attr,
            **{role: self.bookkeeping.get(role, role) for role in BOOKKEEPING},
        }

    def differences(self, other: "ItemSchema") -> list[str]:
        """Return the roles that two schemas name differently, for example ``data: 'data' and 'result'``.

        The partition of a composite key may differ: it separates apps.
        """
        pairs: list[tuple[str, str | None, str | None]] = [("sort key", self.sort_key_attr, other.sort_key_attr)]
        pairs += [(role, name, other.roles[role]) for role, name in self.roles.items()]
        return [f"{role}: {mine!r} and {theirs!r}" for role, mine, theirs in pairs if mine != theirs]

    def key(self, key: str) -> Item:
        """Return the primary key of a record."""
        if self.sort_key_attr is None:
            return {self.key_attr: {"S": key}}
        return {self.key_attr: {"S": self.static_pk_value}, self.sort_key_attr: {"S": key}}

    def names(self, expression: str) -> dict[str, str]:
        """Return the ``ExpressionAttributeNames`` of an expression: for each ``#role`` its attribute."""
        mentioned = set(re.findall(r"#(\w+)", expression))
        return {f"#{role}": name for role, name in self.roles.items() if role in mentioned}

    def update(self, update: Update) -> dict[str, Any]:
        """Return an update as request parameters: expressions, attribute names and values."""
        shape = (tuple(update.values), update.remove, update.actions, tuple(update.add), update.condition)
        if shape not in self._expressions:
            self._expressions[shape] = self._expression(update)
        expression, names = self._expressions[shape]
        entries = {f"#{name}": entry for name, entry in update.entries.items()}
        values = {**update.values, **update.add, **update.operands}
        return {
            "UpdateExpression": expression,
            "ConditionExpression": update.condition,
            "ExpressionAttributeNames": names | entries,
            "ExpressionAttributeValues": {f":{name}": _typed(value) for name, value in values.items()},
        }

    def _expression(self, update: Update) -> tuple[str, dict[str, str]]:
        clauses = {
            "SET": [*(f"#{role} = :{role}" for role in update.values), *update.actions],
            "REMOVE": [f"#{role}" for role in update.remove],
            "ADD": [f"#{role} :{role}" for role in update.add],
        }
        expression = " ".join(f"{verb} {', '.join(actions)}" for verb, actions in clauses.items() if actions)
        return expression, self.names(f"{expression} {update.condition}")

    def item(self, record: Record) -> Item:
        """Return a record as an item."""
        values = values_of(record)
        # An empty map where a note may follow: an update can set an entry only in a map that exists.
        if record.deferred or record.status is Status.INPROGRESS:
            values["deferred"] = record.deferred
        if record.dispatched:
            values["dispatched"] = record.dispatched
        # An update can add a message only to a map that exists.
        if record.parked or record.parked_at is not None:
            values |= {"parked": record.parked, "parked_bytes": record.parked_bytes}
        values |= steps_of(record)
        return self.key(record.key) | {self.roles[role]: _typed(value) for role, value in values.items()}

    def step_item(self, key: str, step: Step, values: Mapping[str, Value]) -> Item:
        """Return a step as an item of its own, with further values by role."""
        return self.key(key) | {
            self.roles[role]: _typed(value) for role, value in {**values_of_step(step), **values}.items()
        }

    def kept_steps(self, key: str, item: Item) -> KeptSteps:
        """Return the steps that a record's item has kept.

        Raises:
            RecordCorruptError: an attribute has another type.
        """
        return _Reader(key, item, self.roles).steps()

    def step(self, key: str, item: Item) -> Step:
        """Return a step's own item as the step.

        Raises:
            RecordCorruptError: as `record`.
        """
        reader = _Reader(key, item, self.roles)
        inputs, codec = reader.text("inputs") or "", reader.text("codec") or ""
        return Step(inputs=inputs, codec=codec, data=reader.data(), error=reader.text("error"))

    def count(self, key: str, item: Item, role: str) -> int:
        """Read one integer of an item; 0 if there is none.

        Raises:
            RecordCorruptError: the attribute has another type.
        """
        return self.counts(key, item, (role,))[role]

    def counts(self, key: str, item: Item, roles: Iterable[str]) -> dict[str, int]:
        """Read integers of an item by role; 0 for one that is not there.

        Raises:
            RecordCorruptError: an attribute has another type.
        """
        reader = _Reader(key, item, self.roles)
        return {role: reader.number(role) or 0 for role in roles}

    def record(self, key: str, item: Item) -> Record:
        """Return an item as a record.

        Raises:
            RecordCorruptError: an attribute is missing, or is not of the type that this library and Powertools for
                AWS Lambda (Python) write.
        """
        reader = _Reader(key, item, self.roles)
        values: dict[str, Any] = {role: reader.text(role) for role in _TEXTS}
        values |= {role: max(reader.number(role) or 0, 0) for role in _COUNTS}
        values |= {role: reader.number(role) for role in _NUMBERS}
        values |= {role: values[role] or None for role in _COPIED}
        record = Record(
            key=key,
            status=reader.status(),
            expiration=reader.required_number("expiration"),
            data=reader.data(),
            deferred=reader.counts("deferred"),
            dispatched=reader.texts("dispatched"),
            parked=reader.messages("parked"),
            steps=reader.steps(),
            **values,
        )
        return without_stale_previous(record)


def values_of(record: Record) -> dict[str, Value]:
    """Return what a record's item holds by role, without its notes, its messages and what it has not."""
    shown = {role: getattr(record, role) for role in ("status", "expiration", "data", *_TEXTS, *_NUMBERS, "attempt")}
    # An outcome has no runs, and an item of Powertools no fence.
    shown |= {"fence": record.fence or None, "runs": record.runs or None}
    return {role: value for role, value in shown.items() if value is not None}


def steps_of(record: Record) -> dict[str, Value]:
    """Return by role what an item holds of its record's steps, which many do not have."""
    values: dict[str, Value] = {}
    if record.steps.here:
        values["steps"] = {name: values_of_step(step) for name, step in record.steps.here.items()}
    if record.steps.elsewhere:
        values["steps_elsewhere"] = record.steps.elsewhere
    return values


def values_of_step(step: Step) -> dict[str, Value]:
    """Return what a step has, by the names of its attributes."""
    values = {"inputs": step.inputs, "codec": step.codec, "data": step.data, "error": step.error}
    return {name: value for name, value in values.items() if value is not None}


class _Reader:
    """Reads an item role by role, and raises `RecordCorruptError` with what is wrong with it."""

    def __init__(self, key: str, item: Item, roles: Mapping[str, str]) -> None:
        self._key = key
        self._item = item
        self._roles = roles

    def status(self) -> Status:
        text = self.text("status")
        if text not in (Status.INPROGRESS, Status.COMPLETED, Status.FAILED):
            raise self._corrupt("status", f"is {text!r}, not one of INPROGRESS, COMPLETED, FAILED")
        return Status(text)

    def data(self) -> str | bytes | None:
        wire = self._item.get(self._roles["data"])
        if wire is None:
            return None
        [(kind, value)] = wire.items()
        if kind == "S":
            return str(value)
        if kind == "B":
            return bytes(value)
        raise self._corrupt("data", f"has DynamoDB type {kind}, not S or B")

    def text(self, role: str) -> str | None:
        wire = self._item.get(self._roles[role])
        if wire is None:
            return None
        if "S" not in wire:
            raise self._corrupt(role, f"has DynamoDB type {next(iter(wire))}, not S")
        return str(wire["S"])

    def number(self, role: str) -> int | None:
        wire = self._item.get(self._roles[role])
        if wire is None:
            return None
        try:
            return int(wire["N"])
        except (KeyError, ValueError):
            raise self._corrupt(role, f"has DynamoDB type {next(iter(wire))}, not N with an integer") from None

    def counts(self, role: str) -> dict[str, int]:
        wire = self._item.get(self._roles[role], {"M": {}})
        try:
            return {name: int(entry["N"]) for name, entry in wire["M"].items()}
        except (KeyError, ValueError):
            raise self._corrupt(role, "is no map of whole numbers") from None

    def messages(self, role: str) -> dict[str, bytes]:
        wire = self._item.get(self._roles[role], {"M": {}})
        try:
            return {name: bytes(entry["B"]) for name, entry in wire["M"].items()}
        except (KeyError, TypeError):
            raise self._corrupt(role, "is no map of binary values") from None

    def steps(self) -> KeptSteps:
        wire = self._item.get(self._roles["steps"], {"M": {}})
        try:
            here = {name: _step_in(entry["M"]) for name, entry in wire["M"].items()}
        except (KeyError, TypeError, ValueError):
            raise self._corrupt("steps", "is no map of steps") from None
        return KeptSteps(here=here, elsewhere=self.texts("steps_elsewhere"))

    def texts(self, role: str) -> frozenset[str]:
        wire = self._item.get(self._roles[role], {"SS": []})
        try:
            return frozenset(wire["SS"])
        except KeyError:
            raise self._corrupt(role, f"has DynamoDB type {next(iter(wire))}, not SS") from None

    def required_number(self, role: str) -> int:
        value = self.number(role)
        if value is None:
            raise self._corrupt(role, "is missing")
        return value

    def _corrupt(self, role: str, what: str) -> RecordCorruptError:
        return RecordCorruptError(
            f"attribute {self._roles[role]!r} {what}; somebody else wrote this item: "
            "delete it, or give the other writer a table or attribute names of its own",
            key=self._key,
        )


def _step_in(entry: Item) -> Step:
    data = entry.get("data")
    kept = None if data is None else bytes(data["B"]) if "B" in data else str(data["S"])
    error = entry["error"]["S"] if "error" in entry else None
    return Step(inputs=str(entry["inputs"]["S"]), codec=str(entry["codec"]["S"]), data=kept, error=error)


#: DynamoDB's types of what nearly all values are; a dictionary finds them sooner than the patterns below.
_SCALARS: Final[Mapping[type, str]] = {str: "S", int: "N"}


def _typed(value: Value) -> dict[str, Any]:
    kind = _SCALARS.get(type(value))
    if kind is not None:
        return {kind: str(value)}
    match value:
        case str():
            return {"S": str(value)}
        case int():
            return {"N": str(value)}
        case frozenset():
            return {"SS": sorted(value)}
        case Mapping():
            return {"M": {name: _typed(entry) for name, entry in value.items()}}
        case _:
            return {"B": value}
