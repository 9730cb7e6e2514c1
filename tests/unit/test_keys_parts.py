"""Keys that are put together: a part that selects nothing is an error, not a key that other calls share."""

import inspect
from dataclasses import dataclass
from typing import Any

import pytest

from idempotent_tasks import Idempotency, IdempotentTask
from idempotent_tasks.core.delivery import Delivery
from idempotent_tasks.core.keys import Selector, payload_digest
from idempotent_tasks.errors import KeyEncodingError, MissingKeyError
from tests.support.shop import SECRET, TASK, Shop, charge, deliver, key_of

#: A delivery whose invoice spells its number otherwise than the keys below.
INVOICE = deliver({"nr": 17, "year": 2026, "none": None, "lines": [{"sku": 1}, {"nr": 2}]}, "c-1")


@dataclass
class Invoice:
    """A dataclass argument with a field that may be empty."""

    number: int | None
    text: str = ""


def select(expression: str, delivery: Delivery) -> Any:
    """Return what an expression selects."""
    return Selector.of("key", expression).select(delivery, inspect.signature(charge))


@pytest.mark.parametrize(
    ("expression", "part"),
    [
        pytest.param("[amount, order.number]", "part 2 of a list", id="list"),
        pytest.param("[order.number, amount]", "part 1 of a list", id="first-of-a-list"),
        pytest.param("{c: amount, n: order.number}", "part 'n'", id="mapping"),
        pytest.param("[amount, order.none]", "part 2 of a list", id="null"),
        pytest.param("[amount, [order.year, order.number]]", "part 2 of a list", id="list-in-list"),
        pytest.param("[amount, {n: order.number}]", "part 'n'", id="mapping-in-list"),
        pytest.param("[amount, order.[year, number]]", "part 2 of a list", id="list-of-a-field"),
        pytest.param("[amount, order.invoice.[year, number]]", "part 2 of a list", id="list-of-what-is-not-there"),
        pytest.param("join('-', [amount, order.number])", "part 2 of a list", id="join"),
        pytest.param("join('-', [amount, to_string(order.number)])", "argument 1 of to_string()", id="null-as-text"),
        pytest.param("[amount, to_array(order.number)]", "argument 1 of to_array()", id="null-as-list"),
        pytest.param("[amount, length(order.number)]", "argument 1 of length()", id="length"),
        pytest.param("[amount, to_number(amount)]", "part 2 of a list", id="text-that-is-no-number"),
        pytest.param("[amount, sum(order.lines[*].price)]", "an element of a projection", id="sum-of-nothing"),
        pytest.param("[amount, order.lines[*].sku]", "an element of a projection", id="projection"),
        pytest.param("order.lines[*].sku", "an element of a projection", id="projection-as-the-whole"),
        pytest.param("order.lines[].sku", "an element of a projection", id="flattened"),
        pytest.param("order.lines[*].[sku, nr]", "part 2 of a list", id="list-in-projection"),
        pytest.param("[amount, order.lines[?kind == 'main'].sku]", "part 2 of a list", id="filter-that-nothing-fits"),
        pytest.param("[amount, map(&sku, order.lines)]", "an element in map()", id="map"),
        pytest.param("[amount, order.a || order.b]", "part 2 of a list", id="alternatives-that-are-not-there"),
        pytest.param("[amount, not_null(order.a, order.b)]", "part 2 of a list", id="none-that-is-not-null"),
        pytest.param("[amount, order.number] | [0]", "part 2 of a list", id="before-a-pipe"),
        pytest.param("[amount, note]", "part 2 of a list", id="default-that-is-none"),
    ],
)
def test_a_part_that_selects_nothing_is_missing(expression: str, part: str) -> None:
    """Two invoices of a customer are not one because neither has what the key asks for; the error names the part."""
    with pytest.raises(MissingKeyError) as caught:
        key_of(expression, INVOICE)
    text = str(caught.value)
    assert f"selects nothing for {part} in the arguments" in text
    for said in (TASK, f"key={expression!r}", "|| 'none'", 'missing_key="run"'):
        assert said in text


@pytest.mark.parametrize(
    ("expression", "value"),
    [
        pytest.param("[amount, order.number || '']", ["c-1", ""], id="or-empty"),
        pytest.param("[amount, order.number || 'none']", ["c-1", "none"], id="or-something"),
        pytest.param("[amount, order.number || `0`]", ["c-1", 0], id="or-zero"),
        pytest.param("[amount, not_null(order.number, 'none')]", ["c-1", "none"], id="not-null"),
        pytest.param("{c: amount, n: order.number || order.nr}", {"c": "c-1", "n": 17}, id="another-name"),
        pytest.param("join('-', [amount, order.number || ''])", "c-1-", id="join"),
        pytest.param("order.lines[*].not_null(sku, 'none')", [1, "none"], id="projection"),
        pytest.param("order.lines[?sku].sku", [1], id="elements-that-have-it"),
        pytest.param("[amount, order.lines[?kind == 'main'].sku || 'none']", ["c-1", "none"], id="filter"),
        pytest.param("[amount, order.lines[?contains([kind, 'a'], 'a')] | length(@)]", ["c-1", 2], id="condition"),
        pytest.param("[amount, order.number == `17`]", ["c-1", False], id="comparison"),
        pytest.param("[amount, map(&(sku || 'none'), order.lines)]", ["c-1", [1, "none"]], id="map"),
    ],
)
def test_an_optional_part_is_said_so_in_the_expression(expression: str, value: Any) -> None:
    """JMESPath has words for what stands in for a part that may be absent."""
    assert select(expression, INVOICE) == value


@pytest.mark.parametrize("value", ["", 0, False, [], {}, [None], {"a": None}], ids=repr)
def test_what_is_empty_is_something(value: Any) -> None:
    """A part that is there and empty is a value like any other, and so is null inside a part's own data."""
    assert select("[amount, order]", deliver(value, "c-1")) == ["c-1", value]


def test_an_empty_list_has_nothing_to_select_from() -> None:
    """A projection over no elements is the list that it was given: empty."""
    assert select("[amount, order[*].sku]", deliver([], "c-1")) == ["c-1", []]


def test_what_fields_hold_is_what_mappings_hold() -> None:
    """A dataclass's field that is None selects nothing, one that is empty does."""
    assert select("[amount, order.text]", deliver(Invoice(None), "c-1")) == ["c-1", ""]
    with pytest.raises(MissingKeyError):
        key_of("[amount, order.number]", deliver(Invoice(None), "c-1"))


def test_a_tuple_is_projected_as_the_list_that_it_will_be() -> None:
    """A call in the same process has the key that its message would have."""
    lines = ({"sku": 1}, {"sku": 2})
    assert key_of("order[*].sku", deliver(lines)) == key_of("order[*].sku", deliver(list(lines)))


@pytest.mark.parametrize(
    "function",
    [
        lambda order, customer: [customer, order.get("number")],
        lambda order, customer: (order.get("number"), customer),
        lambda order, customer: {"c": customer, "n": order.get("number")},
    ],
    ids=["list", "tuple", "mapping"],
)
def test_a_part_that_a_callable_leaves_out_is_missing(function: Any) -> None:
    """``get()`` of what is not there makes no key that all such calls share; the error quotes nothing."""
    with pytest.raises(MissingKeyError, match=r"selects nothing for part \d of what it returns") as caught:
        key_of(function, deliver({SECRET: 17}, SECRET))
    assert SECRET not in str(caught.value)


def test_what_a_callable_passes_on_is_data() -> None:
    """A whole argument as the key may have members that are null, as it may in an expression."""
    assert key_of(lambda order: order, deliver({"a": 1, "b": None})) == key_of("order", deliver({"a": 1, "b": None}))


def test_a_validated_part_that_selects_nothing_is_missing() -> None:
    """What is not there is not compared: such a call would be let through with any payload."""
    with pytest.raises(MissingKeyError, match=r"validate='\[order.total\]' selects nothing for part 1"):
        payload_digest(deliver({}), Selector.of("validate", "[order.total]"), inspect.signature(charge))


@pytest.mark.parametrize("expression", ["[amount, order.number]", "{n: order.number, c: amount}"])
def test_powertools_digests_what_is_not_there(expression: str) -> None:
    """A key that a Lambda function shares is the function's, whatever it is made of."""
    assert Selector.of("key", expression, "md5").select(INVOICE, inspect.signature(charge)) is not None


def test_what_an_expression_cannot_do_is_another_error() -> None:
    """A part that is there and of the wrong type stays what it was."""
    with pytest.raises(KeyEncodingError, match="cannot be applied"):
        key_of("join('-', [amount, order.year])", INVOICE)


@pytest.mark.parametrize(("missing_key", "runs"), [("raise", 0), ("run", 2)])
def test_two_invoices_of_a_customer(shop: Shop, missing_key: Any, runs: int) -> None:
    """Neither is answered with the other's result: both fail, or run unguarded where the policy says so."""
    policy = Idempotency(key="[customer, invoice.number]", missing_key=missing_key)
    results: list[Any] = []

    @shop.app.task(base=IdempotentTask, name="shop.pay", idempotency=policy, shared=False)
    def pay(customer: str, invoice: dict[str, Any]) -> Any:
        results.append(invoice["nr"])

    states = [pay.apply(("c-1", {"nr": number})).state for number in (17, 18)]
    assert len(results) == runs
    assert states == ["SUCCESS" if runs else "FAILURE"] * 2
