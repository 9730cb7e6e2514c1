"""``Idempotency.exclusive()`` and ``expires=0``: one run at a time, and nothing is replayed to other task ids."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import repeat
from typing import Any

import pytest
from celery import Celery
from celery.exceptions import TaskRevokedError
from celery.worker.state import revoked

from idempotent_tasks import ConfigurationError, Idempotency, InProgressError
from idempotent_tasks.core.guard import Failed, Interrupted, Replayed, Returned, Unclaimed, Unwritten
from idempotent_tasks.core.lease import RunContext
from idempotent_tasks.core.policy import OWN_RETENTION_SECONDS
from idempotent_tasks.core.records import Busy, Record, Status
from idempotent_tasks.core.recovery import NotDone
from idempotent_tasks.errors import StoreUnavailableError
from idempotent_tasks.events import Claimed, Event, Joined, Skipped
from idempotent_tasks.testing import FakeClock, MemoryStore
from tests.support.guarding import Bench, Broken, Interrupt, deliver, done, grant, make_guard, request_by
from tests.support.inline import InlineWorker
from tests.support.receipts import MemoryReceipts, Sent
from tests.support.shop import Counting, make
from tests.support.stores import FaultyStore, down, lost_answer, passes
from tests.testbed.waiting import wait_for

LOCK = "shop.charge#exclusive#17"
SETTLE = 5.0


def locked(owner: str, **given: Any) -> dict[str, Any]:
    """Return what a request of a task with a lock has beyond the others: a key of its own, and the lock."""
    return {"key": f"shop.charge#id-{owner}", "lock": request_by(owner, key=LOCK, **given), **given}


def settling(owner: str) -> dict[str, Any]:
    """Return what a request of a task with a lock has whose requests elsewhere need time to settle."""
    return {**locked(owner), "settle_seconds": SETTLE}


#: How the claim of a lock ends under its run.
ENDS = ["lost", "over", "too late to settle"]


def ended(lock: RunContext | None, clock: FakeClock, end: str) -> None:
    """End the claim of a run's lock."""
    assert lock is not None
    if end == "lost":
        lock.lose()
        return
    left = SETTLE if end == "too late to settle" else 0
    lock.claim = replace(lock.claim, in_progress_expiration=int((clock.now() + left) * 1000))


def lock_of(store: Any) -> Record:
    """Return the record of the lock."""
    record: Record = store.get(LOCK)
    return record


class TestPolicy:
    """What ``exclusive()`` declares."""

    def test_it_is_expires_0_and_skip(self) -> None:
        """One word for the three options, of which a key is part."""
        policy = Idempotency.exclusive()
        assert (policy.expires, policy.on_busy) == (0, "skip")
        assert policy.key is not None
        assert policy.retention_seconds == OWN_RETENTION_SECONDS

    def test_others_can_be_given(self) -> None:
        """A key, what a busy delivery does, and everything that is no matter of replays."""
        policy = Idempotency.exclusive(key="account", on_busy="defer", lease=30)
        assert (policy.key, policy.on_busy, policy.lease, policy.expires) == ("account", "defer", 30, 0)

    def test_a_time_to_replay_is_refused(self) -> None:
        """It would say the opposite."""
        with pytest.raises(ConfigurationError, match="takes no expires="):
            Idempotency.exclusive(expires=60)

    def test_powertools_knows_no_locks(self) -> None:
        """Its functions would replay the outcome."""
        with pytest.raises(ConfigurationError, match="expires=0"):
            Idempotency(key="event", powertools=True, expires=0)


class TestGuard:
    """The lock of a run: claimed after the key, held until the outcome is stored, released with every end."""

    def test_it_is_held_while_the_body_runs(self, bench: Bench) -> None:
        """And free afterwards, whereas the key has its outcome."""
        held: list[bool] = []
        bench.deliver(value=lambda _: held.append(lock_of(bench.store).free), **locked("one"))
        assert held == [False]
        assert lock_of(bench.store).free
        assert bench.store.get("shop.charge#id-one").status is Status.COMPLETED

    def test_another_key_waits_for_it(self, bench: Bench) -> None:
        """The second delivery names the first as the holder, runs nothing and leaves its own key free."""
        seen: list[Any] = []
        bench.deliver(value=lambda _: seen.append(bench.deliver("two", **locked("two"))), **locked("one"))
        assert isinstance(seen[0], Busy)
        assert seen[0].holder.task_id == "id-one"
        assert bench.ran == ["one"]
        assert bench.store.get("shop.charge#id-two").free

    def test_it_runs_when_that_is_over(self, bench: Bench) -> None:
        """No outcome is replayed to another task id."""
        assert bench.deliver("one", "first", **locked("one")) == Returned("first")
        assert bench.deliver("two", "second", **locked("two")) == Returned("second")

    def test_its_own_redelivery_gets_its_outcome_after_others_have_run(self, bench: Bench) -> None:
        """Each task id has its own record."""
        bench.deliver("one", "first", **locked("one"))
        bench.deliver("two", "second", **locked("two"))
        assert bench.deliver("one", **locked("one")) == Replayed("first")
        assert bench.ran == ["one", "two"]

    def test_the_fence_is_the_locks(self, bench: Bench) -> None:
        """It grows from one task id to the next."""
        fences: list[int] = []
        for owner in ("one", "two", "three"):
            bench.deliver(owner, lambda run: fences.append(run.fence), **locked(owner))
        assert fences == sorted(set(fences))
        assert fences[-1] == lock_of(bench.store).fence

    @pytest.mark.parametrize("error", [KeyError("body"), SystemExit(1)], ids=["failure", "exit"])
    def test_a_failed_body_frees_it(self, bench: Bench, error: BaseException) -> None:
        """Whether its process ends by that or not."""
        with pytest.raises(type(error)):
            bench.deliver(value=error, **locked("one"))
        assert lock_of(bench.store).free

    def test_a_run_that_hands_over_frees_it_before_its_body_ends(self, bench: Bench) -> None:
        """Or its retry would meet its own lock."""
        free: list[bool] = []

        def body(run: Any) -> None:
            run.hand_over("Retry")
            free.append(lock_of(bench.store).free)

        bench.deliver(value=body, **locked("one"))
        assert free == [True]

    def test_a_final_failure_frees_it(self, bench: Bench) -> None:
        """It is an outcome."""
        guard = bench.guard(store_failures=KeyError)
        assert isinstance(bench.deliver(value=KeyError("final"), guard=guard, **locked("one")), Failed)
        assert lock_of(bench.store).free

    def test_a_crash_is_counted_for_the_key_alone(self, bench: Bench, clock: FakeClock) -> None:
        """However many holders of the lock died, the next one is in no crash loop."""
        for number in range(9):
            grant(bench.store, f"dead-{number}", key=LOCK)
            clock.advance(60)
        assert bench.deliver("next", "ran", **locked("next")) == Returned("ran")

    def test_a_dead_holders_lock_expires(self, bench: Bench, clock: FakeClock) -> None:
        """Its key and its lock live equally long."""
        dead = request_by("one", **locked("one"))
        for part in dead.parts:
            bench.store.claim(part)
        assert isinstance(bench.deliver("two", **locked("two")), Busy)
        clock.advance(32)
        assert bench.deliver("two", "took over", **locked("two")) == Returned("took over")

    def test_a_lock_busy_delivery_is_no_crash(self, bench: Bench, clock: FakeClock) -> None:
        """A delivery that waits a hundred times has crashed as often as before."""
        key = locked("two")["key"]
        grant(bench.store, "dead", key=key)
        clock.advance(60)
        grant(bench.store, "holder", key=LOCK)
        for _ in range(7):
            bench.deliver("two", **locked("two"))
        assert bench.store.get(key).attempt == 1

    def test_the_lock_may_be_lost(self, bench: Bench) -> None:
        """A body that asks is told, as for its key."""
        lost: list[bool] = []

        def body(run: Any) -> None:
            lost.append(run.lost)
            run.lock.claim_lost = True
            lost.append(run.lost)

        bench.deliver(value=body, **locked("one"))
        assert lost == [False, True]

    def test_key_and_lock_are_renewed(self, bench: Bench) -> None:
        """The key's claim while the lock is waited for, then both until the outcome is stored."""
        kept: list[str] = []

        @contextmanager
        def keeping(run: RunContext) -> Iterator[None]:
            kept.append(f"+{run.key}")
            yield
            kept.append(f"-{run.key}")

        key = locked("one")["key"]
        bench.deliver(value=lambda _: kept.append("body"), guard=bench.guard(keeping), **locked("one"))
        assert kept == [f"+{key}", f"-{key}", f"+{LOCK}", f"+{key}", "body", f"-{key}", f"-{LOCK}"]

    def test_events_are_of_the_key(self, bench: Bench) -> None:
        """One claim and one commit, as for every run: who counts them counts runs."""
        bench.deliver(**locked("one"))
        assert bench.events() == ["Claimed", "Committed"]

    def test_an_outcome_in_the_locks_place_is_refused(self, bench: Bench) -> None:
        """Nothing of ours writes one there; a caller's own key can."""
        bench.store.commit(grant(bench.store, "odd", key=LOCK), done(), 60)
        with pytest.raises(ConfigurationError, match="lock"):
            bench.deliver(**locked("one"))


class TestFaults:
    """A store that fails, and interrupts, between the key and its lock."""

    def test_no_answer_for_the_lock_runs_nothing(self, broken: Broken) -> None:
        """The key is released, and what may hold the lock is withdrawn by the delivery's handler."""
        bench = broken(claim=[passes, *[down()] * 40])
        assert isinstance(bench.deliver(**locked("one")), Unclaimed)
        assert bench.ran == []
        assert bench.store.get("shop.charge#id-one").free

    def test_a_lost_answer_is_asked_for_again(self, broken: Broken) -> None:
        """The lock knows its owner."""
        bench = broken(claim=[passes, lost_answer()])
        assert bench.deliver(value="ran", **locked("one")) == Returned("ran")

    def test_an_interrupt_before_the_lock_is_granted(self, store: MemoryStore) -> None:
        """Key and lock are free again."""
        bench = Bench(FaultyStore(store, claim=[passes, lost_answer(Interrupt("soft limit"))]))
        assert isinstance(bench.deliver(**locked("one")), Interrupted)
        assert store.get("shop.charge#id-one").free
        assert lock_of(store).free

    def test_an_interrupt_while_observers_hear_of_the_claim(self, store: MemoryStore) -> None:
        """Both are held by then, and no body has begun: both are free again."""

        def interrupted(event: Event) -> None:
            if isinstance(event, Claimed):
                raise Interrupt("soft limit")

        guard = make_guard(store, interrupted)
        assert isinstance(deliver(guard, request_by("one", **locked("one")), lambda _: None), Interrupted)
        assert (store.get("shop.charge#id-one").free, lock_of(store).free) == (True, True)

    def test_an_interrupt_while_the_locks_last_renewal_is_waited_for(self, store: MemoryStore) -> None:
        """The outcome is on record: the interrupt comes too late, or what follows the task would never be sent."""

        @contextmanager
        def keeping(run: RunContext) -> Iterator[None]:
            yield
            if run.key == LOCK:
                raise Interrupt("soft limit")

        bench = Bench(store)
        assert bench.deliver(guard=bench.guard(keeping), **locked("one")) == Returned("done")
        assert lock_of(store).free

    def test_an_interrupt_at_the_lock_after_a_body_that_raised(self, store: MemoryStore) -> None:
        """What the body raised stands: a retry that is on its way must not be reported as a failure."""

        @contextmanager
        def keeping(run: RunContext) -> Iterator[None]:
            try:
                yield
            finally:
                if run.key == LOCK:
                    raise Interrupt("soft limit")

        bench = Bench(store)
        with pytest.raises(ZeroDivisionError):
            bench.deliver(guard=bench.guard(keeping), value=ZeroDivisionError(), **locked("one"))
        assert (store.get("shop.charge#id-one").free, lock_of(store).free) == (True, True)

    def test_a_claim_that_ends_while_its_lock_is_waited_for(self, store: MemoryStore, clock: FakeClock) -> None:
        """No body begins without a live claim."""

        class Slow(FaultyStore):
            def claim(self, request: Any) -> Any:
                if request.key == LOCK:
                    clock.advance(40)
                return super().claim(request)

        bench = Bench(Slow(store))
        verdict = bench.deliver(**locked("one"))
        assert isinstance(verdict, Unclaimed)
        assert isinstance(verdict.error, StoreUnavailableError)
        assert (bench.ran, lock_of(store).free) == ([], True)


class TestLockThatHasEnded:
    """The claim of the key still lives, and a run of another key may have begun under the lock."""

    @pytest.mark.parametrize("end", ENDS, ids=ENDS)
    def test_no_transaction_begins(self, bench: Bench, clock: FakeClock, end: str) -> None:
        """As where the row was waited for."""
        receipts, locks = MemoryReceipts(), []

        @contextmanager
        def keeping(run: RunContext) -> Iterator[None]:
            locks.append(run)
            yield

        receipts.at_begin.append(lambda: ended(next(run for run in locks if run.key == LOCK), clock, end))
        guard = bench.guard(keeping, receipts=receipts, following=Sent())
        verdict = bench.deliver(guard=guard, **settling("one"))
        assert isinstance(verdict, Unwritten)
        assert "the claim ended before its transaction began" in str(verdict.error)
        assert (bench.ran, receipts.rows, receipts.open) == ([], {}, 0)

    @pytest.mark.parametrize("end", ENDS, ids=ENDS)
    def test_no_transaction_is_committed(self, bench: Bench, clock: FakeClock, end: str) -> None:
        """The other run would not meet this one's row."""
        receipts = MemoryReceipts()

        def body(run: RunContext) -> None:
            run.session.append(17)
            ended(run.lock, clock, end)

        verdict = bench.deliver(value=body, guard=bench.guard(receipts=receipts, following=Sent()), **settling("one"))
        assert isinstance(verdict, Unwritten)
        assert "the claim ended before its transaction was committed" in str(verdict.error)
        assert (receipts.effects, receipts.rows, receipts.open) == ([], {}, 0)
        assert (bench.store.get("shop.charge#id-one").free, lock_of(bench.store).free) == (True, True)

    @pytest.mark.parametrize("end", ENDS, ids=ENDS)
    def test_no_transaction_of_a_step_is_committed(self, bench: Bench, clock: FakeClock, end: str) -> None:
        """As that of a whole body."""
        receipts = MemoryReceipts()

        def pay(run: RunContext) -> None:
            run.session.append(17)
            ended(run.lock, clock, end)

        def body(run: RunContext) -> None:
            run.step.options(receipts=receipts)("pay", lambda: pay(run))

        verdict = bench.deliver(value=body, guard=bench.guard(following=Sent()), **settling("one"))
        assert isinstance(verdict, Unwritten)
        assert (receipts.effects, receipts.rows, receipts.open) == ([], {}, 0)

    @pytest.mark.parametrize("end", ENDS, ids=ENDS)
    def test_no_answer_of_recover_is_acted_upon(self, bench: Bench, clock: FakeClock, end: str) -> None:
        """The body would run beside another one."""
        with pytest.raises(ValueError, match="first"):
            bench.deliver(value=ValueError("first"), **settling("one"))
        clock.advance(SETTLE + 1)

        def ask(run: RunContext, _: Record) -> NotDone:
            ended(run.lock, clock, end)
            return NotDone()

        def body(run: RunContext) -> None:
            bench.ran.append(run.claim.owner)

        verdict = bench.guard().deliver(request_by("one", **settling("one")), body, ask)
        assert isinstance(verdict, Unclaimed)
        assert "the claim ended before recover answered" in str(verdict.error)
        assert bench.ran == ["one"]
        record = bench.store.get("shop.charge#id-one")
        assert (record.free, record.runs, lock_of(bench.store).free) == (True, 1, True)


class TestTask:
    """Declared tasks, delivered by messages."""

    def test_ticks_one_after_the_other_all_run(self, app: Celery, worker: InlineWorker, counting: Counting) -> None:
        """Nothing is replayed to the next one."""
        task = counting.make(app, idempotency=Idempotency.exclusive())
        for _ in range(5):
            task.delay()
        worker.drain()
        assert counting.runs == 5

    def test_a_tick_during_a_run_is_dropped(self, app: Celery, worker: InlineWorker, seen: list[Event]) -> None:
        """Whichever task id it has; and the next one after the run is not."""
        depths: list[int] = []

        def body(self: Any, depth: int) -> None:
            depths.append(depth)
            if depth == 0:
                self.apply((1,))

        task = make(app, body, bind=True, idempotency=Idempotency.exclusive())
        task.delay(0)
        worker.drain()
        task.delay(2)
        worker.drain()
        assert depths == [0, 2]
        assert [type(event) for event in seen].count(Skipped) == 1

    def test_its_own_redelivery_is_neither_dropped_nor_run(
        self, app: Celery, worker: InlineWorker, counting: Counting
    ) -> None:
        """It waits for its run, and gets its outcome, even when another tick has run in between."""
        task = counting.make(app, idempotency=Idempotency.exclusive())
        first = task.delay()
        task.delay()
        assert worker.drain() == 2
        task.apply_async(task_id=first.id)
        worker.drain()
        assert (counting.runs, worker.result(first.id)) == (2, [1, None, 5])

    def test_a_redelivery_during_its_own_run_is_published_again(
        self, app: Celery, worker: InlineWorker, store: MemoryStore
    ) -> None:
        """``skip`` drops other tasks' messages only: this may become the last copy of its own."""
        runs: list[int] = []
        waiting: list[int] = []

        def body() -> None:
            runs.append(1)
            worker.run_next()
            waiting.append(worker.waiting())

        task = make(app, body, idempotency=Idempotency.exclusive())
        for _ in range(2):
            task.apply_async(task_id="tonight")
        worker.drain()
        assert (runs, waiting) == ([1], [1])

    def test_keys_exclude_each_other_separately(self, app: Celery, worker: InlineWorker) -> None:
        """One run at a time for each account."""
        depths: list[str] = []

        def body(self: Any, account: str, depth: int) -> None:
            depths.append(f"{account}{depth}")
            if depth == 0:
                self.apply(("a", 1))
                self.apply(("b", 1))

        task = make(app, body, bind=True, idempotency=Idempotency.exclusive(key="account"))
        task.delay("a", 0)
        worker.drain()
        assert depths == ["a0", "b1"]

    def test_a_key_of_the_call_is_the_lock(self, app: Celery, worker: InlineWorker) -> None:
        """It excludes other calls with it, and its own task ids have their own outcomes."""
        depths: list[int] = []

        def body(self: Any, depth: int) -> None:
            depths.append(depth)
            if depth == 0:
                self.apply((1,), idempotency_key="nightly")
                self.apply((2,))

        task = make(app, body, bind=True, idempotency=Idempotency(expires=0, on_busy="skip", key="'x'"))
        task.apply_async((0,), idempotency_key="nightly")
        task.apply_async((3,), idempotency_key="nightly")
        worker.drain()
        assert depths == [0, 2, 3]

    def test_without_a_key_expires_0_locks_nothing(self, app: Celery, worker: InlineWorker, store: MemoryStore) -> None:
        """The key is the task id, which no other call has; an app-wide ``expires=0`` serialises no task by accident."""

        def one() -> int:
            return 1

        task = make(app, one, idempotency=Idempotency(expires=0))
        task.delay()
        worker.drain()
        (record,) = store.records()
        assert record.status is Status.COMPLETED

    def test_the_key_of_a_run_is_its_own(self, app: Celery, worker: InlineWorker) -> None:
        """Passed downstream, a constant would make every tick but the first a duplicate there."""
        keys: list[str] = []

        def body(self: Any) -> None:
            keys.append(self.idempotency.key)

        task = make(app, body, bind=True, idempotency=Idempotency.exclusive())
        ids = [task.delay().id, task.delay().id]
        worker.drain()
        assert keys == [f"{task.name}#{each}" for each in ids]

    def test_others_may_wait_their_turn(self, app: Celery, worker: InlineWorker) -> None:
        """``on_busy="raise"`` fails them instead, as for every key."""
        errors: list[Any] = []

        def body(self: Any, depth: int) -> None:
            if depth == 0:
                errors.append(self.apply((1,)).result)

        task = make(app, body, bind=True, idempotency=Idempotency.exclusive(on_busy="raise"))
        task.delay(0)
        worker.drain()
        assert isinstance(errors[0], InProgressError)

    def test_a_waiting_copy_is_noted_in_the_lock(self, app: Celery, worker: InlineWorker, store: MemoryStore) -> None:
        """Its holder's record is where a duplicate of that copy looks for the proof that another one waits."""
        noted: list[int] = []

        def body(depth: int) -> None:
            if depth == 0:
                for _ in range(2):
                    worker.run_next()
                (lock,) = (record for record in store.records() if "#exclusive#" in record.key)
                noted.append(len(lock.deferred))

        task = make(app, body, idempotency=Idempotency.exclusive(on_busy="defer"))
        task.delay(0)
        task.delay(1)
        worker.run_next()
        assert noted == [1]

    def test_a_tick_that_its_worker_drops_reserves_nothing(
        self, app: Celery, worker: InlineWorker, counting: Counting, store: MemoryStore
    ) -> None:
        """The reservation of a revoked message is released."""
        unwanted = counting.make(app, idempotency=Idempotency.exclusive(at_publish="join")).delay()
        revoked.add(unwanted.id)
        with pytest.raises(TaskRevokedError):
            worker.run_next()
        (lock,) = store.records()
        wait_for(lambda: store.get(lock.key).free, 10, "the reservation is not released")

    def test_a_producer_joins_the_tick_that_waits(
        self, app: Celery, worker: InlineWorker, counting: Counting, seen: list[Event]
    ) -> None:
        """Under ``at_publish`` the lock is reserved: one message waits, and after its run the next is published."""
        task = counting.make(app, idempotency=Idempotency.exclusive(at_publish="join"))
        first, second = task.delay(), task.delay()
        assert (first.id == second.id, worker.waiting()) == (True, 1)
        worker.drain()
        third = task.delay()
        worker.drain()
        assert (third.id != first.id, counting.runs) == (True, 2)
        assert [type(event) for event in seen].count(Joined) == 1


def test_a_lock_whose_grant_nobody_saw_is_released_by_the_next_copy(
    app: Celery, worker: InlineWorker, store: MemoryStore, counting: Counting
) -> None:
    """The token that travels with the message is that of the key and of its lock."""
    unheard = [passes, *repeat(lost_answer(), 100)]
    app.conf.idempotency_store = FaultyStore(store, claim=unheard, release=[passes, *repeat(down(), 100)])
    task = counting.make(app, idempotency=Idempotency.exclusive(lease=600))
    task.delay()
    worker.run_next()
    (lock,) = (record for record in store.records() if "#exclusive#" in record.key)
    assert not lock.free
    app.conf.idempotency_store = store
    worker.run_next()
    assert (counting.runs, store.get(lock.key).free) == (1, True)


def test_a_changed_expires_meets_no_old_record(app: Celery, worker: InlineWorker, store: MemoryStore) -> None:
    """Locks have keys of their own: an outcome from before the change is no lock, and a lock no outcome."""

    def body(order: int) -> int:
        return order

    make(app, body, idempotency=Idempotency(key="order", prefix="shop")).delay(1)
    make(app, body, name="other", idempotency=Idempotency.exclusive(key="order", prefix="shop")).delay(1)
    worker.drain()
    states = {record.key.count("#exclusive#"): record.free for record in store.records() if record.key.count("#") > 1}
    assert states == {1: True}
    assert [record.status for record in store.records()].count(Status.COMPLETED) == 2
