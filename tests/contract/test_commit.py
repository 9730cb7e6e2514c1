"""The last write: who may store an outcome, and what those are told who may not."""

import pytest

from idempotent_tasks import RecordExistsError, RecordNotFoundError, Status
from idempotent_tasks.core.records import Committed, Finished, Lost, Outcome, Superseded, Vanished
from tests.contract.conftest import AnyStore, MovableClock
from tests.support.guarding import KEY, done, grant, request_by

LEASE = 30
RETENTION = 3600


def test_the_owner_commits(store: AnyStore, clock: MovableClock) -> None:
    """The outcome is stored with its time; attempts count from 0 again, and fence and owner stay."""
    claim = grant(store, validation="a")
    before = int(clock.now() * 1000)
    assert store.commit(claim, done(), RETENTION) == Committed()
    record = store.get(KEY)
    assert (record.status, record.data, record.codec) == (Status.COMPLETED, '"done"', "json")
    assert (record.fence, record.owner, record.attempt, record.validation) == (claim.fence, "one", 0, "a")
    assert (record.task, record.task_id, record.worker) == ("shop.charge", "id-one", "worker@host")
    assert record.completed_at is not None
    assert before <= record.completed_at <= clock.now() * 1000
    assert before / 1000 + RETENTION <= record.expiration <= clock.now() + RETENTION + 1


def test_a_short_retention_still_outlives_the_claim(store: AnyStore) -> None:
    """``expiration`` is later than ``in_progress_expiration`` in a finished record too."""
    claim = grant(store, lease_seconds=900)
    store.commit(claim, done(), 1)
    record = store.get(KEY)
    assert record.expiration * 1000 > (record.in_progress_expiration or 0)


@pytest.mark.parametrize(
    "data",
    ["null", "0", '""', "[]", "{}", "false", '"£ \U0001f600 \\u0000"', "", b"", b"\x00\xff" * 8, None],
    ids=["null", "0", "text", "list", "dict", "false", "unicode", "empty", "no-bytes", "bytes", "none"],
)
def test_data_comes_back_as_it_was(store: AnyStore, data: str | bytes | None) -> None:
    """Text, bytes and their empty forms are replayed unchanged and are not the same as no data."""
    store.commit(grant(store), Outcome(status=Status.COMPLETED, codec="x", data=data, error="why"), RETENTION)
    answer = store.claim(request_by("two"))
    assert isinstance(answer, Finished)
    assert (answer.record.data, type(answer.record.data)) == (data, type(data))
    assert (answer.record.codec, answer.record.error) == ("x", "why")


def test_a_late_owner_may_commit(store: AnyStore, clock: MovableClock) -> None:
    """Owner alone decides: a claim that expired and that nobody took is still its owner's."""
    claim = grant(store)
    clock.advance(LEASE + 600)
    assert store.commit(claim, done(), RETENTION) == Committed()
    assert isinstance(store.claim(request_by("two")), Finished)


def test_a_second_commit_changes_nothing(store: AnyStore) -> None:
    """A commit whose answer was lost is repeated: success, and the data is the first one's."""
    claim = grant(store)
    store.commit(claim, done('"first"'), RETENTION)
    record = store.get(KEY)
    assert store.commit(claim, done('"second"'), RETENTION * 2) == Committed()
    assert store.get(KEY) == record


class TestSuperseded:
    """Another owner has taken the key."""

    def test_while_the_other_runs(self, store: AnyStore, clock: MovableClock) -> None:
        """The late owner is told the other's record and does not disturb it."""
        late = grant(store)
        clock.advance(LEASE + 2)
        grant(store, "two")
        record = store.get(KEY)
        assert record.owner == "two"
        assert store.commit(late, done('"late"'), RETENTION) == Superseded(record)
        assert store.get(KEY) == record

    def test_after_the_other_finished(self, store: AnyStore, clock: MovableClock) -> None:
        """The late owner is told the other's outcome, which stays the key's."""
        late = grant(store)
        clock.advance(LEASE + 2)
        store.commit(grant(store, "two"), done('"two"'), RETENTION)
        answer = store.commit(late, done('"late"'), RETENTION)
        assert isinstance(answer, Superseded)
        assert (answer.record.owner, answer.record.data) == ("two", '"two"')
        assert store.get(KEY) == answer.record

    def test_after_the_other_released(self, store: AnyStore, clock: MovableClock) -> None:
        """Also a claim that was taken and given back was taken: the next claim runs, not the late outcome."""
        late = grant(store)
        clock.advance(LEASE + 2)
        store.release(grant(store, "two"), "Retry")
        assert isinstance(store.commit(late, done('"late"'), RETENTION), Superseded)
        assert grant(store, "three").attempt == 1


def test_a_commit_repeated_late_is_kept_from_then_on(store: AnyStore, clock: MovableClock) -> None:
    """A process that stood still between a try and its repetition does not leave an outcome that expires too early."""
    claim = grant(store)
    store.commit(claim, done('"first"'), RETENTION)
    clock.advance(RETENTION - 10)
    assert store.commit(claim, done('"second"'), RETENTION) == Committed()
    record = store.get(KEY)
    assert record.data == '"first"'
    assert clock.now() + RETENTION - 2 <= record.expiration <= clock.now() + RETENTION + 2


class TestVanished:
    """Somebody deleted the record under the claim."""

    def test_nothing_is_stored(self, store: AnyStore) -> None:
        """A commit makes no record out of nothing."""
        claim = grant(store)
        store.forget(KEY)
        assert store.commit(claim, done(), RETENTION) == Vanished()
        with pytest.raises(RecordNotFoundError):
            store.get(KEY)

    def test_a_whole_record_is_restored(self, store: AnyStore) -> None:
        """The record comes back as it was, may be restored twice, and replays."""
        claim = grant(store, validation="a")
        store.commit(claim, done(), RETENTION)
        record = store.get(KEY)
        store.forget(KEY)
        store.restore(record)
        store.restore(record)
        assert store.get(KEY) == record
        assert store.claim(request_by("two", validation="a")) == Finished(record)

    def test_a_restored_fence_goes_on(self, store: AnyStore, clock: MovableClock) -> None:
        """The next claim after a restored record has a larger fence."""
        claim = grant(store)
        record = store.get(KEY)
        store.forget(KEY)
        store.restore(record)
        clock.advance(LEASE + 2)
        assert grant(store, "two").fence == claim.fence + 1

    def test_a_claim_of_ones_own_is_no_outcome(self, store: AnyStore) -> None:
        """An early request of the same claim, long on its way, lands before the restore: the commit is for that."""
        claim = grant(store)
        store.commit(claim, done(), RETENTION)
        record = store.get(KEY)
        store.forget(KEY)
        late = grant(store)
        with pytest.raises(RecordExistsError):
            store.restore(record)
        assert store.get(KEY).status is Status.INPROGRESS
        assert store.commit(late, done(), RETENTION) == Committed()

    def test_another_owner_was_faster(self, store: AnyStore) -> None:
        """A record is never restored over another's, which stays as it is."""
        grant(store)
        mine = store.get(KEY)
        store.forget(KEY)
        grant(store, "two")
        theirs = store.get(KEY)
        with pytest.raises(RecordExistsError) as caught:
            store.restore(mine)
        assert (caught.value.key, caught.value.task) == (KEY, "shop.charge")
        assert store.get(KEY) == theirs

    def test_there_is_nothing_to_release_or_renew(self, store: AnyStore) -> None:
        """Neither makes a record out of nothing."""
        claim = grant(store)
        store.forget(KEY)
        assert store.release(claim, "Retry") == Lost()
        assert store.renew(claim, LEASE, RETENTION) == Lost()
        with pytest.raises(RecordNotFoundError):
            store.get(KEY)
