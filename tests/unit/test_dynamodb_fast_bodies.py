"""Bodies of requests on the fast path: whatever earlier requests had, they are what `json.dumps` writes."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from idempotent_tasks.stores.dynamodb.fast import client

NAMES = "ExpressionAttributeNames"
texts = st.sampled_from(["", "#a = :a", 'say "é"', "\\", "\u2028"])
#: Few, so that several requests have the same ones, in another order too.
names = st.dictionaries(st.sampled_from(["#a", "#b", "#é"]), texts, max_size=3)
values: st.SearchStrategy[dict[str, Any]] = st.dictionaries(
    texts, st.fixed_dictionaries({"S": texts}) | st.just({"M": {}}), max_size=3
)
requests = st.fixed_dictionaries(
    {"TableName": texts, "Key": values},
    optional={"UpdateExpression": texts, NAMES: names, "ExpressionAttributeValues": values, "Limit": st.integers()},
)


@given(st.lists(requests, min_size=1, max_size=6))
def test_each_of_some_requests_is_written_as_if_it_were_the_only_one(some: list[dict[str, Any]]) -> None:
    """What is kept of one request is in no other that differs from it."""
    assert [client._body_of(each).decode() for each in some] == [json.dumps(each) for each in some]


def test_names_are_written_as_they_are_now() -> None:
    """Who changes the names of a request that was sent has the changed ones sent."""
    changed = {NAMES: {"#a": "one"}}
    client._body_of(changed)
    changed[NAMES]["#a"] = "two"
    assert client._body_of(changed).decode() == json.dumps(changed)


def test_what_requests_share_is_encoded_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Expressions and names, of which a request mostly consists; that is what makes the path fast."""
    shared = {"UpdateExpression": "SET #shared = :a", NAMES: {"#shared": "a"}}
    client._body_of({**shared, "Key": {"id": {"S": "one"}}})
    encoded: list[object] = []
    encode = client._ENCODER.encode

    def noted(value: object) -> str:
        encoded.append(value)
        return encode(value)

    monkeypatch.setattr(client._ENCODER, "encode", noted)
    client._body_of({**shared, "Key": {"id": {"S": "two"}}})
    assert encoded == [{"id": {"S": "two"}}]
