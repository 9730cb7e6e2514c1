"""The error tree: one root, sayings of its own, and nothing lost on the way through pickle or a result backend."""

import builtins
import inspect
import json
import pickle
import subprocess
import sys

import pytest
from celery import Celery
from celery.backends.base import Backend

from idempotent_tasks import errors
from idempotent_tasks.errors import (
    DuplicateError,
    IdempotencyError,
    InProgressError,
    StepMismatchError,
    StoredFailureError,
    StoreError,
    StoreUnavailableError,
)

#: Long enough for an interpreter to start on a busy machine.
BOUND_SECONDS = 60.0

CLASSES = [getattr(errors, name) for name in errors.__all__]

#: One error of each class, every attribute set.
SAMPLES = [
    *(
        kind("the text", task="shop.charge", key="shop.charge#17")
        for kind in CLASSES
        if kind not in {InProgressError, DuplicateError, StepMismatchError, StoredFailureError}
    ),
    InProgressError("the text", task="shop.charge", key="shop.charge#17", until=1_700_000_000.5),
    DuplicateError("the text", task="shop.charge", key="shop.charge#17", task_id="4f1c"),
    StepMismatchError("the text", task="shop.charge", key="shop.charge#17", step="charge"),
    StoredFailureError("the text", task="shop.charge", key="shop.charge#17", original="shop.CardDeclined"),
]

each_class = pytest.mark.parametrize("kind", CLASSES, ids=lambda kind: kind.__name__)
each_sample = pytest.mark.parametrize("error", SAMPLES, ids=lambda error: type(error).__name__)


def attributes(error: IdempotencyError) -> dict[str, object]:
    """Return what users read of an error."""
    return {**vars(error), "args": error.args, "text": str(error)}


def test_all_names_every_error() -> None:
    """No error class hides from the list."""
    defined = {name for name, value in vars(errors).items() if inspect.isclass(value) and issubclass(value, Exception)}
    assert defined == set(errors.__all__)


@each_class
def test_one_root(kind: type[IdempotencyError]) -> None:
    """One ``except`` clause catches every error of the library."""
    assert issubclass(kind, IdempotencyError)


@each_class
def test_no_builtin_is_shadowed(kind: type[IdempotencyError]) -> None:
    """A star import of the errors hides no exception of Python's."""
    assert not hasattr(builtins, kind.__name__)


@each_class
def test_the_tree_in_the_docstring_names_it(kind: type[IdempotencyError]) -> None:
    """The tree drawn in the module's docstring is complete."""
    assert kind.__name__ in (errors.__doc__ or "").split()


@each_class
def test_default_message_is_the_docstring(kind: type[IdempotencyError]) -> None:
    """An error raised without a text says the first line of its class's docstring."""
    assert kind.__doc__
    assert str(kind()) == inspect.cleandoc(kind.__doc__).splitlines()[0]


def test_store_errors_are_one_family() -> None:
    """``except StoreError`` catches what the store could not answer, for now or until somebody acts."""
    family = {kind.__name__ for kind in CLASSES if issubclass(kind, StoreError)}
    assert family == {
        "StoreError",
        "StoreUnavailableError",
        "StoreMisconfiguredError",
        "RecordCorruptError",
        "RecordNotFoundError",
        "RecordExistsError",
    }


@each_sample
def test_the_text_says_where(error: IdempotencyError) -> None:
    """The text names the task and the key after the message."""
    assert str(error) == "the text [task 'shop.charge', key 'shop.charge#17']"


def test_the_text_leaves_out_what_is_not_known() -> None:
    """A key without a task stands alone."""
    assert str(StoreUnavailableError("gone", key="k")) == "gone [key 'k']"


@each_sample
@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
def test_pickle_keeps_everything(error: IdempotencyError, protocol: int) -> None:
    """A prefork child hands its errors to the parent by pickle."""
    copy = pickle.loads(pickle.dumps(error, protocol))
    assert type(copy) is type(error)
    assert attributes(copy) == attributes(error)


@each_sample
def test_rebuilding_from_args_keeps_everything(error: IdempotencyError) -> None:
    """All the state of an error is in its ``args``."""
    assert attributes(type(error)(*error.args)) == attributes(error)


@each_sample
def test_a_json_result_backend_keeps_everything(error: IdempotencyError) -> None:
    """``AsyncResult.get()`` raises the worker's error, with its attributes, through Celery's own JSON backend."""
    backend = Backend(app=Celery(set_as_current=False), serializer="json")
    stored = json.loads(json.dumps(backend.prepare_exception(error)))
    copy = backend.exception_to_python(stored)
    assert type(copy) is type(error)
    assert attributes(copy) == attributes(error)


def test_an_interpreter_without_docstrings_says_as_much() -> None:
    """``python -OO`` leaves docstrings out; the texts of the errors stay."""
    program = (
        "from idempotent_tasks import errors\n"
        "kinds = [getattr(errors, name) for name in errors.__all__]\n"
        "print(errors.__doc__, *(str(kind()) for kind in kinds), sep='\\n')"
    )
    command = [sys.executable, "-OO", "-c", program]
    printed = subprocess.run(command, capture_output=True, text=True, check=True, timeout=BOUND_SECONDS).stdout
    assert printed.splitlines() == ["None", *(str(kind()) for kind in CLASSES)]


def test_a_subclass_of_the_users_own_says_what_it_is_derived_from() -> None:
    """Its own docstring is for its readers, and need not be there."""

    class CardError(StoreUnavailableError):
        pass

    assert str(CardError()) == str(StoreUnavailableError())
