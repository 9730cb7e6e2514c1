"""Final failures as outcomes: the same exception again, and never one that the record alone asks for."""

import json
import zlib
from dataclasses import replace
from decimal import Decimal
from typing import Any

import pytest

from idempotent_tasks.core.encoding import FAILURE, MAX_RESULT_BYTES, NONE, decode_failure, encode_failure
from idempotent_tasks.core.records import Outcome, Record, Status
from idempotent_tasks.errors import StoredFailureError
from tests.support.guarding import Interrupt

SECRET = "4111111111111111"


class Declined(Exception):  # noqa: N818 - named as users name theirs
    """Has an initialiser whose arguments are not its ``args``."""

    initialised = 0

    def __init__(self, code: int, *, bank: str) -> None:
        super().__init__(f"declined with {code}")
        self.code = code
        self.bank = bank
        Declined.initialised += 1


class DeclinedForGood(Declined):
    """A subclass."""


class MissingError(OSError):
    """Has attributes that are no entries of ``__dict__``."""

    def __init__(self, path: str) -> None:
        super().__init__(2, "no such file", path)


class Unwritable:
    """Has no JSON form."""

    def __repr__(self) -> str:
        return SECRET


def stored(outcome: Outcome) -> Record:
    """Return the record of an outcome."""
    return Record(
        key="shop.charge#17",
        status=outcome.status,
        expiration=2_000_000_000,
        data=outcome.data,
        codec=outcome.codec,
        error=outcome.error,
        task="shop.charge",
        task_id="id-1",
    )


def with_attributes(error: BaseException, **attributes: Any) -> BaseException:
    """Return the error with more attributes."""
    vars(error).update(attributes)
    return error


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError(),
        LookupError("no", 1, None, Decimal("2.50")),
        KeyError("order"),
        Declined(51, bank="north"),
        DeclinedForGood(51, bank="north"),
        FileNotFoundError(2, "no such file", "/tmp/x"),
        MissingError("/tmp/x"),
        UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte"),
        with_attributes(ValueError("no"), order=17, __notes__=["tried twice"]),
        ArithmeticError("x" * 10_000),
    ],
    ids=lambda error: type(error).__name__,
)
def test_the_same_exception_comes_again(error: Exception) -> None:
    """Type, arguments, attributes and text are those of the first."""
    outcome = encode_failure(error)
    assert outcome.status is Status.FAILED
    assert outcome.error == f"{type(error).__module__}.{type(error).__qualname__}"
    before = Declined.initialised
    again = decode_failure(stored(outcome), [Exception])
    assert (type(again), again.args, vars(again), str(again)) == (type(error), error.args, vars(error), str(error))
    assert again is not error
    assert Declined.initialised == before


def test_what_c_keeps_comes_again() -> None:
    """``errno`` and its like are no entries of ``__dict__``."""
    again = decode_failure(stored(encode_failure(MissingError("/tmp/x"))), [MissingError])
    assert isinstance(again, MissingError)
    assert (again.errno, again.filename) == (2, "/tmp/x")


@pytest.mark.parametrize(
    "error",
    [
        pytest.param(ValueError(Unwritable()), id="argument"),
        pytest.param(with_attributes(ValueError("no"), answer=Unwritable()), id="attribute"),
        pytest.param(ExceptionGroup("all", [OSError()]), id="group"),
    ],
)
def test_what_cannot_be_written_is_still_final(error: Exception) -> None:
    """The outcome is stored without data, and its replay names the original and quotes nothing."""
    outcome = encode_failure(error)
    assert (outcome.status, outcome.codec, outcome.data) == (Status.FAILED, NONE, None)
    with pytest.raises(StoredFailureError, match="no JSON form") as caught:
        decode_failure(stored(outcome), [Exception])
    assert caught.value.original == f"builtins.{type(error).__name__}"
    assert (caught.value.task, caught.value.key) == ("shop.charge", "shop.charge#17")
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize("types", [[], [KeyError], [DeclinedForGood]], ids=["none", "another", "a-subclass"])
def test_only_the_tasks_own_types_are_raised(types: list[type[Exception]]) -> None:
    """A type that is not, or no longer, one of ``store_failures`` is named and never made."""
    with pytest.raises(StoredFailureError, match=r"Declined\).* none of the task's store_failures"):
        decode_failure(stored(encode_failure(Declined(51, bank="north"))), types)


def test_nothing_is_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    """A module that only the record names stays where it is, even if everything is a final failure."""
    record = stored(encode_failure(ValueError()))
    data = json.dumps({"type": "antigravity.Error", "args": [], "state": {}})
    monkeypatch.setattr("builtins.__import__", lambda name, *_: pytest.fail(f"imported {name}"))
    with pytest.raises(StoredFailureError, match="that this process has imported"):
        decode_failure(replace(record, data=data), [Exception])


@pytest.mark.parametrize(
    "data",
    [
        None,
        "",
        "[]",
        "{",
        '{"type": "builtins.ValueError"}',
        '{"type": "builtins.ValueError", "args": 4111111111111111, "state": {}}',
        '{"type": ["builtins.ValueError"], "args": [4111111111111111], "state": 1}',
        '{"type": "builtins.UnicodeDecodeError", "args": [4111111111111111], "state": {}}',
    ],
)
def test_what_cannot_be_read_is_never_guessed(data: str | None) -> None:
    """The replay fails by name and quotes nothing."""
    record = replace(stored(encode_failure(ValueError())), data=data)
    with pytest.raises(StoredFailureError) as caught:
        decode_failure(record, [Exception])
    assert "4111" not in str(caught.value)


@pytest.mark.parametrize("codec", ["json", "failure+zstd", None])
def test_an_unknown_form_is_refused(codec: str | None) -> None:
    """Another version's, and another writer's."""
    record = replace(stored(encode_failure(ValueError())), codec=codec)
    with pytest.raises(StoredFailureError, match="unknown codec"):
        decode_failure(record, [Exception])


def test_a_long_failure_is_compressed() -> None:
    """As a result is."""
    assert encode_failure(ValueError("x" * 10_000)).codec == f"{FAILURE}+zlib"


def test_a_failure_that_inflates_is_not_read() -> None:
    """A few kilobytes of a record do not become hundreds of megabytes."""
    data = zlib.compress(b'{"type": "builtins.ValueError", "args": [' + b" " * 50_000_000 + b'], "state": {}}')
    record = replace(stored(encode_failure(ValueError())), data=data, codec=f"{FAILURE}+zlib")
    with pytest.raises(StoredFailureError, match="cannot be read"):
        decode_failure(record, [Exception])


def test_a_failure_that_is_too_long_is_named() -> None:
    """Its outcome is its type, without its arguments."""
    outcome = encode_failure(ValueError("x" * MAX_RESULT_BYTES))
    assert (outcome.status, outcome.codec, outcome.error) == (Status.FAILED, NONE, "builtins.ValueError")


def test_an_interrupt_is_nobodys_fault() -> None:
    """A soft time limit that strikes while an argument is written is passed on."""

    class Interrupting:
        def __json__(self) -> Any:
            raise Interrupt

    with pytest.raises(Interrupt):
        encode_failure(ValueError(Interrupting()), interrupts=(Interrupt,))
