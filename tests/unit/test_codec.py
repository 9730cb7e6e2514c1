"""Results to text and back: everything replays as itself, and what cannot be stored says so without quoting it."""

from dataclasses import replace
from datetime import date, datetime
from decimal import Decimal
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from idempotent_tasks.codec import JSON, NONE, decode_result, encode_result, unreplayable
from idempotent_tasks.errors import ResultEncodingError, ResultUnavailableError
from idempotent_tasks.records import Outcome, Record, Status

PLENTY = 400_000
SECRET = "4111111111111111"

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=20,
)


def record(
    data: str | bytes | None, codec: str | None, error: str | None = None, task_id: str | None = "id-1"
) -> Record:
    """Return a completed record."""
    return Record(
        key="shop.charge#17",
        status=Status.COMPLETED,
        expiration=2_000_000_000,
        data=data,
        codec=codec,
        error=error,
        task="shop.charge",
        task_id=task_id,
    )


def stored(outcome: Outcome) -> Record:
    """Return the record of an outcome."""
    return record(outcome.data, outcome.codec, outcome.error)


def replayed(value: Any) -> Any:
    """Return a result after storing and reading it."""
    return decode_result(stored(encode_result(value, PLENTY)))


class Unwritable:
    """Has no JSON form, and a representation that must not be logged."""

    def __repr__(self) -> str:
        return SECRET


class Treacherous:
    """Offers a JSON form, then breaks while writing it."""

    def __json__(self) -> Any:
        return self.missing  # type: ignore[attr-defined]


@pytest.mark.parametrize("value", [None, 0, "", [], {}, False, 0.0], ids=repr)
def test_falsy_results_are_results(value: Any) -> None:
    """Nothing that a body returns is mistaken for nothing stored."""
    outcome = encode_result(value, PLENTY)
    assert (outcome.status, outcome.codec) == (Status.COMPLETED, JSON)
    assert outcome.data is not None
    assert replayed(value) == value
    assert type(replayed(value)) is type(value)


@given(json_values)
def test_json_results_replay_as_themselves(value: Any) -> None:
    """A replay equals what the body returned."""
    assert replayed(value) == value


@pytest.mark.parametrize(
    "value",
    [
        date(2026, 3, 1),
        datetime.fromisoformat("2026-03-01T12:00"),
        Decimal("2.50"),
        UUID(int=7),
        b"\xff\x00",
        "\u2028\U0001f600",
    ],
    ids=repr,
)
def test_what_celery_can_send_can_be_replayed(value: Any) -> None:
    """Types that kombu's JSON knows keep their type."""
    assert replayed([value]) == [value]


@pytest.mark.parametrize(
    "value",
    [Unwritable(), {1, 2}, [Unwritable()], {("a", "b"): SECRET}, Treacherous()],
    ids=lambda value: type(value).__name__,
)
def test_an_unwritable_result_is_named_by_type_only(value: Any) -> None:
    """The error says what kind of result it was and what to return instead, and quotes nothing."""
    with pytest.raises(ResultEncodingError, match="return JSON types") as caught:
        encode_result(value, PLENTY)
    assert type(value).__qualname__ in str(caught.value)
    assert SECRET not in str(caught.value)
    assert caught.value.__suppress_context__


def test_an_endless_result_is_an_error() -> None:
    """A result that contains itself does not end the worker."""
    value: list[Any] = []
    value.append(value)
    with pytest.raises(ResultEncodingError):
        encode_result(value, PLENTY)


@pytest.mark.parametrize(("text", "fits"), [("x" * 8, True), ("x" * 9, False), ("é", True)])
def test_the_stores_limit_is_in_bytes_of_the_text(text: str, fits: bool) -> None:
    """A result fits up to the last byte; one that does not is completed without data."""
    outcome = encode_result(text, 10)
    assert outcome.status is Status.COMPLETED
    assert (outcome.data is not None) is fits
    assert (outcome.codec == JSON) is fits


def test_a_large_result_says_why_it_is_not_there() -> None:
    """The record of a large result tells its size and the limit, and nothing of the result."""
    outcome = encode_result(SECRET * 100, 1_000)
    assert outcome.error == "the result has 1602 bytes as JSON, the store takes 1000"
    with pytest.raises(ResultUnavailableError, match="has 1602 bytes"):
        decode_result(stored(outcome))


def test_an_unreplayable_outcome_names_its_reason() -> None:
    """Who replays learns which task ran, under which key, why there is no result, and that nothing runs."""
    with pytest.raises(
        ResultUnavailableError, match=r"task id-1 ran already, but out of ink; the body does not"
    ) as caught:
        decode_result(stored(unreplayable("out of ink")))
    assert (caught.value.task, caught.value.key) == ("shop.charge", "shop.charge#17")


@pytest.mark.parametrize(
    ("unreadable", "why"),
    [
        pytest.param(record(None, NONE), "its result was not stored", id="no-reason"),
        pytest.param(record("gASVBQ==", "pickle"), "unknown codec 'pickle'", id="codec-of-another-version"),
        pytest.param(record('{"order": 4111', JSON), "not readable JSON", id="cut-off"),
        pytest.param(record(b"\xff\xfe", JSON), "not readable JSON", id="not-text"),
        pytest.param(record('{"__type__": "colour", "__value__": 1}', JSON), "not readable JSON", id="unknown-tag"),
        pytest.param(record(f'{{"__type__": "date", "__value__": {SECRET}}}', JSON), "not readable JSON", id="bad-tag"),
        pytest.param(record('{"__type__": "decimal", "__value__": "x"}', JSON), "not readable JSON", id="bad-number"),
        pytest.param(record('{"__type__": "bytes", "__value__": 1}', JSON), "not readable JSON", id="bad-bytes"),
        pytest.param(record("[" * 100_000, JSON), "not readable JSON", id="too-deep"),
    ],
)
def test_what_cannot_be_read_is_never_guessed(unreadable: Record, why: str) -> None:
    """A replay without a readable result fails by name, and quotes nothing of the record's data."""
    with pytest.raises(ResultUnavailableError, match=why) as caught:
        decode_result(unreadable)
    assert "4111" not in str(caught.value)


def test_a_stored_failure_is_no_result() -> None:
    """A key that failed for good, by another writer's decision, never replays as a success."""
    failed = replace(record('"x"', JSON, error="CardDeclinedError"), status=Status.FAILED)
    with pytest.raises(ResultUnavailableError, match=r"failed for good \(CardDeclinedError\)"):
        decode_result(failed)


@pytest.mark.parametrize(("data", "value"), [('{"paid": true}', {"paid": True}), (b"[1]", [1]), (None, None)], ids=repr)
def test_a_powertools_record_is_json(data: str | bytes | None, value: Any) -> None:
    """A record without a codec's name holds JSON text, or None for a function that returned nothing."""
    assert decode_result(record(data, None)) == value


def test_a_record_of_an_unknown_writer() -> None:
    """Where no task id is known, the error says so."""
    with pytest.raises(ResultUnavailableError, match="task of another writer ran already"):
        decode_result(record("x", None, task_id=None))
