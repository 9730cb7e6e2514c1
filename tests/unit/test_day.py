"""The simulated day: its partition, the library's own retries in it, and that each message has its result."""

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from random import Random

import pytest

from benchmarks.day.__main__ import main
from benchmarks.day.fleet import Fleet, Load, Rules, Tally
from benchmarks.day.partition import Partition
from benchmarks.day.plan import DAY_SECONDS, Plan
from benchmarks.day.retries import Tries, VirtualClock
from idempotent_tasks.core.busy import FRESH_SECONDS
from idempotent_tasks.core.processes import Process, running_as
from idempotent_tasks.core.retry import FIRST_PAUSE, LONGEST_PAUSE, STORE_RETRY_SECONDS

NEITHER = Rules(known=False, wakeups=False)
#: One worker with four threads.
SMALL = Load(slots=4, concurrency=4, threads=True)


def partition(units: float = 1000.0, burst: float = 1.0, others: float = 0.0, seed: int = 1) -> Partition:
    """Return a partition that takes so many units a second, while so many other keys a second run."""
    return Partition(
        units_per_second=units, burst_seconds=burst, others=lambda _: others, other_units=3, chance=Random(seed)
    )


class Outage(Partition):
    """A partition that throttles everything between two times in seconds."""

    def __init__(self, begin: float, end: float) -> None:
        super().__init__(burst_seconds=1, others=lambda _: 0.0, other_units=3, chance=Random(1))
        self._outage = begin, end

    def take(self, now: float, units: int) -> bool:
        """Take units outside of the outage."""
        begin, end = self._outage
        return not begin <= now < end and super().take(now, units)


def play(
    later: Sequence[float], rules: Rules = NEITHER, load: Load = SMALL, at: Partition | None = None, keys: int = 1
) -> Tally:
    """Play keys, one every ten seconds, whose duplicates come so many seconds after the first message."""
    fleet = Fleet(load, rules, partition() if at is None else at, seed=1)
    return Tally.sum(fleet.run((10.0 * number, list(later)) for number in range(keys)))


def test_partition_takes_what_has_come_in() -> None:
    """The units of the burst are there at first, then those of each second, and never more than the burst's."""
    bucket = partition(units=10, burst=2)
    assert [bucket.take(0.0, 15), bucket.take(0.0, 6), bucket.take(0.0, 5), bucket.take(0.0, 1)] == [1, 0, 1, 0]
    assert [bucket.take(0.5, 5), bucket.take(0.5, 1)] == [True, False]
    assert [bucket.take(100.0, 20), bucket.take(100.0, 1)] == [True, False]


def test_other_keys_take_units_of_the_partition() -> None:
    """What they leave is what hot keys get; what they do not get at once is counted, and taken later."""
    idle, busy, full = partition(burst=60), partition(burst=60, others=300), partition(burst=60, others=400)
    for second in range(1, 301):
        assert idle.take(float(second), 100)
        assert busy.take(float(second), 100)
        full.take(float(second), 100)
    assert idle.other_writes == 0
    assert busy.other_throttled == 0
    assert busy.other_writes == pytest.approx(90_000, rel=0.02)
    assert full.other_throttled > 0
    assert not full.take(300.0, 1)


def test_tries_are_those_of_the_library() -> None:
    """A claim is tried for as long as the library retries it, with its pauses; a withdrawal once."""
    process = Process()
    process.random = Random(1)
    with running_as(process):
        tries = Tries(0.005, 35.0, Random(1))
        claim, commit = tries.claim(), tries.commit(30.0)
        assert tries.withdrawal() == [0.0]
    pauses = [later - earlier - 0.005 for earlier, later in pairwise(claim)]
    assert 0 <= pauses[0] <= FIRST_PAUSE
    assert max(pauses) <= LONGEST_PAUSE + 1e-9
    assert STORE_RETRY_SECONDS - 0.2 < claim[-1] < STORE_RETRY_SECONDS
    assert 29 < commit[-1] < 30


def test_a_duplicate_costs_what_the_page_about_cost_says() -> None:
    """A first run with a result of 1 KB costs 3 units, a first deferral 1, the replay 2; another deferral 2."""
    tally = play([0.05])
    assert (tally.deliveries, tally.requests, tally.units) == (3, 4, 6)
    slow = Load(slots=4, concurrency=4, body_seconds=2.0)
    tally = play([0.05], load=slow)
    assert (tally.deliveries, tally.requests, tally.units) == (4, 6, 8)


def test_each_message_has_its_result_under_throttling() -> None:
    """A partition that is far too small delays duplicates and commits; no message is lost, and each has one result."""
    load = Load(slots=100)
    tally = play([0.001 * number for number in range(200)], load=load, at=partition(units=40), keys=2)
    assert tally.throttled > 300
    assert tally.unanswered > 0
    assert tally.results == tally.messages == 402
    assert len(tally.waits) == 400
    assert tally.bodies == len(tally.commits) >= tally.keys == 2


def test_a_body_runs_again_if_its_outcome_could_not_be_recorded() -> None:
    """Its claim ends before the partition takes the commit; the duplicates get the second outcome."""
    tally = play([0.01, 0.02], at=Outage(0.05, 120.0))
    assert tally.bodies == 2
    assert tally.results == tally.messages == 3
    assert max(tally.waits) > 119


def test_a_process_does_not_ask_about_a_key_that_it_knows_to_be_busy() -> None:
    """Duplicates that come within that time are put off without a request, and have their results as before."""
    later = [0.02, *(0.03 + FRESH_SECONDS * number / 50 for number in range(44))]
    load = Load(slots=60, concurrency=60, threads=True, body_seconds=1.0)
    without, known = (play(later, Rules(known=each, wakeups=False), load) for each in (False, True))
    assert (without.known, known.known) == (0, 44)
    assert known.requests == without.requests - 44
    assert known.results == without.results == 46


def test_the_worker_that_runs_the_body_lets_its_copies_go() -> None:
    """In a fleet of one worker each copy waits there, and has its result as soon as the body has one."""
    later = [0.02, 0.04, 0.06]
    without, woken = (play(later, Rules(known=False, wakeups=each)) for each in (False, True))
    assert (without.woken, woken.woken) == (0, 3)
    assert min(without.waits) > 0.5
    assert max(woken.waits) < 0.1


def test_the_same_seed_plays_the_same(tmp_path: Path) -> None:
    """Both files are equal, byte by byte; another seed has another."""
    files = [tmp_path / name for name in ("first", "second", "other")]
    options = ["--hours", "0.05", "--most-duplicates", "500", "--burst-seconds", "0.2", "--json"]
    for seed, file in zip(("1", "1", "2"), files, strict=True):
        assert main([*options, str(file), "--seed", seed]) == 0
    first, second, other = (file.read_text(encoding="utf-8").partition('"runs"')[2] for file in files)
    assert first == second != other


def test_plan_has_its_rates_and_its_mean() -> None:
    """Over a day as many hot keys come as the rate says, with as many duplicates on average; most of them at noon."""
    plan = Plan(
        seconds=DAY_SECONDS,
        hot_keys_per_second=0.2,
        other_keys_per_second=10,
        swing=0.5,
        least_duplicates=10,
        most_duplicates=1000,
        exponent=1.5,
        spread_seconds=0.1,
        flood=0,
        seed=1,
    )
    published = list(plan.publishes())
    numbers = [len(later) for _, later in published]
    assert len(published) == pytest.approx(0.2 * DAY_SECONDS, rel=0.05)
    assert sum(numbers) / len(numbers) == pytest.approx(plan.mean_duplicates, rel=0.05)
    assert min(numbers) == 10
    assert max(numbers) <= 1000
    at_noon = sum(1 for at, _ in published if DAY_SECONDS / 4 < at < DAY_SECONDS * 3 / 4)
    assert at_noon > 1.5 * (len(published) - at_noon)
    assert plan.others(DAY_SECONDS / 2) == pytest.approx(15)


def test_clock_moves_only_when_told() -> None:
    """The model's time is nobody else's."""
    clock = VirtualClock()
    clock.sleep(2.0)
    assert (clock.now(), clock.monotonic()) == (2.0, 2.0)
