"""Repeating a store's call: until it answers, until a moment passes, and for no other error."""

import math
import random
from collections.abc import Callable, Iterator

import pytest

from idempotent_tasks.errors import RecordCorruptError, StoreMisconfiguredError, StoreUnavailableError
from idempotent_tasks.retries import FIRST_PAUSE, LONGEST_PAUSE, limited, persistently, time_left
from idempotent_tasks.testing import FakeClock


def failing(times: int) -> tuple[Callable[[], str], list[float]]:
    """Return a call that fails this often before it answers, and the list in which it counts."""
    tries: list[float] = []

    def call() -> str:
        tries.append(len(tries))
        if len(tries) <= times:
            raise StoreUnavailableError(f"try {len(tries)}")
        return "answer"

    return call, tries


@pytest.fixture(autouse=True)
def fixed_jitter() -> Iterator[None]:
    """Let the random pauses be the same in every run, so that a failure can be repeated."""
    state = random.getstate()
    random.seed(17)
    yield
    random.setstate(state)


def test_an_answer_is_returned_at_once() -> None:
    """A call that works costs no time and no second try."""
    clock, (call, tries) = FakeClock(), failing(0)
    start = clock.now()
    assert persistently(call, clock=clock, until=start) == "answer"
    assert len(tries) == 1
    assert clock.now() == start


def test_an_outage_shorter_than_the_patience_is_survived() -> None:
    """The call is repeated after pauses on the given clock."""
    clock, (call, tries) = FakeClock(), failing(4)
    start = clock.now()
    assert persistently(call, clock=clock, until=start + 60) == "answer"
    assert len(tries) == 5
    assert start < clock.now() <= start + 4 * LONGEST_PAUSE


def test_the_last_error_comes_out_when_the_time_is_up() -> None:
    """No try starts after the moment that was given, and the error is the last try's own."""
    clock, (call, tries) = FakeClock(), failing(1_000)
    until = clock.now() + 5
    with pytest.raises(StoreUnavailableError) as caught:
        persistently(call, clock=clock, until=until)
    assert caught.value.message == f"try {len(tries)}"
    assert len(tries) > 2
    assert clock.now() <= until


def test_a_moment_that_has_passed_still_allows_one_try() -> None:
    """Who comes late asks once."""
    clock, (call, tries) = FakeClock(), failing(1_000)
    with pytest.raises(StoreUnavailableError, match="try 1"):
        persistently(call, clock=clock, until=clock.now() - 10)
    assert len(tries) == 1


@pytest.mark.parametrize("error", [StoreMisconfiguredError("no table"), RecordCorruptError("odd"), KeyError("bug")])
def test_what_repeating_cannot_mend_is_not_repeated(error: Exception) -> None:
    """Only an unavailable store is asked again."""
    tries = []

    def call() -> None:
        tries.append(1)
        raise error

    clock = FakeClock()
    with pytest.raises(type(error)):
        persistently(call, clock=clock, until=clock.now() + 60)
    assert len(tries) == 1


@pytest.mark.parametrize(("asked", "longest"), [(None, LONGEST_PAUSE), (0.2, 0.2), (0.01, 0.01), (60, LONGEST_PAUSE)])
def test_pauses_grow_to_a_limit(asked: float | None, longest: float) -> None:
    """Pauses are random below a bound that doubles from the first to the longest, or to a shorter one asked for."""
    call, _ = failing(30)
    pauses: list[float] = []

    class Noting(FakeClock):
        def advance(self, seconds: float) -> None:
            pauses.append(seconds)
            super().advance(seconds)

    clock = Noting()
    options = {} if asked is None else {"longest_pause": asked}
    persistently(call, clock=clock, until=clock.now() + 600, **options)
    bounds = [min(FIRST_PAUSE * 2**index, longest) for index in range(30)]
    assert len(pauses) == 30
    assert [pause for pause, bound in zip(pauses, bounds, strict=True) if pause > bound] == []
    assert max(pauses) > longest / 2
    assert len(set(pauses)) == 30


def test_a_call_knows_how_long_it_may_take() -> None:
    """The innermost block that is shorter than those around it counts, and time that passes counts against it."""
    clock = FakeClock()
    assert time_left() == math.inf
    with limited(clock, 5):
        with limited(clock, 60):
            assert time_left() == 5
        clock.advance(2)
        with limited(clock, 1):
            assert time_left() == 1
        assert time_left() == 3
    assert time_left() == math.inf
