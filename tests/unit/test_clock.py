"""Clocks: the machine's, a test's, and one corrected to a server's answers."""

import pickle
import time
from email.utils import formatdate

import pytest
from hypothesis import given
from hypothesis import strategies as st

from idempotent_tasks.core.clock import Clock, ServerClock, SystemClock
from idempotent_tasks.testing import FakeClock

NOW = 1_700_000_000.0


def http_date(epoch_seconds: float) -> str:
    """Return the ``Date`` header that a server sends at this time: the second, rounded down."""
    return formatdate(int(epoch_seconds), usegmt=True)


def answered(clock: ServerClock, local: FakeClock, ahead: float, trip: float = 0.0) -> None:
    """Let a server whose clock is ``ahead`` of the local one answer after a round trip, in seconds."""
    sent_at = clock.local_now()
    local.advance(trip / 2)
    header = http_date(local.now() + ahead)
    local.advance(trip / 2)
    clock.observe(header, sent_at)


def test_the_system_clock_is_the_machines() -> None:
    """Its time lies between two readings of the machine's own, and a wait moves it on."""
    clock: Clock = SystemClock()
    before, wait = time.time(), clock.sleep
    wait(0.001)
    # Its readings are sums of seconds, rounded to the 0.24 µs that two floats of today's epoch are apart.
    assert before + 0.001 <= clock.now() <= time.time() + 1e-6


def test_a_machine_that_was_suspended_is_not_late(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the system counts the time asleep, it counts; elsewhere the time awake must do."""
    monkeypatch.setattr(time, "clock_gettime", lambda _: 1_000.0)
    clock = SystemClock()
    before = clock.now()
    monkeypatch.setattr(time, "clock_gettime", lambda _: 1_600.0)
    assert clock.now() == before + 600
    monkeypatch.delattr(time, "CLOCK_BOOTTIME")
    monkeypatch.setattr(time, "monotonic", lambda: 7.0)
    clock = SystemClock()
    before = clock.now()
    monkeypatch.setattr(time, "monotonic", lambda: 8.0)
    assert clock.now() == before + 1


def test_a_fake_clock_stands_still() -> None:
    """Only its owner moves it: by waiting, forward, or back."""
    clock = FakeClock(NOW)
    wait = clock.sleep
    assert clock.now() == clock.now() == NOW
    wait(2)
    clock.advance(-0.5)
    assert clock.now() == NOW + 1.5


def test_before_the_first_answer_the_local_time_holds() -> None:
    """A server that was never heard corrects nothing."""
    clock = ServerClock(FakeClock(NOW))
    assert clock.offset_seconds == 0.0
    assert clock.now() == NOW


@given(st.floats(0, 1, exclude_max=True), st.floats(0, 3))
def test_a_right_clock_is_never_corrected(fraction: float, trip: float) -> None:
    """A ``Date`` of whole seconds and a slow network are no reason to doubt the local clock."""
    local = FakeClock(NOW + fraction)
    clock = ServerClock(local)
    answered(clock, local, ahead=0.0, trip=trip)
    assert clock.offset_seconds == 0.0


@pytest.mark.parametrize("ahead", [-7200.0, -2.5, 2.5, 60.0, 86_400.0])
def test_a_wrong_clock_is_corrected_to_the_second(ahead: float) -> None:
    """Minutes of skew shrink to the resolution of the header; the local time stays readable."""
    local = FakeClock(NOW + 0.3)
    clock = ServerClock(local)
    answered(clock, local, ahead, trip=0.1)
    answered(clock, local, ahead, trip=0.1)
    assert clock.now() - local.now() == pytest.approx(ahead, abs=1.1)
    assert clock.local_now() == local.now()


@given(st.floats(3, 86_400), st.sampled_from([1, -1]), st.floats(0, 1, exclude_max=True), st.floats(0, 2))
def test_a_wrong_clock_is_corrected_to_half_a_second(wrong: float, sign: int, fraction: float, trip: float) -> None:
    """One answer tells a second and its round trip: the middle of that is wrong by half of it at most."""
    local = FakeClock(NOW + fraction)
    clock = ServerClock(local)
    for _ in range(2):
        answered(clock, local, sign * (wrong + trip), trip)
    assert abs(clock.offset_seconds - sign * (wrong + trip)) <= (1 + trip) / 2 + 1e-3


def test_more_answers_narrow_the_offset() -> None:
    """The bounds of successive answers are intersected."""
    local = FakeClock(NOW)
    clock = ServerClock(local)
    for _ in range(10):
        answered(clock, local, ahead=60.25)
        local.advance(0.7)
    assert clock.offset_seconds == pytest.approx(60.25, abs=0.2)


class TestJump:
    """An answer that contradicts what is known by more than clocks drift."""

    @pytest.mark.parametrize("known", [0, 1, 3], ids=["first", "second", "fourth"])
    @pytest.mark.parametrize("ahead", [-7200.0, -3.0, 3.0, 240.0])
    def test_one_answer_changes_nothing(self, known: int, ahead: float) -> None:
        """Not even the first of a process: one answer that is wrong would take over a live claim."""
        local = FakeClock(NOW + 0.3)
        clock = ServerClock(local)
        for _ in range(known):
            answered(clock, local, ahead=0.0)
        answered(clock, local, ahead)
        assert clock.doubtful
        assert clock.offset_seconds == 0.0
        assert clock.now() == local.now()

    def test_the_next_answer_confirms_it(self) -> None:
        """One of the two clocks was set."""
        local = FakeClock(NOW)
        clock = ServerClock(local)
        for ahead in (60.0, 60.0, 0.0, 0.0):
            local.advance(60)
            answered(clock, local, ahead)
        assert not clock.doubtful
        assert clock.offset_seconds == pytest.approx(0.0, abs=1.0)

    def test_the_next_answer_refutes_it(self) -> None:
        """And the one after that has to be confirmed for itself again."""
        local = FakeClock(NOW)
        clock = ServerClock(local)
        for ahead in (60.0, 60.0, 300.0, 60.0, 300.0):
            answered(clock, local, ahead)
        assert clock.doubtful
        assert clock.offset_seconds == pytest.approx(60.0, abs=1.0)

    def test_another_jump_confirms_nothing(self) -> None:
        """Two answers that contradict each other too: the last one is what the next has to confirm."""
        local = FakeClock(NOW)
        clock = ServerClock(local)
        for ahead in (0.0, 300.0, -300.0):
            answered(clock, local, ahead)
        assert clock.offset_seconds == 0.0
        answered(clock, local, -300.0)
        assert clock.offset_seconds == pytest.approx(-300.0, abs=1.0)

    def test_what_clocks_drift_needs_no_confirmation(self) -> None:
        """A machine whose clock is a little fast, over a day in which no answer contradicts the one before."""
        local = FakeClock(NOW)
        clock = ServerClock(local)
        for hour in range(24):
            local.advance(3600)
            answered(clock, local, ahead=-0.4 * hour)
            assert not clock.doubtful
        assert clock.offset_seconds == pytest.approx(-0.4 * 23, abs=1.0)

    def test_the_last_answer_can_be_asked_for(self) -> None:
        """Confirmed or not: a signature that is wrong is refused, and does no other harm."""
        local = FakeClock(NOW)
        clock = ServerClock(local)
        assert clock.last_shown() == local.now()
        answered(clock, local, ahead=600.0)
        assert clock.last_shown() == pytest.approx(local.now() + 600, abs=1.0)
        answered(clock, local, ahead=0.0)
        assert clock.last_shown() == local.now()


@given(
    st.floats(-1, 1),
    st.lists(st.tuples(st.floats(0, 5), st.floats(0, 2)), min_size=1, max_size=20),
)
def test_the_time_never_goes_back_by_itself(ahead: float, answers: list[tuple[float, float]]) -> None:
    """A claim that was asked for before a release must not pass it because an answer in between narrowed the offset."""
    local = FakeClock(NOW + 0.4)
    clock = ServerClock(local)
    read = [clock.now()]
    for pause, trip in answers:
        local.advance(pause)
        read.append(clock.now())
        answered(clock, local, ahead, trip)
        read.append(clock.now())
    assert read == sorted(read)
    assert not clock.doubtful


@given(st.lists(st.floats(-600, 600), min_size=1, max_size=12))
def test_the_time_goes_back_for_nothing_but_a_confirmed_jump(aheads: list[float]) -> None:
    """Whatever answers come: before it goes back two in a row have agreed on a jump."""
    local = FakeClock(NOW)
    clock = ServerClock(local)
    for ahead in aheads:
        before, in_doubt = clock.now(), clock.doubtful
        answered(clock, local, ahead)
        assert clock.now() >= before or (in_doubt and not clock.doubtful)


def test_a_local_clock_that_falls_behind_stops_the_time() -> None:
    """A machine that was restored from an image, for example: the time stands until two answers put it right."""
    local = FakeClock(NOW)
    clock = ServerClock(local)
    answered(clock, local, ahead=0.0)
    before = clock.now()
    local.advance(-600)
    assert clock.now() == before
    answered(clock, local, ahead=600.0)
    assert clock.now() == before
    answered(clock, local, ahead=600.0)
    assert clock.now() == pytest.approx(before, abs=1.0)
    local.advance(10)
    assert clock.now() == pytest.approx(before + 10, abs=1.0)


def test_it_can_be_sent_to_another_process() -> None:
    """With what it knows, and without what belongs to this process."""
    local = FakeClock(NOW)
    clock = ServerClock(local)
    for _ in range(2):
        answered(clock, local, ahead=60.0)
    there = pickle.loads(pickle.dumps(clock))
    assert there.now() == clock.now()
    assert there.offset_seconds == clock.offset_seconds


@pytest.mark.parametrize("header", ["", "yesterday", "Tue, 99 Nov 2023 22:13:20 GMT"])
def test_an_unreadable_date_is_ignored(header: str) -> None:
    """A header that is no date changes nothing."""
    local = FakeClock(NOW)
    clock = ServerClock(local)
    answered(clock, local, ahead=60.0)
    clock.observe(header, local.now())
    assert clock.doubtful
    answered(clock, local, ahead=60.0)
    clock.observe(header, local.now())
    assert clock.offset_seconds == pytest.approx(60.0, abs=1.0)


def test_waiting_is_local() -> None:
    """Waiting needs no server."""
    local = FakeClock(NOW)
    wait = ServerClock(local).sleep
    wait(3)
    assert local.now() == NOW + 3
