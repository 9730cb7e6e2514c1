"""Repeating a store's call: until it answers, until a moment passes, and for no other error."""

import math
import random
from collections.abc import Callable

import pytest

from idempotent_tasks.core.retry import FIRST_PAUSE, LONGEST_PAUSE, SHORTEST_TRY, limited, persistently, time_left
from idempotent_tasks.errors import RecordCorruptError, StoreError, StoreMisconfiguredError, StoreUnavailableError
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


def test_an_answer_is_returned_at_once() -> None:
    """A call that works costs no time and no second try."""
    clock, (call, tries) = FakeClock(), failing(0)
    start = clock.now()
    assert persistently(call, clock=clock, seconds=0) == "answer"
    assert len(tries) == 1
    assert clock.now() == start


def test_an_outage_shorter_than_the_patience_is_survived() -> None:
    """The call is repeated after pauses on the given clock."""
    clock, (call, tries) = FakeClock(), failing(4)
    start = clock.now()
    assert persistently(call, clock=clock, seconds=60) == "answer"
    assert len(tries) == 5
    assert start < clock.now() <= start + 4 * LONGEST_PAUSE


def test_the_last_error_comes_out_when_the_time_is_up() -> None:
    """No try starts after the moment that was given, and the error is the last try's own."""
    clock, (call, tries) = FakeClock(), failing(1_000)
    end = clock.now() + 5
    with pytest.raises(StoreUnavailableError) as caught:
        persistently(call, clock=clock, seconds=5)
    assert caught.value.message == f"try {len(tries)}"
    assert len(tries) > 2
    assert clock.now() <= end


def test_a_moment_that_has_passed_still_allows_one_try() -> None:
    """Who comes late asks once."""
    clock, (call, tries) = FakeClock(), failing(1_000)
    with pytest.raises(StoreUnavailableError, match="try 1"):
        persistently(call, clock=clock, seconds=-10)
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
        persistently(call, clock=clock, seconds=60)
    assert len(tries) == 1


@pytest.mark.parametrize(("asked", "longest"), [(0.2, 0.2), (0.01, 0.01), (60, LONGEST_PAUSE)])
def test_pauses_grow_to_a_limit(asked: float, longest: float) -> None:
    """Pauses are random below a bound that doubles from the first to the longest, or to a shorter one asked for."""
    call, _ = failing(30)
    pauses: list[float] = []

    class Noting(FakeClock):
        def advance(self, seconds: float) -> None:
            pauses.append(seconds)
            super().advance(seconds)

    clock = Noting()
    persistently(call, clock=clock, seconds=600, longest_pause=asked)
    bounds = [min(FIRST_PAUSE * 2**index, longest) for index in range(30)]
    assert len(pauses) == 30
    assert [pause for pause, bound in zip(pauses, bounds, strict=True) if pause > bound] == []
    assert max(pauses) > longest / 2
    assert len(set(pauses)) == 30


def test_no_request_outlives_the_seconds_that_are_left() -> None:
    """Each try is told what is left of them, a short while at least, and with the overtime that it was granted."""
    clock = FakeClock()
    told: list[float] = []

    def call() -> None:
        told.append(time_left())
        clock.advance(min(2.0, time_left()))
        raise StoreUnavailableError

    start = clock.now()
    with pytest.raises(StoreUnavailableError):
        persistently(call, clock=clock, seconds=5)
    assert told[0] == 5
    assert all(left == pytest.approx(5 - 2 * number, abs=0.4) for number, left in enumerate(told))
    assert clock.now() <= start + 5
    with pytest.raises(StoreUnavailableError):
        persistently(call, clock=clock, seconds=-1)
    assert told[-1] == pytest.approx(SHORTEST_TRY, rel=1e-4)
    with pytest.raises(StoreUnavailableError):
        persistently(call, clock=clock, seconds=0.5, overtime=8)
    assert told[-1] == pytest.approx(8.5)


def test_what_is_left_may_grow_meanwhile() -> None:
    """A claim that is renewed while its outcome is tried gives the tries more time."""
    clock, (call, tries) = FakeClock(), failing(8)
    start, ends = clock.now(), [10.0]

    def renewed() -> float:
        if clock.now() > start + 9:
            ends[:] = [60.0]
        return start + ends[0] - clock.now()

    assert persistently(call, clock=clock, seconds=renewed, longest_pause=2) == "answer"
    assert len(tries) == 9


def test_a_clock_that_is_set_moves_no_deadline() -> None:
    """Seconds are measured by the monotonic time, whatever an answer makes of the epoch."""

    class Set(FakeClock):
        def now(self) -> float:
            return super().now() + 7200

        def monotonic(self) -> float:
            return super().now()

    clock = Set()
    call, tries = failing(4)
    assert persistently(call, clock=clock, seconds=60) == "answer"
    assert len(tries) == 5


@pytest.mark.parametrize("error", [StoreMisconfiguredError("no table"), RecordCorruptError("odd")])
def test_the_caller_says_what_is_tried_again(error: StoreError) -> None:
    """After the effect every error of the store is a reason to try again; a bug is none."""
    clock, errors = FakeClock(), [error, StoreUnavailableError(), KeyError("bug")]

    def call() -> None:
        raise errors.pop(0)

    with pytest.raises(KeyError):
        persistently(call, clock=clock, seconds=60, retried=StoreError)


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


@pytest.mark.parametrize("seed", range(20))
def test_no_pause_sleeps_over_the_last_try(draws: random.Random, seed: int) -> None:
    """However long the pauses have grown, a try begins when just enough time for one is left."""
    draws.seed(seed)
    clock = FakeClock()
    end = clock.monotonic() + 10

    def call() -> str:
        if clock.monotonic() < end - SHORTEST_TRY - 0.01:
            raise StoreUnavailableError("down")
        return "answer"

    assert persistently(call, clock=clock, seconds=10) == "answer"
    assert clock.monotonic() < end
