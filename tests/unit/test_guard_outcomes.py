"""What the guard stores of a run and gives of a record: large results, final failures, and what ``on_replay`` says."""

import secrets
from collections.abc import Callable
from typing import Any

import pytest
from celery.exceptions import Ignore

from idempotent_tasks import events
from idempotent_tasks.core.guard import Failed, Guard, Interrupted, Replayed, Returned, Unreadable
from idempotent_tasks.core.lease import RunContext
from idempotent_tasks.core.records import Busy, Outcome, Record, Status
from idempotent_tasks.core.results import Recalled
from idempotent_tasks.errors import (
    ConfigurationError,
    IdempotencyError,
    PayloadMismatchError,
    ResultUnavailableError,
    StoredFailureError,
    StoreError,
    StoreMisconfiguredError,
    StoreUnavailableError,
)
from idempotent_tasks.testing import FakeClock, MemoryStore
from tests.support.guarding import KEY, Bench, Broken, Interrupt, grant
from tests.support.stores import MemoryBucket, down, meanwhile

#: Larger than a store with this limit takes, however it is compressed.
LARGE = secrets.token_hex(4000)
SMALL_BYTES = 1000

each_failure = pytest.mark.parametrize(
    "error", [StoreUnavailableError("no answer"), StoreMisconfiguredError("no bucket")], ids=repr
)


class Declined(Exception):  # noqa: N818 - named as users name theirs
    """A final failure."""


class DeclinedForGood(Declined):
    """A subclass."""


@pytest.fixture
def store(clock: FakeClock) -> MemoryStore:
    """A store that takes little."""
    return MemoryStore(clock=clock, max_data_bytes=SMALL_BYTES)


def guard(bench: Bench, bucket: MemoryBucket | None = None, **given: Any) -> Guard:
    """Return a guard with a bucket, or with other fields of its own."""
    policy = given.pop("policy", {})
    return bench.guard(bucket=bucket, **given, **policy)


class TestBucket:
    """Results that the store does not take."""

    def test_a_large_result_lies_in_the_bucket(self, bench: Bench, store: MemoryStore) -> None:
        """It is there before the commit, until its record expires; the replay gets it from there."""
        bucket = MemoryBucket()
        assert bench.deliver("one", LARGE, guard=guard(bench, bucket)) == Returned(LARGE)
        record = store.get(KEY)
        assert (record.codec, record.data) == ("json+zlib+s3", *bucket.objects)
        assert list(bucket.expiries.values()) == [record.expiration]
        assert bench.deliver("two", guard=guard(bench, bucket)) == Replayed(LARGE)
        assert bucket.calls == ["put", "get"]
        assert bench.ran == ["one"]
        assert bench.events() == ["Claimed", "Committed", "Replayed"]

    def test_a_small_result_stays_in_the_record(self, bench: Bench) -> None:
        """The bucket costs nothing where it is not needed."""
        bucket = MemoryBucket()
        bench.deliver("one", "small", guard=guard(bench, bucket))
        assert bench.deliver("two", guard=guard(bench, bucket)) == Replayed("small")
        assert bucket.calls == []

    def test_a_bound_of_the_users(self, bench: Bench) -> None:
        """``above_bytes`` sends to the bucket what the store would take; where it fails, the store does."""
        text = "x" * 98  # 100 bytes as JSON
        roomy, tight = MemoryBucket(above_bytes=100), MemoryBucket(above_bytes=99)
        bench.deliver("one", text, guard=guard(bench, roomy), key="one")
        bench.deliver("two", text, guard=guard(bench, tight), key="two")
        assert (roomy.calls, tight.calls) == ([], ["put"])
        broken = MemoryBucket(above_bytes=99, failures=[StoreMisconfiguredError("no bucket")])
        bench.deliver("three", text, guard=guard(bench, broken), key="three")
        assert bench.deliver("four", guard=guard(bench, broken), key="three") == Replayed(text)

    def test_without_a_bucket_the_result_is_returned(self, bench: Bench) -> None:
        """The run succeeds; that it cannot be replayed is observed, and said by the replay."""
        assert bench.deliver("one", LARGE) == Returned(LARGE)
        assert bench.the(events.Unreplayable).reason.endswith("bytes as json+zlib, the store takes 1000")
        with pytest.raises(ResultUnavailableError, match="bytes as json"):
            bench.deliver("two")
        assert bench.ran == ["one"]

    def test_a_bucket_that_comes_back(self, bench: Bench) -> None:
        """It is asked again while a commit would be."""
        lost = StoreUnavailableError("no answer")
        bucket = MemoryBucket(failures=[lost, lost, None, lost])
        bench.deliver("one", LARGE, guard=guard(bench, bucket))
        assert bench.deliver("two", guard=guard(bench, bucket)) == Replayed(LARGE)
        assert bucket.calls == ["put"] * 3 + ["get"] * 2

    @each_failure
    def test_a_bucket_that_does_not_take_it(self, bench: Bench, clock: FakeClock, error: StoreError) -> None:
        """The outcome is stored without the result, within seconds: the effect is done, and must not be repeated."""
        began = clock.now()
        bucket = MemoryBucket(failures=[error] * 1000)
        assert bench.deliver("one", LARGE, guard=guard(bench, bucket)) == Returned(LARGE)
        assert clock.now() <= began + 5
        assert bench.the(events.Unreplayable).reason.endswith(f"its bucket failed: {error.args[0]}")
        with pytest.raises(ResultUnavailableError, match="its bucket failed"):
            bench.deliver("two")

    @pytest.mark.parametrize(("seconds", "calls"), [(9, ["put"]), (7, [])])
    def test_the_commit_comes_before_the_bucket(
        self, bench: Bench, clock: FakeClock, store: MemoryStore, seconds: float, calls: list[str]
    ) -> None:
        """A bucket is not asked where the process is killed before a try without an answer would have ended."""
        bucket = MemoryBucket()
        hurried = bench.guard(dies_at=clock.now() + seconds, bucket=bucket)
        assert bench.deliver("one", LARGE, guard=hurried) == Returned(LARGE)
        assert bucket.calls == calls
        assert store.get(KEY).status is Status.COMPLETED

    @each_failure
    def test_a_bucket_that_does_not_give_it(self, bench: Bench, error: StoreError) -> None:
        """The replay is put off, and the body does not run."""
        bench.deliver("one", LARGE, guard=guard(bench, MemoryBucket()))
        assert bench.deliver("two", guard=guard(bench, MemoryBucket(failures=[error] * 1000))) == Unreadable(error)
        assert bench.ran == ["one"]
        assert "Replayed" not in bench.events()

    def test_an_object_that_is_gone(self, bench: Bench) -> None:
        """The replay fails by name."""
        bucket = MemoryBucket()
        bench.deliver("one", LARGE, guard=guard(bench, bucket))
        bucket.objects.clear()
        with pytest.raises(ResultUnavailableError, match=r"task id-one ran already, but its result s3://.* is gone"):
            bench.deliver("two", guard=guard(bench, bucket))

    def test_a_worker_without_the_bucket(self, bench: Bench) -> None:
        """It says which setting it lacks."""
        bench.deliver("one", LARGE, guard=guard(bench, MemoryBucket()))
        with pytest.raises(ResultUnavailableError, match="set idempotency_results_bucket") as caught:
            bench.deliver("two")
        assert (caught.value.task, caught.value.key) == ("shop.charge", KEY)

    def test_an_interrupted_upload_is_made_again(self, bench: Bench) -> None:
        """A soft time limit that strikes after the body does not lose its result."""
        bucket = MemoryBucket(failures=[Interrupt()])
        assert bench.deliver("one", LARGE, guard=guard(bench, bucket)) == Returned(LARGE)
        assert bench.deliver("two", guard=guard(bench, bucket)) == Replayed(LARGE)

    def test_an_interrupted_replay_is_put_off(self, bench: Bench) -> None:
        """One that strikes while the result is read costs time only."""
        bench.deliver("one", LARGE, guard=guard(bench, MemoryBucket()))
        assert isinstance(bench.deliver("two", guard=guard(bench, MemoryBucket(failures=[Interrupt()]))), Interrupted)


class TestRecall:
    """Results that are stored nowhere, and that somebody else may have."""

    @pytest.mark.parametrize("value", ["recalled", None, 0], ids=repr)
    def test_a_recalled_result_is_replayed(self, bench: Bench, value: Any) -> None:
        """A falsy answer is one."""
        bench.deliver("one", LARGE)
        assert bench.deliver("two", recalled=Recalled(value)) == Replayed(value)

    def test_nobody_elses_is_replayed_for_what_is_stored(self, bench: Bench) -> None:
        """The record's own result counts."""
        bench.deliver("one", "small")
        assert bench.deliver("two", recalled=Recalled("another")) == Replayed("small")


class TestFailures:
    """``store_failures``."""

    @pytest.mark.parametrize("error", [Declined("no", 51), DeclinedForGood("never")], ids=repr)
    def test_a_final_failure_is_the_outcome(self, bench: Bench, store: MemoryStore, error: Exception) -> None:
        """It is stored, and each later delivery raises its like; the body runs once."""
        final = bench.guard(store_failures=Declined)
        assert bench.deliver("one", error, guard=final) == Failed(error)
        record = store.get(KEY)
        assert (record.status, record.attempt) == (Status.FAILED, 0)
        assert record.error == f"{__name__}.{type(error).__name__}"
        verdict = bench.deliver("two", guard=final)
        assert isinstance(verdict, Failed)
        assert verdict.error is not error
        assert (type(verdict.error), verdict.error.args) == (type(error), error.args)
        assert bench.ran == ["one"]
        assert bench.events() == ["Claimed", "Committed", "Replayed"]

    @pytest.mark.parametrize(
        "error",
        [ValueError(), Interrupt(), PayloadMismatchError(), SystemExit(1), Ignore()],
        ids=lambda error: type(error).__name__,
    )
    def test_anything_else_frees_the_key(self, bench: Bench, error: BaseException) -> None:
        """So do interrupts, the library's errors and what is no failure, even where everything is final."""
        kind = Declined if isinstance(error, ValueError) else Exception
        never = (Interrupt, IdempotencyError, Ignore)
        with pytest.raises(type(error)):
            bench.deliver("one", error, guard=guard(bench, policy={"store_failures": kind}, never_final=never))
        assert bench.deliver("two") == Returned("done")

    def test_a_retry_is_no_failure(self, bench: Bench) -> None:
        """What a body raises after it has handed its key over is not stored."""

        def body(run: RunContext) -> None:
            run.hand_over("Retry")
            raise Declined

        with pytest.raises(Declined):
            bench.deliver("one", body, guard=bench.guard(store_failures=Declined))
        assert bench.deliver("two") == Returned("done")

    def test_the_last_attempt_counts(self, bench: Bench, clock: FakeClock) -> None:
        """A crash before the failure leaves no trace in it."""
        grant(bench.store, "crashed")
        clock.advance(31)
        bench.deliver("two", Declined(), guard=bench.guard(store_failures=Declined))
        assert bench.store.get(KEY).attempt == 0

    def test_a_failure_of_a_run_that_was_superseded(self, bench: Bench, clock: FakeClock) -> None:
        """The other's outcome counts, and is returned."""

        def body(run: RunContext) -> None:
            clock.advance(31)
            bench.deliver("two", "other's")
            raise Declined

        assert bench.deliver("one", body, guard=bench.guard(store_failures=Declined)) == Replayed("other's")
        assert bench.ran == ["one", "two"]

    def test_a_failure_of_a_run_whose_successor_runs(self, bench: Bench, clock: FakeClock) -> None:
        """The delivery waits for the other's outcome."""

        def body(run: RunContext) -> None:
            clock.advance(31)
            grant(bench.store, "two")
            raise Declined

        assert isinstance(bench.deliver("one", body, guard=bench.guard(store_failures=Declined)), Busy)

    def test_a_store_that_does_not_take_it(self, broken: Broken) -> None:
        """The failure comes out all the same, and is observed as unrecorded."""
        bench = broken(commit=[down()] * 1000)
        error = Declined()
        assert bench.deliver("one", error, guard=bench.guard(store_failures=Declined)) == Failed(error)
        assert bench.the(events.Unrecorded)

    def test_a_record_that_vanished(self, bench: Bench) -> None:
        """The failure is put back as a whole record."""

        def body(run: RunContext) -> None:
            bench.store.forget(KEY)  # type: ignore[attr-defined]
            raise Declined("no")

        final = bench.guard(store_failures=Declined)
        bench.deliver("one", body, guard=final)
        verdict = bench.deliver("two", guard=final)
        assert isinstance(verdict, Failed)
        assert verdict.error.args == ("no",)

    def test_an_interrupt_does_not_lose_it(self, broken: Broken) -> None:
        """A soft time limit that strikes during its commit."""
        interrupt = meanwhile(lambda: (_ for _ in ()).throw(Interrupt))
        bench = broken(commit=[interrupt])
        error = Declined()
        assert bench.deliver("one", error, guard=bench.guard(store_failures=Declined)) == Failed(error)
        assert bench.store.get(KEY).status is Status.FAILED

    @pytest.mark.parametrize("argument", [object(), LARGE], ids=["unwritable", "large"])
    def test_a_failure_that_cannot_be_raised_again(self, bench: Bench, argument: Any) -> None:
        """It stays final, and its replay names the original."""
        final = bench.guard(store_failures=Declined)
        bench.deliver("one", Declined(argument), guard=final)
        assert bench.the(events.Unreplayable).reason == f"{__name__}.Declined"
        verdict = bench.deliver("two", guard=final)
        assert isinstance(verdict, Failed)
        assert isinstance(verdict.error, StoredFailureError)
        assert verdict.error.original == f"{__name__}.Declined"

    def test_a_large_failure_lies_in_the_bucket(self, bench: Bench) -> None:
        """As a result does; where it is gone, the error still names the original."""
        bucket = MemoryBucket()
        final = guard(bench, bucket, policy={"store_failures": Declined})
        bench.deliver("one", Declined(LARGE), guard=final)
        assert bench.store.get(KEY).codec == "failure+zlib+s3"
        verdict = bench.deliver("two", guard=final)
        assert isinstance(verdict, Failed)
        assert verdict.error.args == (LARGE,)
        bucket.objects.clear()
        verdict = bench.deliver("three", guard=final)
        assert isinstance(verdict, Failed)
        assert isinstance(verdict.error, StoredFailureError)

    def test_a_failure_outlives_its_declaration(self, bench: Bench) -> None:
        """A deployment that drops the type does not run the body again."""
        bench.deliver("one", Declined(), guard=bench.guard(store_failures=Declined))
        verdict = bench.deliver("two")
        assert isinstance(verdict, Failed)
        assert isinstance(verdict.error, StoredFailureError)
        assert bench.ran == ["one"]

    def test_the_same_task_id_knows_what_was_sent(self, bench: Bench) -> None:
        """A redelivery is told that its error callbacks were sent; another task id is not."""
        final = bench.guard(store_failures=Declined)
        bench.deliver("one", Declined(), guard=final)
        bench.store.note_dispatch(KEY, "id-one")
        verdicts = [bench.deliver(task_id, guard=final, task_id=task_id) for task_id in ("id-one", "id-two")]
        assert [verdict.dispatched for verdict in verdicts if isinstance(verdict, Failed)] == [True, False]


class TestOnReplay:
    """``on_replay``."""

    @pytest.mark.parametrize("value", ["paid", None, 0, []], ids=repr)
    def test_every_replay_passes(self, bench: Bench, value: Any) -> None:
        """It gets result and record, None and other falsy results included; the first run does not pass."""
        seen: list[tuple[Any, Record]] = []

        def hook(result: Any, record: Record) -> Any:
            seen.append((result, record))
            return result

        hooked = bench.guard(on_replay=hook)
        bench.deliver("one", value, guard=hooked)
        assert seen == []
        assert bench.deliver("two", guard=hooked) == Replayed(value)
        assert seen == [(value, bench.store.get(KEY))]

    def test_it_may_mark_the_result(self, bench: Bench) -> None:
        """What it returns is returned; the record stays as it is."""
        hooked = bench.guard(on_replay=lambda result, record: {**result, "replay_of": record.task_id})
        bench.deliver("one", {"paid": True}, guard=hooked)
        for _ in range(2):
            assert bench.deliver("two", guard=hooked) == Replayed({"paid": True, "replay_of": "id-one"})

    def test_returning_nothing_is_an_error(self, bench: Bench) -> None:
        """A hook that forgets to return does not turn results into None."""
        bench.deliver("one", "paid")
        with pytest.raises(ConfigurationError, match="on_replay returned None") as caught:
            bench.deliver("two", guard=bench.guard(on_replay=lambda result, record: None))
        assert (caught.value.task, caught.value.key) == ("shop.charge", KEY)

    @pytest.mark.parametrize("error", [KeyError("x"), Interrupt(), StoreUnavailableError()], ids=repr)
    def test_its_failure_is_the_deliverys(self, bench: Bench, error: Exception) -> None:
        """It comes out as it was raised, no replay is observed, and the record stays."""

        def hook(result: Any, record: Record) -> Any:
            raise error

        bench.deliver("one", "paid")
        with pytest.raises(type(error)):
            bench.deliver("two", guard=bench.guard(on_replay=hook))
        assert "Replayed" not in bench.events()
        assert bench.deliver("three") == Replayed("paid")

    def test_failures_do_not_pass(self, bench: Bench) -> None:
        """A failure has no result."""
        hooked: Callable[..., Any] = lambda result, record: pytest.fail("called")  # noqa: E731
        final = bench.guard(store_failures=Declined, on_replay=hooked)
        bench.deliver("one", Declined(), guard=final)
        assert isinstance(bench.deliver("two", guard=final), Failed)


def test_a_failure_of_another_writer(bench: Bench) -> None:
    """One without a codec's name is final, and named."""
    claim = grant(bench.store)
    bench.store.commit(claim, Outcome(status=Status.FAILED, codec="x", data=None, error="CardDeclined"), 3600)
    verdict = bench.deliver("two", guard=bench.guard(store_failures=Declined))
    assert isinstance(verdict, Failed)
    assert isinstance(verdict.error, IdempotencyError)
    assert "CardDeclined" in str(verdict.error)
