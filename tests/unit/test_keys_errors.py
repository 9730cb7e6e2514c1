"""Keys that cannot be: missing, odd or without a form; every error names what is wrong and quotes no argument."""

import inspect
from decimal import Decimal
from typing import Any

import pytest

from idempotent_tasks.core.keys import Selector, check_prefix, payload_digest
from idempotent_tasks.errors import ConfigurationError, IdempotencyError, KeyEncodingError, MissingKeyError
from tests.support.shop import SECRET, TASK, charge, deliver, key_of


def test_a_callables_own_error_comes_out() -> None:
    """A bug in a user's callable is not dressed up."""
    with pytest.raises(ZeroDivisionError):
        key_of(lambda order: 1 // 0, deliver("ord"))


def test_a_callable_that_is_missing_something_is_named() -> None:
    """The message of a missing key names the callable."""

    def order_number(order: Any) -> None:
        """Select nothing."""

    with pytest.raises(MissingKeyError, match=r"key='.*order_number' selects nothing"):
        key_of(order_number, deliver("ord"))


@pytest.mark.parametrize(
    ("key", "error", "what"),
    [
        pytest.param("x" * 10_000, KeyEncodingError, "has 10000 characters, at most 255", id="10-kb"),
        pytest.param("a\x00b", KeyEncodingError, "control", id="nul"),
        pytest.param("a\nb", KeyEncodingError, "control", id="newline"),
        pytest.param("a\u202eb", KeyEncodingError, "unprintable", id="direction-override"),
        pytest.param("a\ud800b", KeyEncodingError, "unprintable", id="surrogate"),
        pytest.param(17, KeyEncodingError, "is a int, not text", id="number"),
        pytest.param(b"ord", KeyEncodingError, "is a bytes, not text", id="bytes"),
        pytest.param(["ord"], KeyEncodingError, "is a list, not text", id="list"),
        pytest.param("", MissingKeyError, "is empty", id="empty"),
        pytest.param("  ", MissingKeyError, "is empty", id="blank"),
    ],
)
def test_an_odd_key_is_a_typed_error(key: object, error: type[IdempotencyError], what: str) -> None:
    """The error names the task, what is wrong with the key and what to pass, and never the key."""
    with pytest.raises(error, match=what) as caught:
        key_of("order", deliver("ord-17", explicit_key=key))
    assert caught.value.task == TASK
    assert "pass the identifier" in str(caught.value)
    assert not isinstance(key, str) or len(key.strip()) < 2 or key not in str(caught.value)


@pytest.mark.parametrize(
    "value",
    [None, "", "  ", [], {}, (), set(), [None, None], ["", None], [[]], {"a": None}, {"a": {"b": ""}}],
    ids=repr,
)
def test_a_key_that_selects_nothing_is_missing(value: Any) -> None:
    """Nothing, and a collection of nothings, never becomes the one key of all such calls."""
    with pytest.raises(MissingKeyError):
        key_of("order", deliver(value))


@pytest.mark.parametrize("value", [0, False, 0.0, Decimal(0), [0], {"a": False}, [None, 0], ["", "a"]], ids=repr)
def test_a_falsy_key_is_a_key(value: Any) -> None:
    """Zero and False are values like others."""
    assert key_of("order", deliver(value)).startswith("shop.charge#")


@pytest.mark.parametrize("expression", ["order.nosuch", "order.id.deeper", "nosuch", "order[0]", "[order.a, order.b]"])
def test_a_missing_key_names_everything_but_the_values(expression: str) -> None:
    """The error tells the task, the expression, the arguments' names and the way out."""
    with pytest.raises(MissingKeyError) as caught:
        key_of(expression, deliver({"id": SECRET}, note=SECRET))
    text = str(caught.value)
    for part in (TASK, f"key={expression!r}", "'amount', 'more', 'note', 'order', 'rest'", 'missing_key="run"'):
        assert part in text
    assert SECRET not in text


@pytest.mark.parametrize(
    "expression",
    ["sum(order)", "order[::0]", "length(amount)", "join(',', order)", "sum(order, order)"],
)
def test_an_inapplicable_expression_names_everything_but_the_values(expression: str) -> None:
    """JMESPath's own message would quote the arguments; ours does not, nor does its cause."""
    with pytest.raises(KeyEncodingError) as caught:
        key_of(expression, deliver([SECRET, 1]))
    assert caught.value.task == TASK
    assert f"key={expression!r} cannot be applied" in str(caught.value)
    assert SECRET not in str(caught.value)
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__


def test_a_value_without_a_form_names_everything_but_the_values() -> None:
    """The error tells the expression and where in the value the culprit is."""
    with pytest.raises(KeyEncodingError, match=r"key='order' selects a builtins.object at it\[…\]\[1\]") as caught:
        key_of("order", deliver({"card": [SECRET, object()]}))
    assert caught.value.task == TASK
    assert SECRET not in str(caught.value)


def test_arguments_that_do_not_fit_are_a_type_error() -> None:
    """A wrong call fails as calling the body would."""
    with pytest.raises(TypeError, match="missing a required argument: 'order'"):
        key_of("order", deliver(amount=5))


def test_a_missing_payload_names_its_own_option() -> None:
    """The validated part may not silently be nothing."""
    with pytest.raises(MissingKeyError, match="validate='note' selects nothing"):
        payload_digest(deliver("a"), Selector.of("validate", "note"), inspect.signature(charge))


@pytest.mark.parametrize("source", ["order.", "[?", "{id: sort_by(lines, &nosuch(id))}", 7, b"order"], ids=repr)
def test_a_source_that_is_none_is_refused(source: Any) -> None:
    """An expression that does not parse, or something else entirely, fails when the task is declared."""
    with pytest.raises(ConfigurationError, match="key="):
        Selector.of("key", source)


@pytest.mark.parametrize("prefix", ["shop", "x" * 512, "ä" * 256], ids=len)
def test_a_plain_prefix_is_taken(prefix: str) -> None:
    """Printable text of at most 512 bytes."""
    assert check_prefix(prefix) == prefix


@pytest.mark.parametrize("prefix", ["", " ", "a\tb", "x" * 513, "ä" * 257, None, 7], ids=lambda value: repr(value)[:12])
def test_an_odd_prefix_is_refused(prefix: Any) -> None:
    """A prefix must leave room for the digest in a sort key."""
    with pytest.raises(ConfigurationError, match="prefix="):
        check_prefix(prefix)
