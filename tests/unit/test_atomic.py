"""`Atomic`: what is refused where a body makes it, before anything has taken effect."""

import pickle
from typing import Any

import pytest

from idempotent_tasks import Atomic, AtomicWriteError, ConfigurationError
from idempotent_tasks.core.atomic import MOST_WRITES

PUT: dict[str, Any] = {"Put": {"TableName": "orders", "Item": {"id": {"S": "4111111111111111"}}}}


@pytest.mark.parametrize(
    "write",
    [
        {"TableName": "orders", "Item": {}},
        {"PutRequest": {"TableName": "orders"}},
        {"Put": {"Item": {}}},
        {"Put": {"TableName": 5}},
        {**PUT, "Delete": {"TableName": "orders"}},
        {},
        "Put",
        None,
    ],
    ids=repr,
)
def test_what_is_no_write(write: Any) -> None:
    """It is named by its number."""
    with pytest.raises(ConfigurationError, match="write 2 of Atomic is not a mapping of one of"):
        Atomic(None, [PUT, write])


def test_too_many() -> None:
    """The record takes one place of the transaction's hundred."""
    assert Atomic(None, [PUT] * MOST_WRITES).writes
    with pytest.raises(ConfigurationError, match="has 100 writes, and a transaction takes 99 beside the record"):
        Atomic(None, [PUT] * (MOST_WRITES + 1))


def test_a_refusal_names_tables_and_codes_only() -> None:
    """It goes into logs and result backends, and comes back from them as it was."""
    error = Atomic(None, [PUT, PUT]).refused(["None", "ConditionalCheckFailed"], "shop.charge", "shop.charge#1")
    assert "Put 2 on 'orders': ConditionalCheckFailed" in str(error)
    assert "4111111111111111" not in str(error)
    for copy in (pickle.loads(pickle.dumps(error)), AtomicWriteError(*error.args)):
        assert (str(copy), copy.codes) == (str(error), ("None", "ConditionalCheckFailed"))
