"""What renewals cost, and that none comes too late: counted in fast motion, and with a store that is slow."""

import gc
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from itertools import pairwise, repeat
from typing import Any

import pytest

from idempotent_tasks.core.lease import MOST_THREADS, LeaseRenewer, LeaseTerms
from idempotent_tasks.events import Event
from idempotent_tasks.testing import FakeClock, MemoryStore
from tests.support.guarding import KEY, TERMS, ManualRenewer, start, unseen
from tests.support.stores import FaultyStore, passes

#: Longer than any of these tests takes, in seconds.
LONG_SECONDS = 20.0
HOUR_SECONDS = 3600.0
HALF_MINUTE = LeaseTerms(lease_seconds=30, renewed=True, longest_seconds=None)


@dataclass
class Hour:
    """Tasks of one length that start at equal distances within an hour, on a clock that nobody waits for."""

    tasks: int
    body_seconds: float
    lease_seconds: float
    #: How often the renewer's thread woke up.
    wakes: int = 0
    _clock: FakeClock = field(default_factory=lambda: FakeClock(0.0))
    _renewer: ManualRenewer = field(default_factory=ManualRenewer)
    _wakes_at: float | None = None

    def __post_init__(self) -> None:
        """Make the store, whose calls are counted."""
        self._store = FaultyStore(MemoryStore(clock=self._clock))

    def run(self) -> int:
        """Run every task to its end, and return how many renewals the store was asked for."""
        blocks = [ExitStack() for _ in range(self.tasks)]
        starts = [number * HOUR_SECONDS / self.tasks for number in range(self.tasks)]
        events = [(at + self.body_seconds, number, True) for number, at in enumerate(starts)]
        events += [(at, number, False) for number, at in enumerate(starts)]
        for at, number, ends in sorted(events):
            self._let_pass(at)
            if ends:
                blocks[number].close()
            else:
                self._begin(number, blocks[number])
        self._let_pass(self._clock.now() + HOUR_SECONDS)
        return self._store.calls.count("renew")

    def _begin(self, number: int, block: ExitStack) -> None:
        term = LeaseTerms(lease_seconds=self.lease_seconds, renewed=True, longest_seconds=None)
        run = start(self._store, str(number), key=str(number), lease=self.lease_seconds)
        block.enter_context(self._renewer.renewing(run, self._store, term, unseen))
        self._wake()

    def _let_pass(self, until: float) -> None:
        """Move the clock, and wake the renewer whenever its thread would."""
        while self._wakes_at is not None and self._wakes_at < until:
            self._clock.advance(self._wakes_at - self._clock.now())
            self._wake()
        self._clock.advance(until - self._clock.now())

    def _wake(self) -> None:
        self.wakes += 1
        pause = self._renewer.renew_due()
        self._wakes_at = None if pause is None else self._clock.now() + pause


class HelpedRenewer(LeaseRenewer):
    """A renewer that the test drives, and that starts its helpers; they are counted."""

    def __init__(self) -> None:
        super().__init__()
        self.helpers: list[threading.Thread] = []

    def _spawn(self, work: Callable[[], None]) -> threading.Thread:
        if work == self._work:
            return threading.Thread(target=work)
        self.helpers.append(super()._spawn(work))
        return self.helpers[-1]


@pytest.fixture
def helped() -> Iterator[HelpedRenewer]:
    """A renewer with helpers, which have all ended afterwards."""
    renewer = HelpedRenewer()
    yield renewer
    for helper in renewer.helpers:
        helper.join(LONG_SECONDS)
        assert not helper.is_alive()


@pytest.fixture
def blocks() -> Iterator[ExitStack]:
    """The bodies that run, which end with the test."""
    with ExitStack() as stack:
        yield stack


@pytest.mark.parametrize(
    ("body_seconds", "renewals_each", "wakes"),
    [
        # Woken by each task's start, and once more when its first renewal would have been due.
        pytest.param(1, 0, 2 * 24, id="1s"),
        pytest.param(30, 2, 4 * 24, id="30s"),
        # Four at a time, all due at the same moments: every 10 s from the first start to the last end, at 4050 s.
        pytest.param(600, 59, 4050 // 10 + 1, id="10min"),
    ],
)
def test_an_hour_of_24_tasks_in_fast_motion(body_seconds: int, renewals_each: int, wakes: int) -> None:
    """With a lease of 30 s a body is renewed every 10 s, a short one never, and nobody polls in between."""
    hour = Hour(tasks=24, body_seconds=body_seconds, lease_seconds=30)
    assert hour.run() == 24 * renewals_each
    assert hour.wakes == wakes


def test_a_hundred_claims_with_a_slow_store(store: MemoryStore, clock: FakeClock, blocks: ExitStack) -> None:
    """One thread alone and 50 ms a call: claims that are all due at once are renewed 5 s later at the latest."""

    def slow(call: Callable[[], Any]) -> Any:
        clock.advance(0.05)
        return call()

    renewer, slowed = ManualRenewer(), FaultyStore(store, renew=repeat(slow))
    renewed_at: dict[str, list[float]] = {}

    def observe(event: Event) -> None:
        renewed_at[event.key].append(clock.now())

    for key in map(str, range(100)):
        renewed_at[key] = [clock.now()]
        blocks.enter_context(renewer.renewing(start(store, key, 30, key=key), slowed, HALF_MINUTE, observe))
    for _ in range(200):
        pause = renewer.renew_due()
        assert pause is not None
        clock.advance(pause)
    gaps = [later - sooner for at in renewed_at.values() for sooner, later in pairwise(at)]
    assert max(gaps) == pytest.approx(15, abs=0.1)
    assert all(len(at) > 10 for at in renewed_at.values())


def test_the_claim_that_expires_first_is_renewed_first(store: MemoryStore, clock: FakeClock, blocks: ExitStack) -> None:
    """A short claim that comes due does not wait for the long ones that were due before it."""
    order: list[str] = []
    renewer = ManualRenewer()
    for number in range(20):
        key, lease = ("short", 3.0) if number == 10 else (f"long-{number}", 60.0)
        term = replace(TERMS, lease_seconds=lease)
        run = start(store, key, lease, key=key)
        blocks.enter_context(renewer.renewing(run, store, term, lambda event: order.append(event.key)))
        clock.advance(0.001)
    clock.advance(21)
    renewer.renew_due()
    assert len(order) == 20
    assert order[0] == "short"


def test_late_renewals_are_shared(
    helped: HelpedRenewer, store: MemoryStore, clock: FakeClock, blocks: ExitStack
) -> None:
    """When a claim is late after a call, another thread renews at the same time."""
    both = threading.Barrier(2)

    def together(call: Callable[[], Any]) -> Any:
        both.wait(LONG_SECONDS)
        return call()

    slow = FaultyStore(store, renew=[passes, together, together])
    runs = [start(store, key, key=key) for key in "abc"]
    for run in runs:
        blocks.enter_context(helped.renewing(run, slow, TERMS, unseen))
    clock.advance(24)
    helped.renew_due()
    helped.helpers[0].join(LONG_SECONDS)
    assert not both.broken
    assert slow.calls == ["renew"] * 3
    assert [run.claim.expires_at for run in runs] == pytest.approx([clock.now() + 60] * 3, abs=0.001)


def test_renewals_in_time_stay_in_one_thread(
    helped: HelpedRenewer, store: MemoryStore, clock: FakeClock, blocks: ExitStack
) -> None:
    """Many claims that are due at once are no reason to start more threads."""
    for key in map(str, range(50)):
        blocks.enter_context(helped.renewing(start(store, key, key=key), store, TERMS, unseen))
    clock.advance(21)
    helped.renew_due()
    assert not helped.helpers


def test_a_hanging_store_is_met_by_few_threads(
    helped: HelpedRenewer, store: MemoryStore, clock: FakeClock, blocks: ExitStack
) -> None:
    """The number of threads has a bound, however many claims are late."""
    proceed, this = threading.Event(), threading.current_thread()

    def hang(call: Callable[[], Any]) -> Any:
        if threading.current_thread() is not this:
            assert proceed.wait(LONG_SECONDS), "the test did not let the renewal go on"
        return call()

    hanging = FaultyStore(store, renew=repeat(hang))
    for key in map(str, range(100)):
        blocks.enter_context(helped.renewing(start(store, key, key=key), hanging, TERMS, unseen))
    clock.advance(24)
    helped.renew_due()
    proceed.set()
    assert len(helped.helpers) == MOST_THREADS - 1


def test_a_machine_without_another_thread_keeps_its_renewer(
    store: MemoryStore, clock: FakeClock, blocks: ExitStack
) -> None:
    """Where no helper can be started, the one thread does what it can."""

    class Alone(ManualRenewer):
        def _spawn(self, work: Callable[[], None]) -> threading.Thread:
            if work != self._work:
                raise RuntimeError("can't start new thread")
            return super()._spawn(work)

    renewer, counted = Alone(), FaultyStore(store)
    for key in "abc":
        blocks.enter_context(renewer.renewing(start(store, key, key=key), counted, TERMS, unseen))
    clock.advance(24)
    renewer.renew_due()
    assert counted.calls == ["renew"] * 3


def test_the_renewer_does_not_spin_while_a_helper_renews(
    store: MemoryStore, clock: FakeClock, blocks: ExitStack
) -> None:
    """A claim in another thread's hands has no due time; the helper wakes the renewer when it has one again."""
    renewer = ManualRenewer()
    blocks.enter_context(renewer.renewing(start(store), store, TERMS, unseen))
    clock.advance(21)
    (renewals,) = renewer._queues.values()
    kept = renewals.take(clock.now())
    assert kept is not None
    assert renewer.renew_due() is None
    renewals.add(kept)
    renewer._changed.clear()
    renewer._help()
    assert renewer._changed.is_set()
    assert store.get(KEY).held_until == pytest.approx(clock.now() + 60, abs=0.001)


def test_bodies_that_start_together_share_a_renewer(store: MemoryStore) -> None:
    """The first two claims of a process, taken by two threads at the same moment, are both kept, by one thread."""
    second_start, started = threading.Event(), list[object]()

    class SlowlyStarted(ManualRenewer):
        def _spawn(self, work: Callable[[], None]) -> threading.Thread:
            started.append(work)
            second_start.wait(0.2) if len(started) == 1 else second_start.set()
            return super()._spawn(work)

    renewer, kept = SlowlyStarted(), threading.Barrier(3)
    looked = threading.Barrier(3)

    def keep(key: str) -> None:
        with renewer.renewing(start(store, key, key=key), store, TERMS, unseen):
            kept.wait(LONG_SECONDS)
            looked.wait(LONG_SECONDS)

    threads = [threading.Thread(target=keep, args=(key,)) for key in "ab"]
    for thread in threads:
        thread.start()
    kept.wait(LONG_SECONDS)
    (renewals,) = renewer._queues.values()
    count = len(renewals)
    looked.wait(LONG_SECONDS)
    for thread in threads:
        thread.join(LONG_SECONDS)
    assert (count, len(started)) == (2, 1)


def test_a_store_that_joins_within_any_step_of_a_look(blocks: ExitStack) -> None:
    """Python may let another thread run wherever it collects garbage, such as between two entries of a copied dict."""
    renewer, thresholds = ManualRenewer(), gc.get_threshold()
    stores = [MemoryStore(clock=FakeClock()) for _ in range(50)]

    def join(phase: str, _: dict[str, int]) -> None:
        if phase == "start" and stores:
            store = stores.pop()
            blocks.enter_context(renewer.renewing(start(store), store, TERMS, unseen))

    for _ in range(5):
        join("start", {})
    gc.callbacks.append(join)
    gc.set_threshold(1)
    try:
        while stores:
            renewer.renew_due()
    finally:
        gc.set_threshold(*thresholds)
        gc.callbacks.remove(join)
    assert renewer.renew_due() is not None


def test_a_store_that_joins_while_the_renewer_looks(blocks: ExitStack) -> None:
    """Another store's first claim, with a clock of its own, never disturbs the thread that keeps all the others."""
    renewer, over, switch = ManualRenewer(), threading.Event(), sys.getswitchinterval()
    stores = [MemoryStore(clock=FakeClock()) for _ in range(2000)]

    def join() -> None:
        for store in stores:
            blocks.enter_context(renewer.renewing(start(store), store, TERMS, unseen))
        over.set()

    sys.setswitchinterval(1e-6)
    try:
        joining = threading.Thread(target=join)
        joining.start()
        while not over.is_set():
            renewer.renew_due()
        joining.join(LONG_SECONDS)
    finally:
        sys.setswitchinterval(switch)
    assert renewer.renew_due() is not None
