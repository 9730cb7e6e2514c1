"""From arguments to keys: the same call gives the same key, another call another, and a missing key is an error."""

import inspect
from dataclasses import dataclass
from datetime import date
from decimal import Decimal
from enum import Enum
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel

from idempotent_tasks.core.canonical import canonical
from idempotent_tasks.core.delivery import Delivery
from idempotent_tasks.core.keys import Selector, check_explicit_key, payload_digest
from tests.support.shop import TASK, charge, deliver, key_of


class Currency(Enum):
    """A plain enumeration."""

    EUR = "eur"


@dataclass
class Order:
    """A dataclass argument."""

    id: Any
    items: list[Any]


class Customer(BaseModel):
    """A model argument."""

    id: int
    order: Order | None = None


def test_the_task_id_is_the_default_key() -> None:
    """Without a key source a redelivery is recognised by its id, which stays readable in the key."""
    assert key_of(None, deliver("ord-17", task_id="4f1c")) == "shop.charge#4f1c"


@pytest.mark.parametrize("task_id", ["a\nb", "x" * 256, "\ud800"], ids=["control", "long", "surrogate"])
def test_an_odd_task_id_is_digested(task_id: str) -> None:
    """A task id that a store could not hold is no reason to fail."""
    key = key_of(None, deliver(task_id=task_id))
    assert key.startswith("shop.charge#")
    assert key.isascii()
    assert len(key) == len("shop.charge#") + 64


@pytest.mark.parametrize(
    "delivery",
    [
        deliver("ord-17"),
        deliver(order="ord-17"),
        deliver("ord-17", 5),
        deliver("ord-17", amount=5),
        deliver(amount=5, order="ord-17"),
    ],
    ids=["position", "name", "spelled-default", "named-default", "other-order"],
)
def test_one_call_in_five_spellings(delivery: Delivery) -> None:
    """Positional, named and default arguments are bound before they are selected."""
    assert key_of("[order, amount]", delivery) == key_of("[order, amount]", deliver("ord-17"))


def test_one_and_its_likes_are_four_keys() -> None:
    """A number, its float, the truth and the digit are four keys."""
    assert len({key_of("order", deliver(value)) for value in (1, 1.0, True, "1")}) == 4


@given(st.dictionaries(st.text(min_size=1), st.integers(), min_size=1))
def test_the_order_of_a_dictionary_means_nothing(order: dict[str, int]) -> None:
    """Two producers that build the same dictionary in another order mean the same."""
    assert key_of("order", deliver(order)) == key_of("order", deliver(dict(reversed(order.items()))))


@pytest.mark.parametrize(
    "value",
    [
        date(2026, 3, 1),
        Decimal("2.50"),
        UUID(int=7),
        Currency.EUR,
        Order(17, [1]),
        Customer(id=3),
        {"id": 1},
        [0],
        b"x",
    ],
    ids=lambda value: type(value).__name__,
)
def test_values_of_many_types_are_keys(value: Any) -> None:
    """Every type with a canonical form gives a key, the same one for an equal value and a digest by look."""
    key = key_of("order", deliver(value))
    assert key == key_of("order", deliver(order=value))
    assert key != key_of("order", deliver("another"))
    assert len(key.removeprefix("shop.charge#")) == 64


@pytest.mark.parametrize(
    ("expression", "delivery", "value"),
    [
        pytest.param("order.id", deliver({"id": 17}), 17, id="dictionary"),
        pytest.param("order.id", deliver(Order(17, [])), 17, id="dataclass"),
        pytest.param("order.id", deliver(Customer(id=17)), 17, id="model"),
        pytest.param("order.order.id", deliver(Customer(id=1, order=Order(17, []))), 17, id="dataclass-in-model"),
        pytest.param("order.items[1]", deliver(Order(1, ["a", 17])), 17, id="list-in-dataclass"),
        pytest.param("order[1]", deliver(["a", 17]), 17, id="list"),
        pytest.param("order[1]", deliver(("a", 17)), 17, id="tuple"),
        pytest.param("rest[0]", deliver("a", 5, 17), 17, id="variable-arguments"),
        pytest.param("rest", deliver("a", 5, 17), [17], id="all-variable-arguments"),
        pytest.param("more.colour", deliver("a", colour=17), 17, id="variable-names"),
        pytest.param("note", deliver("a", note=17), 17, id="keyword-only"),
        pytest.param("amount", deliver("a"), 5, id="default"),
        pytest.param("[order, amount]", deliver("a"), ["a", 5], id="several"),
        pytest.param("{o: order, a: amount}", deliver("a"), {"o": "a", "a": 5}, id="named-several"),
        pytest.param("order[*].id", deliver([{"id": 1}, {"id": 2}]), [1, 2], id="projection"),
        pytest.param("join('-', [order, note])", deliver("a", note="b"), "a-b", id="function"),
    ],
)
def test_what_an_expression_selects(expression: str, delivery: Delivery, value: Any) -> None:
    """An expression sees the arguments by name, and into mappings, sequences, dataclasses and models."""
    selected = Selector.of("key", expression).select(delivery, inspect.signature(charge))
    assert canonical(selected) == canonical(value)


def test_selecting_copies_nothing() -> None:
    """A large dataclass argument is not turned into dictionaries to read one field of it."""
    order = Order(17, [object()])
    assert Selector.of("key", "order.items").select(deliver(order), inspect.signature(charge)) is order.items


def test_a_callable_takes_the_call_as_it_was_made() -> None:
    """A callable is given the arguments, and its result is the key."""
    key = key_of(lambda order, **more: f"{order}-{more['note']}", deliver("ord", note="n"))
    assert key == key_of(None, deliver(explicit_key="ord-n"))


def test_an_explicit_key_comes_first() -> None:
    """The caller's key beats the task's, and equals a selected key of the same text."""
    explicit = key_of("order", deliver("ord-99", explicit_key="ord-17"))
    assert explicit == key_of("order", deliver("ord-17"))
    assert explicit != key_of("order", deliver("ord-99"))


def test_a_task_id_is_never_taken_for_an_explicit_key() -> None:
    """A task whose id happens to equal an order's number is another key."""
    assert key_of(None, deliver(task_id="ord-17")) != key_of(None, deliver(explicit_key="ord-17"))


@pytest.mark.parametrize("key", ["a", "x" * 255, "Bestellung ä#7 \U0001f600", " a "], ids=repr)
def test_a_plain_key_is_taken(key: str) -> None:
    """One to 255 printable characters of any alphabet, as they are."""
    assert check_explicit_key(key, TASK) == key


def test_a_megabyte_of_payload() -> None:
    """A key over a large payload is as short as any other."""
    payload = {"blob": "x" * 1_000_000, "id": 17}
    assert len(key_of("order", deliver(payload))) == len(key_of("order.id", deliver(payload)))


def test_the_payload_digest_follows_what_is_validated() -> None:
    """Another amount is another digest; what is not validated may change."""
    selector, signature = Selector.of("validate", "amount"), inspect.signature(charge)
    digest = payload_digest(deliver("a", 5), selector, signature)
    assert digest == payload_digest(deliver("b"), selector, signature)
    assert digest != payload_digest(deliver("a", 6), selector, signature)
