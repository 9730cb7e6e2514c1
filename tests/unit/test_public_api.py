"""The public names: a list spelled out here, so that adding or losing one is a decision."""

import inspect
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

import pytest

import idempotent_tasks
from idempotent_tasks import testing

PUBLIC = {
    "Atomic",
    "AtomicWriteError",
    "ConfigurationError",
    "CrashLoopError",
    "Done",
    "DuplicateError",
    "DynamoDBStore",
    "Idempotency",
    "IdempotencyError",
    "IdempotentTask",
    "InProgressError",
    "KeyEncodingError",
    "MemoryStore",
    "MissingKeyError",
    "NotDone",
    "PayloadMismatchError",
    "Record",
    "RecordCorruptError",
    "RecordExistsError",
    "RecordNotFoundError",
    "ResultEncodingError",
    "ResultUnavailableError",
    "S3Results",
    "Status",
    "StepMismatchError",
    "Store",
    "StoreError",
    "StoreMisconfiguredError",
    "StoreUnavailableError",
    "StoredFailureError",
    "Unknown",
    "UnresolvedError",
    "register_type",
}
PUBLIC_FOR_TESTS = {
    "Crash",
    "FakeClock",
    "MemoryStore",
    "Redelivery",
    "StoreConformance",
    "WorkerDied",
    "crash_plans",
    "redeliver",
    "temporary_settings",
}


def without_docstring(owner: object, path: str) -> Iterator[str]:
    """Yield the public callables of ours, from `owner` down into its methods, that say nothing about themselves."""
    if not (getattr(owner, "__doc__", None) or "").strip():
        yield path
    if not inspect.isclass(owner):
        return
    for name, member in vars(owner).items():
        function = member.fget if isinstance(member, property) else getattr(member, "__func__", member)
        if not name.startswith("_") and inspect.isroutine(function):
            yield from without_docstring(function, f"{path}.{name}")


def test_all_is_the_list() -> None:
    """The package offers the names spelled out above, each once, and in order."""
    assert set(idempotent_tasks.__all__) == PUBLIC
    assert len(idempotent_tasks.__all__) == len(PUBLIC)


def test_every_name_is_there() -> None:
    """Each public name can be imported."""
    assert [name for name in PUBLIC if not hasattr(idempotent_tasks, name)] == []


def test_the_testing_module_offers_its_list() -> None:
    """What users need in their own tests can be imported from one place."""
    assert set(testing.__all__) == PUBLIC_FOR_TESTS
    assert [name for name in PUBLIC_FOR_TESTS if not hasattr(testing, name)] == []


@pytest.mark.parametrize(
    ("module", "name"),
    [*((idempotent_tasks, name) for name in sorted(PUBLIC)), *((testing, name) for name in sorted(PUBLIC_FOR_TESTS))],
    ids=lambda value: value if isinstance(value, str) else value.__name__,
)
def test_public_things_have_docstrings(module: ModuleType, name: str) -> None:
    """Each public class, and each public method and property that it defines, says what it does."""
    assert list(without_docstring(getattr(module, name), name)) == []


def test_a_missing_docstring_is_seen() -> None:
    """The docstring check looks into methods, properties and class methods."""

    class Silent:
        """Say something."""

        @property
        def size(self) -> int:
            return 0

        @classmethod
        def make(cls) -> None:
            pass

    assert list(without_docstring(Silent, "Silent")) == ["Silent.size", "Silent.make"]


def test_the_package_is_typed() -> None:
    """Type checkers of users read the annotations: the marker of PEP 561 lies beside the code."""
    spec = find_spec("idempotent_tasks")
    assert spec is not None
    assert spec.origin is not None
    assert Path(spec.origin).with_name("py.typed").is_file()


def test_importing_does_nothing_but_import() -> None:
    """An import starts no thread, opens no connection and makes no boto3 session."""
    source = (
        "import socket, threading\n"
        "def refuse(*_): raise AssertionError('connected while importing')\n"
        "socket.socket.connect = refuse\n"
        "import idempotent_tasks, boto3\n"
        "assert boto3.DEFAULT_SESSION is None, 'made a boto3 session'\n"
        "assert threading.active_count() == 1, threading.enumerate()\n"
    )
    done = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
