"""Powertools' written forms: the same digests and texts as the real package's, for whatever can be selected."""

import base64
import gzip
import inspect
import json
from dataclasses import dataclass
from datetime import UTC, date, datetime
from decimal import Decimal
from enum import Enum, IntEnum, StrEnum
from pathlib import PurePosixPath
from typing import Any

import pytest
from aws_lambda_powertools.shared.json_encoder import Encoder
from aws_lambda_powertools.utilities.idempotency import IdempotencyConfig
from aws_lambda_powertools.utilities.idempotency.base import _prepare_data
from aws_lambda_powertools.utilities.idempotency.persistence.dynamodb import DynamoDBPersistenceLayer
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel

from idempotent_tasks.core.encoding import POWERTOOLS, decode_result, encode_result
from idempotent_tasks.core.keys import Selector, payload_digest, record_key
from idempotent_tasks.core.policy import Idempotency
from idempotent_tasks.core.powertools import MAX_INFLATED_BYTES, digest, prepared, result_text
from idempotent_tasks.core.records import Record
from idempotent_tasks.errors import ConfigurationError, KeyEncodingError, MissingKeyError, ResultEncodingError
from tests.support.shop import SECRET, charge, deliver

PREFIX = "shop"
PLENTY = 400_000


class Colour(Enum):
    """A plain enumeration."""

    RED = "red"


class Level(IntEnum):
    """An enumeration of numbers."""

    HIGH = 3


class Word(StrEnum):
    """An enumeration of texts."""

    YES = "yes"


class Exact(Decimal, Enum):
    """A Decimal before it is an enumeration."""

    TENTH = "0.10"


@dataclass
class Line:
    """A dataclass."""

    name: str
    price: Decimal


class Order(BaseModel):
    """A pydantic model."""

    id: str
    placed_at: datetime
    total: Decimal


#: A few kilobytes of an argument that inflate to more than is read.
BOMB = base64.b64encode(gzip.compress(b" " * (MAX_INFLATED_BYTES + 1))).decode()

LINE = Line("tea", Decimal("2.50"))
ORDER = Order(id="ord-17", placed_at=datetime(2026, 3, 1, 12, tzinfo=UTC), total=Decimal("1.10"))

leaves = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text()
    | st.decimals()
    | st.dates()
    | st.times()
    | st.datetimes()
    | st.uuids()
    | st.sampled_from([Colour.RED, Level.HIGH, Word.YES, Exact.TENTH, LINE, ORDER, PurePosixPath("a/b")])
)
values = st.recursive(
    leaves, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner) | st.tuples(inner), max_leaves=20
)
results = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text()
    | st.decimals(allow_nan=False)
    | st.sampled_from([LINE, ORDER, Level.HIGH, Word.YES, Exact.TENTH, Decimal("NaN")]),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=20,
)


def layer(**config: Any) -> Any:
    """Return the real persistence layer, configured; nothing is sent."""
    found = DynamoDBPersistenceLayer(table_name="none", boto3_client=object())  # type: ignore[arg-type,unused-ignore]
    found.configure(IdempotencyConfig(**config), key_prefix=PREFIX)
    return found


LAYER = layer()


def key_of(expression: str, *args: Any, hash_name: str = "md5", **kwargs: Any) -> str:
    """Return the record's key that our side gives a call."""
    selector = Selector.of("key", expression, hash_name)
    return record_key(deliver(*args, **kwargs), PREFIX, selector, inspect.signature(charge))


@settings(deadline=None)
@given(values)
def test_digests_are_those_of_powertools(value: Any) -> None:
    """Whatever an expression selects, its digest is the real package's."""
    assert digest(value, "md5") == LAYER._generate_hash(value)


@settings(deadline=None)
@given(results)
def test_results_are_written_as_by_powertools(value: Any) -> None:
    """Whatever a body returns, its text is the real package's."""
    assert result_text(value) == json.dumps(value, cls=Encoder, sort_keys=True)


@pytest.mark.parametrize(
    "value", [{1, 2}, b"x", object(), {"a": 1, 2: 3}, date(2026, 1, 1)], ids=lambda value: type(value).__name__
)
def test_what_powertools_cannot_write_neither_can_we(value: Any) -> None:
    """A result that would be an error there is one here, by its type only."""
    with pytest.raises(TypeError):
        json.dumps(value, cls=Encoder, sort_keys=True)
    with pytest.raises(ResultEncodingError):
        encode_result(value, POWERTOOLS)


@pytest.mark.parametrize(
    ("event", "expression", "theirs"),
    [
        ({"id": "ord-17", "amount": 5}, "order", ""),
        ({"id": "ord-17", "amount": 5}, "order.id", "id"),
        ({"id": "ord-17", "amount": 5}, "order.[id, amount]", "[id, amount]"),
        ({"id": "ord-17", "amount": 5}, "order.{a: id, b: amount}", "{a: id, b: amount}"),
        ({"lines": [{"sku": 1}, {"sku": 2}]}, "order.lines[*].sku", "lines[*].sku"),
        ({"amount": 0}, "order.amount", "amount"),
        ({"paid": False}, "order.paid", "paid"),
        ({"body": '{"id": 17}'}, "powertools_json(order.body).id", "powertools_json(body).id"),
        ({"data": "aWQ="}, "powertools_base64(order.data)", "powertools_base64(data)"),
        (
            {"data": base64.b64encode(gzip.compress(b"id", mtime=0)).decode()},
            "powertools_base64_gzip(order.data)",
            "powertools_base64_gzip(data)",
        ),
        (ORDER, "order", ""),
        (ORDER, "order.placed_at", "placed_at"),
        (ORDER, "order.[id, total]", "[id, total]"),
        (LINE, "order", ""),
        (LINE, "order.price", "price"),
    ],
    ids=lambda value: str(value)[:30],
)
@pytest.mark.parametrize("hash_name", ["md5", "sha256"])
def test_keys_are_those_of_powertools(event: Any, expression: str, theirs: str, hash_name: str) -> None:
    """Our expression over the arguments selects what theirs selects in the event, and the key is the same text."""
    powertools = layer(event_key_jmespath=theirs, hash_function=hash_name)
    expected = powertools._get_hashed_idempotency_key(_prepare_data(event))
    assert key_of(expression, event, hash_name=hash_name) == expected
    assert key_of(expression, order=event, hash_name=hash_name) == expected


@pytest.mark.parametrize("order", [{"amount": 5}, {"amount": None}, {}, {"amount": ""}], ids=repr)
def test_validation_digests_nothing_as_powertools_does(order: Any) -> None:
    """A payload without the validated part has the digest of ``null``, and is no missing key."""
    selector = Selector.of("validate", "order.amount", "md5")
    powertools = layer(payload_validation_jmespath="amount")
    ours = payload_digest(deliver(order), selector, inspect.signature(charge))
    assert ours == powertools._get_hashed_payload(order)


@pytest.mark.parametrize("order", [{}, {"id": None}, {"id": ""}, {"id": []}], ids=repr)
def test_a_missing_key_is_an_error(order: Any) -> None:
    """Powertools would run such a call unguarded, with a warning."""
    with pytest.raises(MissingKeyError):
        key_of("order.id", order)


@pytest.mark.parametrize(
    ("expression", "order"),
    [
        ("order", {"card": {SECRET}}),
        ("powertools_json(order)", SECRET + "{"),
        ("powertools_base64(order)", SECRET + "\xff"),
        ("powertools_base64_gzip(order)", SECRET),
        ("powertools_base64_gzip(order)", "H4sIAAAAAAAA"),
        ("powertools_base64_gzip(order)", BOMB),
        ("powertools_json(order)", 5),
    ],
    ids=["set", "json", "base64", "not-gzip", "cut-off", "bomb", "number"],
)
def test_what_cannot_be_digested_is_not_quoted(expression: str, order: Any) -> None:
    """The error names the expression and the kind of trouble, and nothing of the arguments."""
    with pytest.raises(KeyEncodingError) as caught:
        key_of(expression, order)
    assert expression.partition("(")[0] in str(caught.value)
    assert SECRET not in str(caught.value)


def test_powertools_functions_are_for_its_keys_only() -> None:
    """A key of our own with such a function would look like one of theirs, and is not."""
    with pytest.raises(ConfigurationError, match="powertools_json"):
        Idempotency(key="powertools_json(body).id")
    assert Idempotency(key="powertools_json(body).id", powertools=True).key_selector is not None


def test_a_callable_selects_what_is_prepared() -> None:
    """A model that a callable returns is read as Powertools reads one."""
    selector = Selector.of("key", lambda order: order, "md5")
    ours = record_key(deliver(ORDER), PREFIX, selector, inspect.signature(charge))
    assert ours == layer()._get_hashed_idempotency_key(_prepare_data(ORDER))
    assert prepared(Order) is Order


def test_powertools_needs_a_key() -> None:
    """The task id, which is the key otherwise, is in no event."""
    with pytest.raises(ConfigurationError, match="needs key="):
        Idempotency(powertools=True, prefix=PREFIX)
    assert Idempotency(key="order.id").over({"powertools": True}).key_selector is not None


def test_its_json_is_plain_json() -> None:
    """A mapping that looks like one of kombu's tags is a mapping."""
    tag_like = {"__type__": "date", "__value__": "2026-03-01"}
    outcome = encode_result(tag_like, POWERTOOLS)
    for codec in (outcome.codec, None):
        record = Record(key="k", status=outcome.status, expiration=0, data=outcome.data, codec=codec)
        assert decode_result(record) == tag_like
