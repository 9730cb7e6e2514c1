"""The canonical form: equal values and no others share it, and a message's journey does not change it."""

import json
from collections import OrderedDict, namedtuple
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from enum import Enum, IntEnum, StrEnum
from pathlib import PurePosixPath
from types import MappingProxyType
from typing import Any, cast
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kombu.utils.json import dumps, loads
from pydantic import BaseModel, ConfigDict

from idempotent_tasks.core.canonical import UncanonicalError, _form, _plain_text, _text, canonical, fields_of

SECRET = "4111111111111111"
#: A key of a mapping that could be a field's name, and is somebody's.
PERSON = "alice_smith"


class Colour(StrEnum):
    """Text with names."""

    RED = "red"


class Size(IntEnum):
    """Numbers with names."""

    BIG = 3


class Corner(Enum):
    """Values of no plain type."""

    ORIGIN = (0, 0)


class Text(str):
    """Text of a user's own type."""

    __slots__ = ()


class Number(int):
    """A number of a user's own type."""


@dataclass
class Line:
    """A dataclass."""

    sku: str
    price: Decimal


@dataclass
class Order:
    """A dataclass that holds another."""

    id: int
    lines: list[Line]


class Customer(BaseModel):
    """A pydantic model."""

    name: str
    born: date


class Contacts(BaseModel):
    """A model that takes what it does not declare."""

    model_config = ConfigDict(extra="allow", arbitrary_types_allowed=True)

    owner: Any = None


Pair = namedtuple("Pair", "left right")  # noqa: PYI024 - the untyped kind exists as well

CET = timezone(timedelta(hours=1))
#: A moment of no known zone.
NAIVE = datetime.fromisoformat("2026-03-01")
NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)

sendable_leaves = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text()
    | st.binary()
    | st.uuids()
    | st.decimals(allow_nan=False, allow_infinity=False)
    | st.dates()
    | st.times()
    | st.datetimes()
    | st.datetimes(
        min_value=datetime.fromisoformat("1900-01-01"),
        max_value=datetime.fromisoformat("2200-01-01"),
        timezones=st.timezones(),
    )
)
sendable = st.recursive(
    sendable_leaves, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=20
)

#: Values that a careless form would confuse, some of them with its own tags.
confusable_leaves = st.sampled_from(
    [
        *[None, "", "null", False, 0, 0.0, "0", Decimal(0), b"", b"0"],
        *[True, 1, 1.0, "1", "true", Decimal(1), Decimal("1.0"), Decimal("1e0"), Decimal(10), Decimal("1e1"), b"1"],
        *[
            date(2026, 3, 1),
            NAIVE,
            datetime(2026, 3, 1, tzinfo=UTC),
            "2026-03-01",
            time(0),
            timedelta(0),
        ],
        *[UUID(int=0), str(UUID(int=0)), "decimal", "mapping", PurePosixPath("1")],
    ]
)
confusable = st.recursive(
    confusable_leaves,
    lambda inner: (
        st.lists(inner, max_size=2)
        | st.dictionaries(st.sampled_from(["", "a", "b"]), inner, max_size=2)
        | st.dictionaries(st.integers(0, 1), inner, max_size=2)
    ),
    max_leaves=4,
)


def typed(value: Any) -> Any:
    """Return what makes two values the same: their types and their contents, by Python's own equality."""
    if isinstance(value, list):
        return ("list", tuple(typed(each) for each in value))
    if isinstance(value, dict):
        return ("dict", frozenset((typed(name), typed(each)) for name, each in value.items()))
    return (type(value), value)


@given(confusable, confusable)
def test_equal_forms_mean_equal_values(left: Any, right: Any) -> None:
    """Two values share a form exactly where they are equal and of one type, all the way down."""
    assert (canonical(left) == canonical(right)) is (typed(left) == typed(right))


@given(sendable)
def test_the_journey_keeps_the_form(value: Any) -> None:
    """What a worker receives has the form of what the caller sent."""
    assert canonical(loads(dumps(value))) == canonical(value)


plain_leaves = st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.sampled_from([-0.0, "-0.0", ""])
mostly_plain = st.recursive(
    plain_leaves | st.sampled_from([Size.BIG, Text("a"), Number(1), NOON]),
    lambda inner: (
        st.lists(inner)
        | st.tuples(inner, inner)
        | st.dictionaries(st.text(), inner)
        | st.dictionaries(st.text() | st.integers() | st.none() | st.booleans(), inner, max_size=2)
    ),
    max_leaves=20,
)


@given(mostly_plain)
def test_what_is_written_at_once_is_the_form(value: Any) -> None:
    """Values of JSON's own types take a shorter way to the same form; others are not mistaken for them."""
    at_once = _plain_text(value)
    try:
        form = _text(_form(value, "it"))
    except UncanonicalError:
        form = None
    assert at_once in (None, form)


def test_a_value_of_plain_types_is_written_at_once() -> None:
    """What a message brings, for the most part."""
    assert _plain_text({"id": "A-1", "lines": [{"n": 1, "price": 2.5, "gift": None}, (True, [])]}) is not None


@given(sendable)
def test_the_form_is_ascii_json(value: Any) -> None:
    """The form can be digested, logged and compared by anything."""
    form = canonical(value)
    assert form.isascii()
    json.loads(form)


@given(st.dictionaries(st.text(), st.integers(), min_size=2))
def test_the_order_of_a_mapping_means_nothing(value: dict[str, int]) -> None:
    """Mappings with the same entries are one value."""
    assert canonical(dict(reversed(value.items()))) == canonical(value)


@given(st.decimals(allow_nan=False, allow_infinity=False, places=3))
def test_a_decimals_trailing_zeros_mean_nothing(value: Decimal) -> None:
    """Equal decimals are one value however they are written, also beyond the context's precision."""
    assert canonical(value) == canonical(Decimal(f"{value:f}000"))


def test_one_and_its_likes_differ() -> None:
    """A number, its float, the truth and the digit are four values."""
    assert len({canonical(value) for value in (1, 1.0, True, "1")}) == 4


@pytest.mark.parametrize(
    ("left", "right"),
    [
        pytest.param((1, 2), [1, 2], id="tuple"),
        pytest.param(Pair(1, 2), [1, 2], id="namedtuple"),
        pytest.param(OrderedDict(b=1, a=2), {"a": 2, "b": 1}, id="ordered-dict"),
        pytest.param(MappingProxyType({"a": 1}), {"a": 1}, id="any-mapping"),
        pytest.param({1: "a", 2: "b"}, {2: "b", 1: "a"}, id="number-keys"),
        pytest.param({3, 1, 2}, frozenset((2, 3, 1)), id="set"),
        pytest.param(Text("a"), "a", id="text-subclass"),
        pytest.param(Number(7), 7, id="number-subclass"),
        pytest.param(Colour.RED, "red", id="text-enumeration"),
        pytest.param(Size.BIG, 3, id="number-enumeration"),
        pytest.param(Corner.ORIGIN, [0, 0], id="enumeration"),
        pytest.param({Text("a"): 1}, {"a": 1}, id="text-subclass-as-key"),
        pytest.param({Colour.RED: 1}, {"red": 1}, id="enumeration-as-key"),
        pytest.param(0.0, -0.0, id="negative-zero"),
        pytest.param(Decimal(0), Decimal("-0.00"), id="negative-decimal-zero"),
        pytest.param(bytearray(b"ab"), b"ab", id="bytearray"),
        pytest.param(memoryview(b"ab"), b"ab", id="memoryview"),
        pytest.param(NOON, NOON.astimezone(CET), id="one-instant-in-two-zones"),
        pytest.param(time(12, tzinfo=UTC), time(13, tzinfo=CET), id="one-time-in-two-zones"),
        pytest.param(timedelta(days=1), timedelta(hours=24), id="timedelta"),
        pytest.param(Line("a", Decimal("2.50")), {"sku": "a", "price": Decimal("2.5")}, id="dataclass"),
        pytest.param(
            Order(7, [Line("a", Decimal(2))]), {"id": 7, "lines": [{"sku": "a", "price": Decimal(2)}]}, id="nested"
        ),
        pytest.param(
            Customer(name="Ann", born=date(2000, 1, 2)), {"name": "Ann", "born": date(2000, 1, 2)}, id="pydantic"
        ),
    ],
)
def test_one_value_in_two_guises(left: Any, right: Any) -> None:
    """What is equal, or becomes equal on the way to a worker, has one form."""
    assert canonical(left) == canonical(right)


@pytest.mark.parametrize(
    ("left", "right"),
    [
        pytest.param(datetime.fromisoformat("2026-03-01T12:00"), NOON, id="naive-and-aware"),
        pytest.param(NAIVE, date(2026, 3, 1), id="midnight-and-day"),
        pytest.param(NOON, NOON.isoformat(), id="instant-and-text"),
        pytest.param([1], {1}, id="list-and-set"),
        pytest.param({"": ["decimal", "0"]}, Decimal(0), id="forged-tag"),
        pytest.param({1: "a"}, {"1": "a"}, id="number-and-text-key"),
        pytest.param(b"a", "a", id="bytes-and-text"),
        pytest.param(2**53, 2**53 + 1, id="beyond-a-double"),
        pytest.param(
            Decimal("0.1234567890123456789012345678901"), Decimal("0.123456789012345678901234567890"), id="long"
        ),
    ],
)
def test_alike_but_not_the_same(left: Any, right: Any) -> None:
    """What two callers would call different has two forms."""
    assert canonical(left) != canonical(right)


def endless() -> Any:
    """Return a list that contains itself."""
    value: list[Any] = []
    value.append(value)
    return value


def branching() -> Any:
    """Return a mapping that contains itself three times, so that it has three times the parts on each level."""
    value: dict[str, Any] = {}
    value.update(a=value, b=value, c=value)
    return value


def nested(depth: int, innermost: Any = None) -> Any:
    """Return a list in a list, and so on."""
    value = innermost
    for _ in range(depth):
        value = [value]
    return value


@pytest.mark.parametrize(
    ("make", "where"),
    [
        pytest.param(lambda: {"order": [SECRET, object()]}, "a builtins.object at it[…][1]", id="object"),
        pytest.param(lambda: {PERSON: object()}, "a builtins.object at it[…]", id="under-a-persons-name"),
        pytest.param(lambda: {"a": {PERSON: {1, object()}}}, "at an element of it[…][…]", id="deep-under-a-name"),
        pytest.param(lambda: {PERSON: float("nan")}, "a float that is not finite at it[…]", id="nan-under-a-name"),
        pytest.param(lambda: Order(7, cast("Any", [object()])), "a builtins.object at it.lines[0]", id="in-a-field"),
        pytest.param(lambda: Contacts(**{PERSON: object()}), "a builtins.object at it[…]", id="in-an-undeclared-field"),
        pytest.param(lambda: Contacts(owner=object()), "a builtins.object at it.owner", id="in-a-models-field"),
        pytest.param(lambda: {1: object()}, "a builtins.object at it[…]", id="under-a-number"),
        pytest.param(lambda: {f"{SECRET} 1": object()}, "a builtins.object at it[…]", id="under-data"),
        pytest.param(lambda: {object(): 1}, "a builtins.object at a key of it", id="as-a-key"),
        pytest.param(lambda: {(SECRET, object)}, "a builtins.type at an element of it[1]", id="in-a-set"),
        pytest.param(lambda: Line, "a builtins.type at it", id="dataclass-itself"),
        pytest.param(lambda: Customer, "ModelMetaclass at it", id="model-itself"),
        pytest.param(lambda: float("nan"), "a float that is not finite at it", id="nan"),
        pytest.param(lambda: [float("inf")], "a float that is not finite at it[0]", id="infinity"),
        pytest.param(lambda: Decimal("NaN"), "a Decimal that is not finite at it", id="decimal-nan"),
        pytest.param(lambda: 3j, "a builtins.complex at it", id="complex"),
        pytest.param(lambda: (each for each in SECRET), "a builtins.generator at it", id="generator"),
        pytest.param(endless, "contains itself", id="endless"),
        pytest.param(branching, "contains itself", id="endless-in-many-places"),
        pytest.param(lambda: nested(5_000), "nested too deeply", id="deeper-than-python-recurses"),
        pytest.param(lambda: 10**5_000, "it", id="number-that-python-does-not-write"),
        pytest.param(lambda: datetime.min.replace(tzinfo=CET), "it", id="instant-before-year-1"),
    ],
)
def test_what_has_no_form_is_named_without_its_value(make: Callable[[], Any], where: str) -> None:
    """The error says which part and of which type, never what was in it, nor under which key of a mapping."""
    with pytest.raises(UncanonicalError) as caught:
        canonical(make())
    assert where in str(caught.value)
    assert SECRET not in str(caught.value)
    assert PERSON not in str(caught.value)


def test_a_megabyte_has_a_form() -> None:
    """A large payload is written like a small one."""
    assert len(canonical({"text": "x" * 1_000_000, "numbers": list(range(1_000))})) > 1_000_000


@pytest.mark.parametrize("depth", [50, 150])
def test_how_deep_a_value_is_nested_means_nothing(depth: int) -> None:
    """A value deeper than what is written at once takes the longer way to the same form."""
    assert canonical(nested(depth, {"b": 1, "a": 2})) == "[" * depth + '{"a":2,"b":1}' + "]" * depth


def test_a_value_with_very_many_parts_has_a_form() -> None:
    """Also one that has a part in so many places that it has over a million of them."""
    value = {"numbers": [list(range(1_000))] * 1_200, "id": "A-1"}
    assert canonical(value) == json.dumps(value, sort_keys=True, separators=(",", ":"))


def test_fields_of_what_has_fields() -> None:
    """Dataclass instances and models give their fields by name, without copying what is in them."""
    order = Order(7, [Line("a", Decimal(2))])
    fields = fields_of(order)
    assert fields is not None
    assert fields["lines"] is order.lines
    assert fields_of(Customer(name="Ann", born=date(2000, 1, 2))) == {"name": "Ann", "born": date(2000, 1, 2)}


@pytest.mark.parametrize("value", [{"a": 1}, "a", None, Line, Customer], ids=repr)
def test_fields_of_what_has_none(value: Any) -> None:
    """Anything else, the classes themselves included, has no fields."""
    assert fields_of(value) is None
