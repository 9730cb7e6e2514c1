"""Results to text and back: everything replays as itself, and what cannot be stored says so without quoting it."""

import ast
import json
import os
import pickle
import tracemalloc
import zlib
from collections.abc import Iterator
from dataclasses import replace
from datetime import date, datetime
from decimal import Decimal
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kombu import serialization

from idempotent_tasks.core.encoding import (
    COMPRESS_ABOVE,
    JSON,
    MAX_RESULT_BYTES,
    NONE,
    PICKLE,
    decode_result,
    encode_result,
    size_of,
    text_of,
    unreplayable,
)
from idempotent_tasks.core.records import Outcome, Record, Status
from idempotent_tasks.errors import ResultEncodingError, ResultUnavailableError, StoredFailureError
from tests.support.guarding import Interrupt

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
    return decode_result(stored(encode_result(value)))


class Unwritable:
    """Has no JSON form, and a representation that must not be logged."""

    def __repr__(self) -> str:
        return SECRET


class Bomb:
    """Counts how often it was unpickled."""

    exploded = 0

    def __reduce__(self) -> tuple[Any, ...]:
        return explode, ()


def explode() -> None:
    """Run in whoever reads a pickled `Bomb`."""
    Bomb.exploded += 1


def interrupt() -> None:
    """Be interrupted."""
    raise Interrupt


class Interrupting:
    """Is interrupted while it is written."""

    def __json__(self) -> Any:
        interrupt()

    def __reduce__(self) -> Any:
        interrupt()


#: Reading it calls `interrupt`.
PICKLED_INTERRUPTED = pickle.dumps(interrupt)[:-1] + b")R."


class Treacherous:
    """Offers a JSON form, then breaks while writing it."""

    def __json__(self) -> Any:
        return self.missing  # type: ignore[attr-defined]


@pytest.mark.parametrize("value", [None, 0, "", [], {}, False, 0.0], ids=repr)
def test_falsy_results_are_results(value: Any) -> None:
    """Nothing that a body returns is mistaken for nothing stored."""
    outcome = encode_result(value)
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
        encode_result(value)
    assert type(value).__qualname__ in str(caught.value)
    assert SECRET not in str(caught.value)
    assert caught.value.__suppress_context__


def test_an_endless_result_is_an_error() -> None:
    """A result that contains itself does not end the worker."""
    value: list[Any] = []
    value.append(value)
    with pytest.raises(ResultEncodingError):
        encode_result(value)


class TestCompression:
    """Long results are compressed, and say so in their codec's name."""

    @pytest.mark.parametrize("value", ["x" * (COMPRESS_ABOVE - 1), "é" * COMPRESS_ABOVE, ["row"] * 100_000], ids=len)
    def test_a_long_result_gets_short(self, value: Any) -> None:
        """It is stored as bytes, and replays as itself."""
        outcome = encode_result(value)
        assert (outcome.codec, type(outcome.data)) == ("json+zlib", bytes)
        assert size_of(outcome) < COMPRESS_ABOVE / 3
        assert decode_result(stored(outcome)) == value

    def test_a_short_result_stays_readable(self) -> None:
        """Up to the last byte of the bound a person can read it in the table."""
        value = "x" * (COMPRESS_ABOVE - 2)
        assert encode_result(value) == Outcome(status=Status.COMPLETED, codec=JSON, data=f'"{value}"')

    def test_noise_stays_as_it_is(self) -> None:
        """What compression would make larger is not compressed."""
        noise = os.urandom(COMPRESS_ABOVE)
        outcome = encode_result(noise, PICKLE)
        assert outcome.codec == PICKLE
        assert decode_result(stored(outcome), accepted={PICKLE}) == noise

    def test_people_see_the_text(self) -> None:
        """What the command line shows is the text."""
        assert text_of(stored(encode_result(["x"] * 5000))) == json.dumps(["x"] * 5000).encode()
        assert text_of(record("[1]", None)) == "[1]"


def bomb(inner: bytes, times: int) -> bytes:
    """Return a few kilobytes that inflate to ``times`` megabytes of JSON: a list with so much of something in it."""
    deflating = zlib.compressobj(9)
    megabyte = inner * (1_000_000 // len(inner))
    parts = [deflating.compress(b"["), *(deflating.compress(megabyte) for _ in range(times))]
    return b"".join([*parts, deflating.compress(b"0]"), deflating.flush()])


class TestLimit:
    """What is read stops where nothing longer was ever written."""

    @pytest.mark.parametrize("codec", ["json+zlib", "pickle+zlib", "powertools+zlib"])
    @pytest.mark.parametrize("inner", [b" ", b"[],"], ids=["blanks", "lists"])
    def test_a_bomb_does_not_go_off(self, codec: str, inner: bytes) -> None:
        """A small record takes no more memory than the largest result; the error names task and key, and the limit."""
        data = bomb(inner, 60)
        assert len(data) < 1_000_000
        tracemalloc.start()
        with pytest.raises(ResultUnavailableError, match=f"larger than the {MAX_RESULT_BYTES} bytes") as caught:
            decode_result(record(data, codec), accepted={PICKLE})
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert peak < 3 * MAX_RESULT_BYTES
        assert (caught.value.task, caught.value.key) == ("shop.charge", "shop.charge#17")

    def test_people_are_not_shown_it_either(self) -> None:
        """The command line reads through the same function."""
        with pytest.raises(ValueError, match="larger than"):
            text_of(record(bomb(b" ", 60), "json+zlib"))

    def test_the_largest_result_replays(self) -> None:
        """What is stored is read: up to the last byte."""
        outcome = encode_result("x" * (MAX_RESULT_BYTES - 2))
        assert outcome.codec == "json+zlib"
        assert len(decode_result(stored(outcome))) == MAX_RESULT_BYTES - 2

    def test_a_larger_one_is_not_stored(self) -> None:
        """The task succeeds, and its outcome says why it has no result: no reader would take it."""
        outcome = encode_result("x" * (MAX_RESULT_BYTES - 1))
        assert (outcome.status, outcome.codec, outcome.data) == (Status.COMPLETED, NONE, None)
        assert outcome.error is not None
        assert f"has {MAX_RESULT_BYTES + 1} bytes as json, at most {MAX_RESULT_BYTES} are stored" in outcome.error

    def test_digits_without_end_are_no_number(self) -> None:
        """Python reads no number of more than a few thousand digits, which would take it minutes."""
        with pytest.raises(ResultUnavailableError, match="not readable JSON"):
            decode_result(record("9" * 1_000_000, JSON))


class TestPickle:
    """Python's own format, where the app wants it."""

    def test_everything_keeps_its_type(self) -> None:
        """What has no JSON form replays as itself."""
        outcome = encode_result({("a", 1): {2, 3}}, PICKLE)
        assert outcome.codec == PICKLE
        assert decode_result(stored(outcome), accepted={PICKLE}) == {("a", 1): {2, 3}}

    def test_it_is_not_read_where_the_app_does_not_accept_it(self) -> None:
        """Whoever can write a record must not run code in a worker that reads no pickle."""
        outcome = encode_result(Bomb(), PICKLE)
        with pytest.raises(ResultUnavailableError, match="stored as pickle, which this app does not accept"):
            decode_result(stored(outcome))
        assert Bomb.exploded == 0
        decode_result(stored(outcome), accepted={PICKLE})
        assert Bomb.exploded == 1

    def test_what_cannot_be_pickled(self) -> None:
        """The error names the type and the format."""
        with pytest.raises(ResultEncodingError, match=r"of type function cannot be written as PICKLE .* picklable"):
            encode_result(lambda: SECRET, PICKLE)


class Textless:
    """Cannot be shown."""

    def __repr__(self) -> str:
        raise ValueError(SECRET)


class TestAnotherSerializer:
    """One of kombu's, or of the app's own, that the app writes its results and messages with."""

    @pytest.fixture(autouse=True)
    def literal(self) -> Iterator[None]:
        """Register a serializer of the app's own, which writes Python's literals."""
        serialization.register("literal", repr, ast.literal_eval, "application/x-literal", "utf-8")
        yield
        serialization.unregister("literal")

    @pytest.mark.parametrize("value", [{17: (1, 2)}, None, [], {1, 2}], ids=repr)
    def test_everything_that_it_writes_keeps_its_type(self, value: Any) -> None:
        """A record is read by the name of what wrote it."""
        outcome = encode_result(value, "literal")
        assert (outcome.codec, outcome.data) == ("literal", repr(value))
        assert decode_result(stored(outcome), accepted=["literal"]) == value

    def test_a_long_one_is_compressed(self) -> None:
        """As JSON is."""
        outcome = encode_result(["tea"] * 4096, "literal")
        assert outcome.codec == "literal+zlib"
        assert decode_result(stored(outcome), accepted=["literal"]) == ["tea"] * 4096

    def test_it_is_not_read_where_the_app_does_not_accept_it(self) -> None:
        """Whatever its reader does, the app has not asked for it; pickle is no exception to that."""
        outcome = encode_result([SECRET], "literal")
        for accepted in ([PICKLE], [JSON, PICKLE, "yaml"]):
            with pytest.raises(ResultUnavailableError, match="stored as literal, which this app does not accept"):
                decode_result(stored(outcome), accepted=accepted)

    def test_what_it_cannot_write_or_read(self) -> None:
        """The errors name the type and the format, and quote nothing."""
        with pytest.raises(ResultEncodingError, match=r"cannot be written as LITERAL .* return what literal can write"):
            encode_result(Textless(), "literal")
        with pytest.raises(ResultUnavailableError, match="is not readable LITERAL") as caught:
            decode_result(record(f"[{SECRET}", "literal"), accepted=["literal"])
        assert SECRET not in str(caught.value)

    def test_an_interrupt_is_passed_on(self) -> None:
        """Kombu takes whatever is raised meanwhile for the value's fault."""

        def interrupt(_: Any) -> Any:
            raise Interrupt

        serialization.register("literal", interrupt, interrupt, "application/x-literal", "utf-8")
        with pytest.raises(Interrupt):
            encode_result(1, "literal", interrupts=(Interrupt,))
        with pytest.raises(Interrupt):
            decode_result(record("1", "literal"), accepted=["literal"], interrupts=(Interrupt,))


@pytest.mark.parametrize("codec", [JSON, PICKLE])
def test_an_interrupt_is_nobodys_fault(codec: str) -> None:
    """A soft time limit that strikes while a value is written or read is passed on, not taken for the value's."""
    with pytest.raises(Interrupt):
        encode_result(Interrupting(), codec, interrupts=(Interrupt,))
    with pytest.raises(Interrupt):
        decode_result(record(PICKLED_INTERRUPTED, PICKLE), accepted={PICKLE}, interrupts=(Interrupt,))


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
        pytest.param(record("gASVBQ==", "cbor"), "unknown codec 'cbor'", id="codec-of-another-version"),
        pytest.param(record(b"x", "json+zstd"), "unknown codec 'json\\+zstd'", id="another-compression"),
        pytest.param(record("s3://b/0", "json+s3"), r"unknown codec 'json\+s3'", id="elsewhere"),
        pytest.param(record('{"type": "x"}', "failure"), "unknown codec 'failure'", id="failure-as-result"),
        pytest.param(record(zlib.compress(b"[1]" * 99)[:-9], "json+zlib"), "not readable JSON", id="cut-off-zlib"),
        pytest.param(record("[1]", "json+zlib"), "not readable JSON", id="not-compressed"),
        pytest.param(record(None, "json+zlib"), "not readable JSON", id="no-data"),
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
    with pytest.raises(StoredFailureError, match=r"failed for good \(CardDeclinedError\)") as caught:
        decode_result(failed)
    assert caught.value.original == "CardDeclinedError"


@pytest.mark.parametrize(("data", "value"), [('{"paid": true}', {"paid": True}), (b"[1]", [1]), (None, None)], ids=repr)
def test_a_powertools_record_is_json(data: str | bytes | None, value: Any) -> None:
    """A record without a codec's name holds JSON text, or None for a function that returned nothing."""
    assert decode_result(record(data, None)) == value


def test_a_record_of_an_unknown_writer() -> None:
    """Where no task id is known, the error says so."""
    with pytest.raises(ResultUnavailableError, match="task of another writer ran already"):
        decode_result(record("x", None, task_id=None))
