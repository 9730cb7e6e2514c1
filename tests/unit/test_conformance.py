"""The shipped suite rejects stores that are wrong, and says what is wrong with them."""

import inspect
import operator
import subprocess
import sys
from collections.abc import Callable, Iterator
from itertools import product
from pathlib import Path
from typing import Any

import pytest

from idempotent_tasks import DynamoDBStore
from idempotent_tasks.core.store import Store
from idempotent_tasks.testing import FakeClock, MemoryStore, StoreConformance
from idempotent_tasks.testing.conformance import CallConformance, RaceConformance, SequenceConformance
from idempotent_tasks.testing.conformance.base import Conformance
from idempotent_tasks.testing.conformance.sequences import failing_sequence
from simulation import wire
from simulation.network import DirectClient, Service
from tests.support.wrong_stores import UNLOCKED, WRONG_STORES, WrongStore

MakeStore = Callable[..., Store]
wire_compare = wire._compare


def failures(make: MakeStore, suite: Conformance) -> Iterator[str]:
    """Run the suite's tests as pytest does, and yield the names of those that a store fails."""
    arguments = suite.arguments()
    for name, test in inspect.getmembers(suite, inspect.ismethod):
        if not name.startswith("test_"):
            continue
        parameters = set(inspect.signature(test).parameters)
        chosen = [arguments[each] for each in sorted(parameters & set(arguments))]
        for ids in product(*chosen):
            given = {
                each: arguments[each][id_] for each, id_ in zip(sorted(parameters & set(arguments)), ids, strict=True)
            }
            clock = FakeClock()
            fixtures = {"store": make(clock=clock), "idempotency_clock": clock}
            try:
                test(**given, **{each: fixtures[each] for each in parameters & set(fixtures)})
            except Exception:  # noqa: BLE001 - a wrong store may fail in any way
                yield "-".join([name, *ids])


@pytest.mark.parametrize("wrong", WRONG_STORES, ids=lambda wrong: wrong.name)
def test_a_wrong_store_is_rejected(wrong: WrongStore) -> None:
    """By a test of a single call, or by the random sequences."""
    make = wrong.made()
    assert any(failures(make, CallConformance())) or any(failures(make, SequenceConformance()))


def test_the_unchanged_store_is_not() -> None:
    """What makes the wrong stores changes nothing else."""
    make = WrongStore("unchanged", "claim", "with self._lock:", "with self._lock:").made()
    assert list(failures(make, StoreConformance())) == []


def test_a_store_that_checks_and_writes_in_two_steps_is_rejected(monkeypatch: pytest.MonkeyPatch) -> None:
    """By threads that race."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        assert any("race" in name for name in failures(UNLOCKED.made(), RaceConformance()))
    finally:
        sys.setswitchinterval(before)


def _wrongly_compared(left: Any, operator: str, right: Any) -> bool:
    """Compare a missing attribute as if it were equal to anything."""
    return left is None or right is None or wire_compare(left, operator, right)


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("_ORDERED", {**wire._ORDERED, "<": operator.le}),
        ("_ORDERED", {**wire._ORDERED, ">": operator.ge}),
        ("_compare", _wrongly_compared),
        ("_size", lambda value: value and {"N": str(len(next(iter(value.values()))) + 1)}),
    ],
    ids=["less", "greater", "missing", "size"],
)
def test_a_wrong_interpreter_is_rejected(monkeypatch: pytest.MonkeyPatch, name: str, wrong: object) -> None:
    """What the simulation has instead of DynamoDB, under the shipped store."""
    monkeypatch.setattr(wire, name, wrong)

    def make(clock: FakeClock) -> Store:
        return DynamoDBStore("idempotency", client=DirectClient(Service(clock.now)), clock=clock)

    assert any(failures(make, CallConformance())) or any(failures(make, SequenceConformance()))


def test_no_part_of_the_suite_hides_another() -> None:
    """Each test of each part is a test of the whole: no two parts have one of the same name."""
    parts = [part for part in StoreConformance.__mro__ if part is not object]
    names = [name for part in parts for name in vars(part) if name.startswith("test_")]
    assert len(names) == len(set(names)) > 100


def test_a_failing_sequence_is_short_and_says_what_differs() -> None:
    """The seed, the steps that are needed, the answer and the record, and what is permitted instead."""
    wrong = next(wrong for wrong in WRONG_STORES if wrong.name == "keeps-the-fence")
    clock = FakeClock()
    store = MemoryStore(clock=clock)
    assert failing_sequence(7, store, clock, store.forget) is None
    clock = FakeClock()
    store = wrong.made()(clock=clock)  # type: ignore[assignment]
    message = failing_sequence(7, store, clock, store.forget)
    assert message is not None
    head, *lines = message.splitlines()
    steps = [line for line in lines if line.startswith("    ")]
    assert head.startswith(f"seed 7, {len(steps)} of its first ")
    assert 2 <= len(steps) <= 4
    assert [line.partition("(")[0].strip() for line in steps][-1] == "claim"
    assert [line.split()[0] for line in lines[len(steps) :]] == ["answered", "and", "permitted", "and"]


class TestUsed:
    """The suite as its users run it."""

    TEST = """
import pytest
from idempotent_tasks.testing import MemoryStore, StoreConformance

class Forgetful(MemoryStore):
    def release(self, claim, reason, *, crashed=False, began=True, nothing_done=False):
        return super().release(claim, reason, crashed=crashed, nothing_done=nothing_done)

class TestMemory(StoreConformance):
    seeds = range(5)
    @pytest.fixture
    def store(self, idempotency_clock):
        return {store}(clock=idempotency_clock)
"""

    def run(self, folder: Path, store: str) -> "subprocess.CompletedProcess[str]":
        """Run pytest in a folder with nothing but a test of this store."""
        (folder / "test_store.py").write_text(self.TEST.replace("{store}", store))
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:randomly", "test_store.py"]
        return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)

    def test_a_store_that_keeps_the_protocol_passes(self, tmp_path: Path) -> None:
        """Every test is collected, none is skipped."""
        done = self.run(tmp_path, "MemoryStore")
        assert done.returncode == 0, done.stdout + done.stderr
        assert "skipped" not in done.stdout

    def test_a_store_that_does_not_fails(self, tmp_path: Path) -> None:
        """With the values that an assertion compared."""
        done = self.run(tmp_path, "Forgetful")
        assert done.returncode == 1
        assert "test_release_a_body_that_never_began_takes_back_its_own_attempt_only" in done.stdout
        assert "assert 0 == 2" in done.stdout


def test_the_suite_is_imported_without_pytest() -> None:
    """An application that uses the other tools of `idempotent_tasks.testing` need not have it."""
    source = "import sys; sys.modules['pytest'] = None; import idempotent_tasks.testing as t; t.StoreConformance()"
    subprocess.run([sys.executable, "-c", source], check=True)
