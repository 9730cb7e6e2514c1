"""``self.idempotency.run``, ``.rerun`` and ``.nothing_done()``: what a body knows of the runs before its own."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from celery import Celery
from celery.exceptions import Ignore, Reject

from idempotent_tasks import CrashLoopError, Idempotency
from idempotent_tasks.core.guard import Interrupted, Returned
from idempotent_tasks.core.lease import RunContext
from idempotent_tasks.core.policy import OWN_RETENTION_SECONDS
from idempotent_tasks.core.records import Claim, ClaimAnswer, ClaimRequest, Granted, Lost, Released
from idempotent_tasks.testing import FakeClock, MemoryStore
from tests.support.guarding import KEY, TERMS, Bench, Broken, Interrupt, ManualRenewer, grant, start, unseen
from tests.support.shop import Shop, make, raising
from tests.support.stores import lost_answer, stands_still

HOUR = 3600
DAYS = 14 * 86_400.0

Body = Callable[[Any], Any]


def retrying(task: Any) -> None:
    """Ask for another run at once."""
    raise task.retry(countdown=0, max_retries=9)


def replacing(task: Any) -> None:
    """Be replaced by another task."""
    task.replace(task.app.signature("shop.other", immutable=True))


def other() -> None:
    """Be another task."""


class Runs:
    """A body that notes its runs, and ends each as the next of the given bodies does; further ones return.

    Args:
        bodies: how the first runs end.
    """

    def __init__(self, *bodies: Body) -> None:
        self.seen: list[tuple[int, bool]] = []
        self._bodies: Iterator[Body] = iter(bodies)

    def __call__(self, task: Any) -> Any:
        """Note the run, and end it."""
        self.seen.append((task.idempotency.run, task.idempotency.rerun))
        return next(self._bodies, lambda _: "paid")(task)


ENDS = {
    "raised": raising(ValueError()),
    "retried": retrying,
    "rejected": raising(Reject(requeue=False)),
    "ignored": raising(Ignore()),
    "replaced": replacing,
}


class TestRerun:
    """Whether an earlier run began and left no outcome."""

    @pytest.mark.parametrize("end", ENDS.values(), ids=ENDS.keys())
    def test_a_run_without_an_outcome(self, shop: Shop, end: Body) -> None:
        """However it ended, the next one is a rerun: what it did before its end is done."""
        runs = Runs(end)
        shop.sells(runs)
        shop.app.task(other, name="shop.other", shared=False)
        shop.deliver()
        shop.worker.drain()
        if len(runs.seen) == 1:
            shop.deliver()
        assert runs.seen == [(1, False), (2, True)]
        assert shop.record.runs == 0

    def test_an_automatic_retry(self, shop: Shop) -> None:
        """As by ``autoretry_for`` after a read time-out, which a provider may have charged for."""
        runs = Runs(raising(TimeoutError()), raising(TimeoutError()))
        shop.sells(runs, autoretry_for=(TimeoutError,), retry_backoff=False, default_retry_delay=0)
        shop.publish()
        shop.worker.drain()
        assert runs.seen == [(1, False), (2, True), (3, True)]

    def test_a_death(self, shop: Shop, clock: FakeClock) -> None:
        """A holder whose claim has run out, also long after an outcome would have expired."""
        runs = Runs()
        shop.sells(runs, idempotency={"expires": 60})
        shop.claim_elsewhere()
        clock.advance(HOUR)
        shop.deliver()
        assert runs.seen == [(2, True)]

    def test_no_run_is_known_of_any_more(self, shop: Shop, clock: FakeClock) -> None:
        """When the record has expired: that of an outcome, or that of a run without one."""
        runs = Runs(raising(ValueError()))
        shop.sells(runs, idempotency={"expires": 60, "unresolved_for": HOUR, "lease": 10})
        for seconds in (HOUR + 2, 62, 0):
            shop.deliver()
            clock.advance(seconds)
        assert runs.seen == [(1, False)] * 3

    def test_a_replay_is_no_run(self, shop: Shop) -> None:
        """An outcome ends the count."""
        runs = Runs()
        shop.sells(runs)
        for _ in range(2):
            shop.deliver()
        assert (runs.seen, shop.record.runs) == ([(1, False)], 0)

    def test_a_stored_failure_is_an_outcome(self, shop: Shop, clock: FakeClock) -> None:
        """When it has expired, the next run is the first again."""
        runs = Runs(raising(ValueError()))
        shop.sells(runs, idempotency={"store_failures": ValueError, "expires": 60, "lease": 10})
        shop.deliver()
        clock.advance(62)
        shop.deliver()
        assert runs.seen == [(1, False)] * 2

    @pytest.mark.parametrize("at_publish", ["join", "raise"])
    def test_a_reservation_is_no_run(self, shop: Shop, at_publish: str) -> None:
        """Neither the message's, nor that of its retry."""
        runs = Runs(retrying)
        shop.sells(runs, idempotency={"at_publish": at_publish})
        shop.publish()
        shop.worker.drain()
        assert runs.seen == [(1, False), (2, True)]

    def test_a_lock_is_no_run(self, shop: Shop) -> None:
        """Under ``exclusive()`` the runs of a task id are counted, not those of the task."""
        runs = Runs(raising(ValueError()))
        shop.sells(runs, idempotency=Idempotency.exclusive())
        for task_id in ("one", "two", "one"):
            shop.deliver(task_id=task_id)
        assert runs.seen == [(1, False), (1, False), (2, True)]

    def test_unguarded(self, app: Celery) -> None:
        """A direct call knows of no other run, and may say that it did nothing."""
        runs = Runs()

        def charge(self: Any) -> Any:
            self.idempotency.nothing_done()
            return runs(self)

        make(app, charge, bind=True)()
        assert runs.seen == [(1, False)]


class TestNothingDone:
    """``nothing_done()``."""

    @pytest.mark.parametrize("end", [ENDS["raised"], retrying], ids=["raised", "retried"])
    def test_its_run_does_not_count(self, shop: Shop, end: Body) -> None:
        """The provider has refused: the next run is as the first."""

        def refused(task: Any) -> Any:
            task.idempotency.nothing_done()
            return end(task)

        runs = Runs(refused, refused)
        shop.sells(runs)
        shop.publish()
        shop.worker.drain()
        while len(runs.seen) < 3:
            shop.deliver()
        assert runs.seen == [(1, False)] * 3

    def test_earlier_runs_count(self, shop: Shop) -> None:
        """Only the run that says so did nothing."""

        def refused(task: Any) -> Any:
            task.idempotency.nothing_done()
            retrying(task)

        runs = Runs(retrying, refused)
        shop.sells(runs)
        shop.publish()
        shop.worker.drain()
        assert runs.seen == [(1, False), (2, True), (2, True)]

    def test_a_crash_after_it_counts(self, bench: Bench) -> None:
        """A process that is out of memory has gone on after it said so."""

        def refused(run: RunContext) -> None:
            run.nothing_done()
            raise MemoryError

        with pytest.raises(MemoryError):
            bench.deliver(value=refused)
        assert (bench.store.get(KEY).runs, bench.store.get(KEY).attempt) == (1, 1)

    def test_an_outcome_after_it_is_one(self, shop: Shop) -> None:
        """The body has gone on and returned."""
        runs = Runs(lambda task: task.idempotency.nothing_done())
        shop.sells(runs)
        for _ in range(2):
            shop.deliver()
        assert runs.seen == [(1, False)]


class TestGuard:
    """Grants whose body did not begin."""

    def test_an_interrupt_before_the_body(self, broken: Broken) -> None:
        """The claim was granted, and the delivery is interrupted before its answer is seen."""
        bench = broken(claim=[lost_answer(Interrupt())])
        assert isinstance(bench.deliver(), Interrupted)
        assert bench.store.get(KEY).runs == 0

    def test_a_crash_loop_that_is_refused(self, bench: Bench, clock: FakeClock) -> None:
        """The delivery that fails has run nothing; those that crashed have."""
        for dead in ("one", "two"):
            grant(bench.store, dead)
            clock.advance(31)
        with pytest.raises(CrashLoopError):
            bench.deliver("three", guard=bench.guard(max_crashes=2))
        record = bench.store.get(KEY)
        assert (record.runs, record.attempt) == (2, 0)

    def test_a_grant_whose_answer_was_lost(self, broken: Broken) -> None:
        """The repeated request finds its own claim."""
        bench, seen = broken(claim=[lost_answer()]), []
        assert bench.deliver(value=lambda run: seen.append((run.run, run.rerun))) == Returned(None)
        assert seen == [(1, False)]

    def test_a_grant_whose_answer_was_lost_for_longer_than_its_lease(self, broken: Broken, clock: FakeClock) -> None:
        """It is renewed, and counts once; no body has begun under it."""

        def lose(call: Callable[[], Any]) -> Any:
            call()
            clock.advance(3)
            return lost_answer()(lambda: None)

        bench, seen = broken(claim=[lose]), []
        guard = bench.guard()

        def note(run: RunContext) -> None:
            seen.append((run.run, run.attempt))

        assert bench.deliver(value=note, guard=guard, lease_seconds=2) == Returned(None)
        assert seen == [(1, 1)]

    def test_a_grant_that_comes_too_late_and_is_renewed(self, broken: Broken, clock: FakeClock) -> None:
        """It is the same run."""
        bench, seen = broken(claim=[stands_still(clock, 31)]), []
        assert bench.deliver(value=lambda run: seen.append(run.run)) == Returned(None)
        assert seen == [1]

    def test_a_grant_that_comes_too_late_after_another_run(
        self, store: MemoryStore, broken: Broken, clock: FakeClock
    ) -> None:
        """Another delivery has run and failed meanwhile: that is an earlier run."""

        def late(call: Callable[[], Any]) -> Any:
            answer = call()
            clock.advance(31)
            store.release(grant(store, "two"), "ValueError")
            return answer

        bench, seen = broken(claim=[late]), []
        assert bench.deliver(value=lambda run: seen.append(run.rerun)) == Returned(None)
        assert seen == [True]


class TestRetention:
    """For how long a record without an outcome is kept: ``unresolved_for`` from the claim, or from a renewal."""

    def test_a_renewed_claim(self, store: MemoryStore, clock: FakeClock) -> None:
        """A body that runs for an hour is known of for as long after it."""
        run, renewer = start(store, unresolved_seconds=DAYS), ManualRenewer()
        with renewer.renewing(run, store, TERMS, unseen):
            clock.advance(30)
            renewer.renew_due()
        assert store.get(KEY).expiration == clock.now() + DAYS

    def test_a_grant_that_came_too_late(self, broken: Broken, clock: FakeClock) -> None:
        """It is renewed before the body begins."""
        bench = broken(claim=[stands_still(clock, 31)])
        kept: list[float] = []

        def body(_: RunContext) -> None:
            kept.append(bench.store.get(KEY).expiration - clock.now())

        assert bench.deliver(value=body, unresolved_seconds=DAYS) == Returned(None)
        assert kept == [DAYS]

    def test_a_lock_is_not_kept_for_longer(self, shop: Shop, clock: FakeClock) -> None:
        """It says nothing about runs; the record of the task id beside it does."""
        kept: dict[bool, tuple[float, int]] = {}

        def note(_: Any) -> None:
            for record in shop.store.records():
                kept["#exclusive#" in record.key] = (record.expiration - clock.now(), record.runs)

        shop.sells(note, idempotency=Idempotency.exclusive(unresolved_for=DAYS))
        shop.deliver()
        assert kept == {True: (OWN_RETENTION_SECONDS, 0), False: (DAYS, 1)}


def test_an_outcome_that_is_put_back_is_of_its_generation(bench: Bench, store: MemoryStore) -> None:
    """Its record was deleted while the body ran."""
    claims: list[Claim] = []

    def body(run: RunContext) -> None:
        claims.append(run.claim)
        store.forget(KEY)

    assert bench.deliver(value=body) == Returned(None)
    record = store.get(KEY)
    assert (record.generation, record.runs) == (claims[0].generation, 0)


class OlderStore:
    """A user's own store, written before runs were counted: it neither returns them nor takes ``nothing_done``."""

    def __init__(self, inner: MemoryStore) -> None:
        self._inner = inner

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def claim(self, request: ClaimRequest) -> ClaimAnswer:
        """Claim, and count crashes only."""
        answer = self._inner.claim(request)
        if not isinstance(answer, Granted):
            return answer
        claim = answer.claim
        return Granted(
            Claim(
                request=request,
                fence=claim.fence,
                attempt=claim.attempt,
                in_progress_expiration=claim.in_progress_expiration,
            )
        )

    def release(self, claim: Claim, reason: str, *, crashed: bool = False) -> Released | Lost:
        """Release, whatever the body has done."""
        return self._inner.release(claim, reason, crashed=crashed)


def test_a_store_that_counts_crashes_only(store: MemoryStore, clock: FakeClock) -> None:
    """A rerun after a crash is known as one."""
    bench, seen = Bench(OlderStore(store)), []  # type: ignore[arg-type]
    grant(store, "dead")
    clock.advance(31)
    assert bench.deliver("two", lambda run: seen.append((run.run, run.rerun))) == Returned(None)
    assert seen == [(2, True)]
