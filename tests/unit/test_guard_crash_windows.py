"""The guard where something breaks: lost answers, outages, records that vanish, owners that come back from the dead."""

from collections.abc import Callable
from itertools import repeat
from typing import Any

import pytest

from idempotent_tasks import events
from idempotent_tasks.core.guard import Returned, Unclaimed
from idempotent_tasks.core.lease import RunContext
from idempotent_tasks.core.records import Busy, Status, Superseded
from idempotent_tasks.core.retry import STORE_RETRY_SECONDS
from idempotent_tasks.errors import (
    CrashLoopError,
    RecordCorruptError,
    ResultEncodingError,
    StoreMisconfiguredError,
    StoreUnavailableError,
)
from idempotent_tasks.testing import FakeClock, MemoryStore
from tests.support.guarding import KEY, Bench, Broken, done, grant
from tests.support.stores import FaultyStore, answers, down, lost_answer, passes


def calls(bench: Bench, method: str) -> int:
    """Count the calls of one method."""
    assert isinstance(bench.store, FaultyStore)
    return bench.store.calls.count(method)


def test_a_claims_answer_lost_is_granted_with_the_same_fence(broken: Broken, store: MemoryStore) -> None:
    """The repeated claim meets its own first try and is granted; the body runs once."""
    bench = broken(claim=[lost_answer()])
    told: list[int] = []
    assert bench.deliver(value=lambda run: told.append(run.fence)) == Returned(None)
    assert calls(bench, "claim") == 2
    assert told == [store.get(KEY).fence] == [bench.the(events.Claimed).fence]
    assert bench.the(events.Claimed).attempt == 1


def test_a_commits_answer_lost_is_one_commit(broken: Broken, store: MemoryStore) -> None:
    """The repeated commit finds its own outcome."""
    bench = broken(commit=[lost_answer(), lost_answer()])
    assert bench.deliver() == Returned("done")
    assert calls(bench, "commit") == 3
    assert bench.events() == ["Claimed", "Committed"]
    assert store.get(KEY).status is Status.COMPLETED


def test_a_releases_answer_lost_is_one_release(broken: Broken, store: MemoryStore) -> None:
    """The repeated release finds the key free and is content."""
    bench = broken(release=[lost_answer()])
    with pytest.raises(KeyError):
        bench.deliver(value=KeyError("x"))
    assert bench.the(events.Released).reason == "KeyError"
    assert store.get(KEY).free


def test_a_store_that_is_down_runs_no_body(broken: Broken, clock: FakeClock) -> None:
    """After some patience the delivery goes back unclaimed; the body does not run on a guess."""
    bench = broken(claim=repeat(down()))
    start = clock.now()
    verdict = bench.deliver()
    assert isinstance(verdict, Unclaimed)
    assert isinstance(verdict.error, StoreUnavailableError)
    assert bench.ran == bench.events() == []
    assert start < clock.now() <= start + STORE_RETRY_SECONDS


def test_a_short_outage_delays_the_claim(broken: Broken) -> None:
    """A store that comes back in time is not noticed."""
    bench = broken(claim=[down(), down(), down()])
    assert bench.deliver() == Returned("done")


@pytest.mark.parametrize("error", [StoreMisconfiguredError("no table"), RecordCorruptError("odd item")], ids=repr)
def test_a_store_that_refuses_runs_no_body(broken: Broken, clock: FakeClock, error: Exception) -> None:
    """What repeating cannot mend is not repeated."""
    bench = broken(claim=[down(error)])
    start = clock.now()
    assert bench.deliver() == Unclaimed(error)  # type: ignore[arg-type]
    assert bench.ran == []
    assert calls(bench, "claim") == 1
    assert clock.now() == start


def test_a_bug_in_a_store_is_no_verdict(broken: Broken) -> None:
    """An error that no store may raise comes out, and the body does not run."""
    bench = broken(claim=[down(ZeroDivisionError())])
    with pytest.raises(ZeroDivisionError):
        bench.deliver()
    assert bench.ran == []


def test_a_commit_is_tried_while_the_claim_lives(broken: Broken, clock: FakeClock) -> None:
    """An outage that ends before the claim does costs nothing but time."""
    start = clock.now()

    def outage(call: Callable[[], Any]) -> Any:
        if clock.now() < start + 25:
            raise StoreUnavailableError
        return call()

    bench = broken(commit=repeat(outage))
    assert bench.deliver() == Returned("done")
    assert bench.events() == ["Claimed", "Committed"]


def test_a_commit_is_tried_until_the_end_of_a_short_claim(broken: Broken, clock: FakeClock) -> None:
    """No pause sleeps over the last part of a lease, after which somebody else would run the body again."""
    lease = 4.0

    def outage(call: Callable[[], Any]) -> Any:
        if clock.now() < end - lease / 10:
            raise StoreUnavailableError
        return call()

    for owner in map(str, range(20)):
        end = clock.now() + lease
        bench = broken(commit=repeat(outage))
        assert bench.deliver(owner, lease_seconds=lease, key=f"{KEY}-{owner}") == Returned("done")
        assert clock.now() < end


def test_a_commit_that_never_lands_still_returns_the_result(broken: Broken, clock: FakeClock) -> None:
    """The body did succeed: its value comes out, and an event says that it is not on record."""
    bench = broken(commit=repeat(down()))
    start = clock.now()
    assert bench.deliver() == Returned("done")
    assert bench.the(events.Unrecorded).reason == "StoreUnavailableError"
    assert bench.the(events.Unrecorded).kept
    assert bench.events() == ["Claimed", "Unrecorded"]
    assert start + 25 < clock.now() <= start + 30


def test_a_commit_after_the_claims_end_is_tried_on_too(broken: Broken, clock: FakeClock) -> None:
    """A body that outran its claim, as in an outage that stopped the renewals, still gets its result on record."""

    def outrun(_: RunContext) -> str:
        clock.advance(300)
        return "done"

    begun = clock.now()

    def outage(call: Callable[[], Any]) -> Any:
        if clock.now() < begun + 303:
            raise StoreUnavailableError
        return call()

    bench = broken(commit=repeat(outage))
    assert bench.deliver(value=outrun) == Returned("done")
    assert bench.events() == ["Claimed", "Committed"]


@pytest.mark.parametrize(
    ("step", "value", "verdict"),
    [
        ("claim", "done", Unclaimed(StoreUnavailableError("made to fail"))),
        ("commit", "done", Returned("done")),
        ("release", ZeroDivisionError(), ZeroDivisionError()),
    ],
)
def test_an_outage_never_outlasts_the_process(
    broken: Broken, clock: FakeClock, step: str, value: Any, verdict: Any
) -> None:
    """Where a hard time limit will kill the process, no try is left for it to kill: the delivery comes to its end."""
    bench = broken(**{step: repeat(down())})
    begun = clock.now()
    guard = bench.guard(dies_at=begun + 3)
    if isinstance(verdict, Exception):
        with pytest.raises(type(verdict)):
            bench.deliver(value=value, guard=guard)
    else:
        assert repr(bench.deliver(value=value, guard=guard)) == repr(verdict)
    assert calls(bench, step) > 1
    assert begun < clock.now() <= begun + 3


def test_a_wait_never_outlasts_the_process(bench: Bench, store: MemoryStore, clock: FakeClock) -> None:
    """A duplicate that waits in its slot is deferred before a hard time limit kills it."""
    grant(store, "holder")
    begun = clock.now()
    assert isinstance(bench.deliver(guard=bench.guard(dies_at=begun + 3, on_busy="wait", wait_timeout=10)), Busy)
    assert begun + 2 < clock.now() <= begun + 3


REFUSALS = [StoreMisconfiguredError("no permission"), RecordCorruptError("odd")]


@pytest.mark.parametrize("error", REFUSALS, ids=repr)
def test_a_commit_that_is_refused_is_tried_while_the_claim_lives(
    broken: Broken, clock: FakeClock, error: Exception
) -> None:
    """After the effect every error is a reason to try again: it may be one refresh of credentials that stumbled."""
    end = clock.now() + 29

    def refused(call: Callable[[], Any]) -> Any:
        if clock.now() < end:
            raise error
        return call()

    bench = broken(commit=repeat(refused))
    assert bench.deliver() == Returned("done")
    assert bench.events() == ["Claimed", "Committed"]


@pytest.mark.parametrize("error", REFUSALS, ids=repr)
def test_a_commit_that_is_refused_still_returns_the_result(broken: Broken, clock: FakeClock, error: Exception) -> None:
    """So it does where the store never takes it."""
    start = clock.now()
    bench = broken(commit=repeat(down(error)))
    assert bench.deliver() == Returned("done")
    assert bench.the(events.Unrecorded).reason == type(error).__name__
    assert start + 25 < clock.now() <= start + 30


def test_a_stores_bug_in_a_commit_comes_out_and_is_told(broken: Broken) -> None:
    """An error that no store may raise ends the run, whose outcome is not on record."""
    bench = broken(commit=[down(ZeroDivisionError())])
    with pytest.raises(ZeroDivisionError):
        bench.deliver()
    assert bench.the(events.Unrecorded).reason == "ZeroDivisionError"


@pytest.mark.parametrize("error", REFUSALS, ids=repr)
def test_a_release_that_is_refused_is_tried_while_the_claim_lives(
    broken: Broken, clock: FakeClock, store: MemoryStore, error: Exception
) -> None:
    """A key that waits for its claim's end counts a crash that was none."""
    end = clock.now() + 28

    def refused(call: Callable[[], Any]) -> Any:
        if clock.now() < end:
            raise error
        return call()

    bench = broken(release=repeat(refused))
    with pytest.raises(KeyError, match="mine"):
        bench.deliver(value=KeyError("mine"))
    assert bench.the(events.Released).reason == "KeyError"
    assert store.get(KEY).free


def test_an_unwritable_result_that_is_not_recorded_is_reported(broken: Broken) -> None:
    """The encoding error comes out whether or not the store took the outcome."""
    bench = broken(commit=repeat(down()))
    with pytest.raises(ResultEncodingError):
        bench.deliver(value={1, 2})
    assert bench.events() == ["Claimed", "Unrecorded"]


@pytest.mark.parametrize("error", [None, StoreMisconfiguredError("no permission")], ids=repr)
def test_a_failing_release_does_not_replace_the_users_exception(
    broken: Broken, clock: FakeClock, error: Exception | None
) -> None:
    """The body's own error comes out; the key is free when the claim expires, and the event says so."""
    bench = broken(release=repeat(down(error)))
    start = clock.now()
    with pytest.raises(KeyError, match="mine"):
        bench.deliver(value=KeyError("mine"))
    assert bench.the(events.Released).reason.startswith("KeyError, then Store")
    assert start + 25 < clock.now() <= start + 30
    clock.advance(31)
    assert bench.deliver("two") == Returned("done")


def test_the_plan_of_a_faulty_store_is_followed(store: MemoryStore) -> None:
    """The tests' own tool: each step is one call's, and later calls go through."""
    faulty = FaultyStore(store, commit=[passes, answers(Superseded(record=None))], get=[down()])  # type: ignore[arg-type]
    claim = grant(faulty)
    faulty.commit(claim, done(), 3600)
    assert isinstance(faulty.commit(claim, done(), 3600), Superseded)
    with pytest.raises(StoreUnavailableError):
        faulty.get(KEY)
    assert faulty.get(KEY).data == '"done"'


def test_an_exit_releases_the_key_and_counts(bench: Bench) -> None:
    """A body that ends its process takes it from the worker, as a crash does; the next delivery runs at once."""
    with pytest.raises(SystemExit):
        bench.deliver("one", SystemExit(1))
    assert bench.the(events.Released).reason == "SystemExit"
    assert bench.deliver("two") == Returned("done")
    assert [event.attempt for event in bench.seen if isinstance(event, events.Claimed)] == [1, 2]


class Cancelled(BaseException):
    """What `asyncio` and gevent raise to end a coroutine or a greenlet."""


@pytest.mark.parametrize(
    ("error", "watched"),
    [(MemoryError(), False), (MemoryError(), True), (Cancelled(), False)],
    ids=repr,
)
def test_what_celery_takes_for_a_lost_worker_counts(store: MemoryStore, error: BaseException, watched: bool) -> None:
    """The process lives on, so nobody else frees the key; a body that does it each time is given up."""
    bench = Bench(store)
    guard = bench.guard(watched=watched, max_crashes=2)
    for owner in ("one", "two"):
        with pytest.raises(type(error)):
            bench.deliver(owner, error, guard=guard)
    with pytest.raises(CrashLoopError):
        bench.deliver("three", error, guard=guard)
    assert [event.attempt for event in bench.seen if isinstance(event, events.Claimed)] == [1, 2]


def test_what_is_no_exception_is_a_failure_in_the_prefork_pool(bench: Bench) -> None:
    """There Celery stores it as the task's, and acknowledges the message."""
    guard = bench.guard(watched=True, max_crashes=1)
    for owner in ("one", "two"):
        with pytest.raises(Cancelled):
            bench.deliver(owner, Cancelled(), guard=guard)
    assert bench.ran == ["one", "two"]


class GreenletExit(BaseException):
    """What ends a greenlet from outside; named as in `greenlet`, which is not imported."""


def test_a_greenlet_that_is_ended_from_outside_counts_nothing(bench: Bench) -> None:
    """Somebody has revoked its task."""
    guard = bench.guard(max_crashes=1)
    for owner in ("one", "two"):
        with pytest.raises(GreenletExit):
            bench.deliver(owner, GreenletExit(), guard=guard)
    assert bench.ran == ["one", "two"]


class Unspeakable(Exception):  # noqa: N818 - it is not one
    """Cannot be shown, nor pickled."""

    def __str__(self) -> str:
        raise ValueError

    __repr__ = __str__

    def __reduce__(self) -> Any:
        raise TypeError


@pytest.mark.parametrize("error", [RecursionError(), Unspeakable()], ids=["RecursionError", "Unspeakable"])
def test_an_exception_of_whatever_kind_is_a_clean_end(bench: Bench, error: Exception) -> None:
    """It frees the key by the name of its type alone, and counts nothing."""
    with pytest.raises(type(error)):
        bench.deliver("one", error)
    assert bench.the(events.Released).reason == type(error).__name__
    assert bench.deliver("two") == Returned("done")
    assert [event.attempt for event in bench.seen if isinstance(event, events.Claimed)] == [1, 1]
