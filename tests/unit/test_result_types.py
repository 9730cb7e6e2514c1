"""Types of the user's own: registered once, they replay as themselves, wherever in a result they are."""

import json
import sys
from dataclasses import dataclass, field
from datetime import UTC, date, datetime
from decimal import Decimal
from enum import IntEnum
from typing import Any, NamedTuple

import pydantic
import pytest
from kombu.utils import json as kombu_json

from idempotent_tasks import ConfigurationError, ResultEncodingError, ResultUnavailableError, register_type
from idempotent_tasks.core import encoding as result_types
from idempotent_tasks.core.encoding import decode_result, encode_result
from tests.unit.test_codec import record, stored

SECRET = "4111111111111111"


@dataclass(frozen=True)
class Line:
    """A dataclass inside a dataclass, with types that JSON does not have."""

    article: str
    price: Decimal
    tags: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Order:
    """A dataclass."""

    number: int
    lines: tuple[Line, ...]
    placed: date | None = None
    untold: str = field(default="", compare=False)


class Receipt(pydantic.BaseModel):
    """A strict model whose fields have other names outside."""

    model_config = pydantic.ConfigDict(strict=True, frozen=True)

    number: int = pydantic.Field(alias="receiptNumber")
    paid_at: datetime
    order: Order

    @pydantic.computed_field  # type: ignore[prop-decorator]
    @property
    def title(self) -> str:
        """What is computed is no part of the value."""
        return f"receipt {self.number}"


class Money:
    """Neither a dataclass nor a model."""

    def __init__(self, cents: int) -> None:
        self.cents = cents

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Money) and other.cents == self.cents

    def __hash__(self) -> int:
        return hash(self.cents)


class Euro(Money):
    """A subclass."""


class Colour(IntEnum):
    """What JSON writes as a number."""

    RED = 1


class Point(NamedTuple):
    """What JSON writes as a list."""

    x: int


ORDER = Order(17, (Line("tea", Decimal("2.50"), frozenset({"hot"})),), date(2026, 3, 1))
RECEIPT = Receipt(receiptNumber=9, paid_at=datetime(2026, 3, 1, 12, tzinfo=UTC), order=ORDER)


@pytest.fixture(autouse=True)
def registry(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a test registers, here and with kombu, is gone after it."""
    monkeypatch.setattr(result_types, "_registered", {})
    monkeypatch.setattr(kombu_json, "_encoders", dict(kombu_json._encoders))
    monkeypatch.setattr(kombu_json, "_decoders", dict(kombu_json._decoders))


def replayed(value: Any) -> Any:
    """Return a result after storing and reading it."""
    return decode_result(stored(encode_result(value)))


@pytest.mark.parametrize("value", [ORDER, RECEIPT], ids=["dataclass", "pydantic"])
def test_a_registered_type_replays_as_itself(value: Any) -> None:
    """Fields of any type that pydantic knows come back equal, at the top of a result and deep inside."""
    register_type(type(value), "shop.thing")
    for result in (value, {"all": [value, None]}):
        again = replayed(result)
        assert again == result
        assert type(again) is type(result)


def test_a_type_with_functions_of_its_own() -> None:
    """``encode`` and ``decode`` are asked where they are given; what they make of a value is in the record."""
    register_type(Money, "shop.money", encode=lambda money: money.cents, decode=Money)
    assert encode_result(Money(5)).data == '{"__type__": "shop.money", "__value__": 5}'
    assert replayed([Money(5)]) == [Money(5)]


def test_what_is_not_registered_is_not_stored() -> None:
    """A dataclass that nobody registered is an error that says how."""
    with pytest.raises(ResultEncodingError, match=r"of type Order .* register_type\(\)"):
        encode_result(ORDER)


def test_an_unknown_name_is_no_guess() -> None:
    """A process that has not registered a stored type says which, and imports nothing."""
    register_type(Order, "shop.order")
    unread = stored(encode_result(ORDER))
    del kombu_json._decoders["shop.order"]
    with pytest.raises(ResultUnavailableError, match=r"type 'shop.order' cannot be made here .* register_type\(\)"):
        decode_result(unread)


@pytest.mark.parametrize("written", [{"cents": SECRET}, SECRET, None], ids=repr)
def test_a_value_that_its_type_refuses(written: Any) -> None:
    """The error names the type and quotes nothing of the value."""
    register_type(Order, "shop.order")
    text = json.dumps({"__type__": "shop.order", "__value__": written})
    with pytest.raises(ResultUnavailableError, match=r"type 'shop.order' cannot be made") as caught:
        decode_result(record(text, "json"))
    assert SECRET not in str(caught.value)


def test_a_field_that_holds_another_type_is_not_stored() -> None:
    """It would come back as something else."""
    register_type(Line, "shop.line")
    with pytest.raises(ResultEncodingError, match="of type Line"):
        encode_result(Line(article="tea", price="cheap"))  # type: ignore[arg-type]


def test_a_subclass_is_not_its_parent() -> None:
    """It is stored under a registration of its own, or not at all."""
    register_type(Money, "shop.money", encode=lambda money: money.cents, decode=Money)
    with pytest.raises(ResultEncodingError, match="of type Euro"):
        encode_result(Euro(5))


def test_subclasses_come_first() -> None:
    """In the order that works both replay as themselves; the other order is refused."""
    register_type(Euro, "shop.euro", encode=lambda euro: euro.cents, decode=Euro)
    register_type(Money, "shop.money", encode=lambda money: money.cents, decode=Money)
    assert [type(each) for each in replayed([Euro(5), Money(5)])] == [Euro, Money]
    with pytest.raises(ConfigurationError, match=r"register it before .*Money"):
        register_type(Euro, "shop.euro", encode=lambda euro: euro.cents, decode=Euro)


class Posh:
    """Says itself how it is written."""

    def __json__(self) -> str:
        return "posh"


@pytest.mark.parametrize(
    ("cls", "name", "given", "why"),
    [
        (Order, "date", {}, "taken by kombu"),
        (Order, "", {}, "printable characters"),
        (Order, "a\nb", {}, "printable characters"),
        (Order, "x" * 101, {}, "printable characters"),
        (Order, 7, {}, "printable characters"),
        (ORDER, "shop.order", {}, "no class"),
        (Colour, "shop.colour", {}, "it is a int"),
        (Point, "shop.point", {}, "it is a tuple"),
        (Posh, "shop.posh", {}, "__json__"),
        (Money, "shop.money", {}, "pydantic does not know the class"),
        (Money, "shop.money", {"encode": str}, "give both"),
        (Money, "shop.money", {"decode": str}, "give both"),
    ],
)
def test_what_cannot_work_is_refused_at_once(cls: Any, name: Any, given: dict[str, Any], why: str) -> None:
    """The error says why, when the type is registered and not when its first result is lost."""
    with pytest.raises(ConfigurationError, match=why):
        register_type(cls, name, **given)


def test_a_name_has_one_type() -> None:
    """The same class again is harmless, as when its module is loaded twice; another class is refused."""
    register_type(Order, "shop.order")
    register_type(Order, "shop.order")
    with pytest.raises(ConfigurationError, match=r"taken by .*\.Order"):
        register_type(Line, "shop.order")


class TestWithoutPydantic:
    """Where pydantic is not installed."""

    @pytest.fixture(autouse=True)
    def absent(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Let Python not find it."""
        monkeypatch.setitem(sys.modules, "pydantic", None)

    def test_functions_must_be_given(self) -> None:
        """The error says what to install, or to give."""
        with pytest.raises(ConfigurationError, match=r"encode= and decode=, or: pip install 'pydantic>=2\.7'"):
            register_type(Order, "shop.order")

    def test_functions_suffice(self) -> None:
        """Nothing else needs it."""
        register_type(Money, "shop.money", encode=lambda money: money.cents, decode=Money)
        assert replayed(Money(5)) == Money(5)
