"""A DynamoDB table in memory: an interpreter of the requests and expressions that the library and its bodies send.

Only those: anything else is an error, never a guess.  The contract tests run against it as against every other store,
and random sequences of operations compare it with each stand-in.
"""

import re
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any, Final

__all__ = ["ConditionFailedError", "Item", "Table"]

Item = dict[str, Any]
#: A value with its type, as ``{"N": "1"}``; None where there is none.
Value = dict[str, Any] | None
Names = dict[str, str]
Values = dict[str, Any]
#: Reads an operand from an item.
Operand = Callable[[Item, Names, Values], Value]
Condition = Callable[[Item, Names, Values], bool]

_TOKEN: Final = re.compile(r"\s*(<>|<=|>=|[=<>(),+-]|[#:\w.]+)")
_ORDERED: Final = {
    "<": lambda left, right: left < right,
    "<=": lambda left, right: left <= right,
    ">": lambda left, right: left > right,
    ">=": lambda left, right: left >= right,
}


class ConditionFailedError(Exception):
    """The condition of a write is false.

    Args:
        item: what it was compared with; empty where there is no item.
    """

    def __init__(self, item: Item) -> None:
        self.item = item
        super().__init__("the condition is false")


class Table:
    """The items of one table, by their keys.

    An item, and any value in it, is replaced and never changed, so that who was given it keeps it as it was.
    """

    def __init__(self, key_attr: str = "id") -> None:
        self._key_attr = key_attr
        self.items: dict[str, Item] = {}

    def get_item(self, *, Key: Item, **_: Any) -> Item | None:  # noqa: N803 - DynamoDB's names
        """Return an item, or None."""
        found = self.items.get(self.name_of(Key))
        return None if found is None else dict(found)

    def scan(
        self,
        *,
        ExpressionAttributeNames: Names,  # noqa: N803
        ExpressionAttributeValues: Values | None = None,  # noqa: N803
        FilterExpression: str | None = None,  # noqa: N803
        **_: Any,
    ) -> list[Item]:
        """Return the items that a filter holds for, in the order of their keys, whole and on one page."""
        names, values = ExpressionAttributeNames, ExpressionAttributeValues or {}
        wanted = (lambda *_: True) if FilterExpression is None else _condition(FilterExpression)
        found = [self.items[key] for key in sorted(self.items)]
        return [dict(item) for item in found if wanted(item, names, values)]

    def put_item(self, *, Item: Item, **parameters: Any) -> None:  # noqa: N803
        """Write an item if its condition holds; raise `ConditionFailedError` otherwise."""
        self.check({"Item": Item, **parameters})
        self.items[self.name_of(Item)] = dict(Item)

    def delete_item(self, *, Key: Item, **parameters: Any) -> None:  # noqa: N803
        """Delete an item if its condition holds; raise `ConditionFailedError` otherwise."""
        self.check({"Key": Key, **parameters})
        self.items.pop(self.name_of(Key), None)

    def update_item(self, *, Key: Item, UpdateExpression: str, **parameters: Any) -> Item:  # noqa: N803
        """Update an item if its condition holds, and return it.

        Raises:
            ConditionFailedError: the condition is false.
        """
        self.check({"Key": Key, **parameters})
        name, names, values = self.name_of(Key), *_placeholders(parameters)
        old = self.items.get(name, {})
        new = {**old, **Key}
        for action in _update(UpdateExpression):
            # Operands are read from the item as it was.
            action(old, new, names, values)
        self.items[name] = new
        return dict(new)

    def check(self, parameters: dict[str, Any]) -> None:
        """Compare the condition of a write, if it has one, with its item.

        Raises:
            ConditionFailedError: it is false.
        """
        old = self.items.get(self.name_of(parameters.get("Key") or parameters["Item"]), {})
        condition = parameters.get("ConditionExpression")
        if condition is not None and not _condition(condition)(old, *_placeholders(parameters)):
            raise ConditionFailedError(dict(old))

    def name_of(self, key: Item) -> str:
        """Return what an item is kept under, by its key or by the whole item."""
        name: str = key[self._key_attr]["S"]
        return name


def _placeholders(parameters: dict[str, Any]) -> tuple[Names, Values]:
    return parameters.get("ExpressionAttributeNames", {}), parameters.get("ExpressionAttributeValues", {})


class _Tokens:
    """The tokens of an expression, one after the other."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._tokens = list(self._split(text))
        self._place = 0

    @staticmethod
    def _split(text: str) -> Iterator[str]:
        place = 0
        while place < len(text.rstrip()):
            found = _TOKEN.match(text, place)
            if found is None:
                raise ValueError(f"{text!r} is not understood from {text[place:]!r} on")
            yield found[1]
            place = found.end()

    def peek(self) -> str:
        """Return the next token; empty at the end."""
        return self._tokens[self._place] if self._place < len(self._tokens) else ""

    def take(self, *expected: str) -> str:
        """Return the next token, which must be one of those that are expected, if any are."""
        token = self.peek()
        if not token or (expected and token not in expected):
            raise ValueError(f"{self._text!r} has {token!r} where {expected} was expected")
        self._place += 1
        return token


@cache
def _condition(text: str) -> Condition:
    tokens = _Tokens(text)
    parsed = _disjunction(tokens)
    if tokens.peek():
        raise ValueError(f"{text!r} goes on with {tokens.peek()!r}")
    return parsed


def _disjunction(tokens: _Tokens) -> Condition:
    parts = [_conjunction(tokens)]
    while tokens.peek() == "OR":
        tokens.take()
        parts.append(_conjunction(tokens))
    return lambda *place: any(part(*place) for part in parts)


def _conjunction(tokens: _Tokens) -> Condition:
    parts = [_comparison(tokens)]
    while tokens.peek() == "AND":
        tokens.take()
        parts.append(_comparison(tokens))
    return lambda *place: all(part(*place) for part in parts)


def _comparison(tokens: _Tokens) -> Condition:
    if tokens.peek() == "(":
        tokens.take()
        inner = _disjunction(tokens)
        tokens.take(")")
        return inner
    if tokens.peek() in ("attribute_exists", "attribute_not_exists"):
        wanted = tokens.take() == "attribute_exists"
        tokens.take("(")
        path = _path(tokens.take())
        tokens.take(")")
        return lambda *place: (path(*place) is not None) is wanted
    left, operator, right = _operand(tokens), tokens.take("=", "<>", *_ORDERED), _operand(tokens)
    return lambda *place: _compare(left(*place), operator, right(*place))


def _compare(left: Value, operator: str, right: Value) -> bool:
    # DynamoDB: a comparison with a missing attribute is false, but for <>, and so is one of different types.
    if operator == "<>":
        return left != right
    if left is None or right is None:
        return False
    if operator == "=":
        return left == right
    ((kind, one),), ((other_kind, other),) = left.items(), right.items()
    if kind != other_kind:
        return False
    return _ORDERED[operator](*((float(one), float(other)) if kind == "N" else (one, other)))


def _operand(tokens: _Tokens) -> Operand:
    token = tokens.take()
    if token in ("size", "if_not_exists"):
        tokens.take("(")
        path = _path(tokens.take())
        if token == "size":  # noqa: S105 - a function of DynamoDB's
            tokens.take(")")
            return lambda *place: _size(path(*place))
        tokens.take(",")
        default = _operand(tokens)
        tokens.take(")")
        return lambda *place: default(*place) if (found := path(*place)) is None else found
    if token.startswith(":"):
        return lambda _, __, values: values[token]
    return _path(token)


def _path(token: str) -> Operand:
    parts = token.split(".")

    def read(item: Item, names: Names, _: Values) -> Value:
        found: Any = item
        for depth, part in enumerate(parts):
            name = names.get(part, part)
            found = (found.get("M") or {} if depth else found).get(name)
            if found is None:
                return None
        return found

    return read


def _size(value: Value) -> Value:
    if value is None:
        return None
    ((_, content),) = value.items()
    return {"N": str(len(content))}


class _Action:
    """One action of an update expression: changes the new item by what the old one holds."""

    def __init__(self, path: str, change: Callable[[Any, str, Item, Names, Values], None]) -> None:
        self._path = path
        self._change = change

    def __call__(self, old: Item, new: Item, names: Names, values: Values) -> None:
        *parents, last = self._path.split(".")
        place: Any = new
        for parent in parents:
            name = names.get(parent, parent)
            place[name] = {"M": dict(place[name]["M"])}
            place = place[name]["M"]
        self._change(place, names.get(last, last), old, names, values)


@cache
def _update(text: str) -> list[_Action]:
    tokens, actions, verb = _Tokens(text), [], ""
    while tokens.peek():
        if tokens.peek() in ("SET", "REMOVE", "ADD"):
            verb = tokens.take()
        else:
            tokens.take(",")
        actions.append(_action(verb, tokens))
    return actions


def _action(verb: str, tokens: _Tokens) -> _Action:
    path = tokens.take()
    if verb == "REMOVE":
        return _Action(path, lambda place, name, *_: place.pop(name, None))
    if verb == "ADD":
        added = _operand(tokens)

        def add(place: Any, name: str, *rest: Any) -> None:
            ((kind, more),) = added(*rest).items()  # type: ignore[union-attr]
            if kind == "N":
                place[name] = {"N": str(int(place.get(name, {"N": "0"})["N"]) + int(more))}
            else:
                place[name] = {"SS": sorted({*place.get(name, {"SS": []})["SS"], *more})}

        return _Action(path, add)
    tokens.take("=")
    first = _operand(tokens)
    more = None
    if tokens.peek() in ("+", "-"):
        sign = 1 if tokens.take() == "+" else -1
        more = _operand(tokens)

    def put(place: Any, name: str, *rest: Any) -> None:
        value = first(*rest)
        if more is not None:
            value = {"N": str(int(value["N"]) + sign * int(more(*rest)["N"]))}  # type: ignore[index]
        place[name] = value

    return _Action(path, put)
