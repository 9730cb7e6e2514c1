"""The last write: who may store an outcome, and what those are told who may not."""

from dataclasses import replace

from idempotent_tasks.core.records import Committed, Finished, Lost, Outcome, Status, Superseded, Vanished
from idempotent_tasks.core.store import Store
from idempotent_tasks.errors import RecordExistsError, RecordNotFoundError
from idempotent_tasks.testing.clock import FakeClock
from idempotent_tasks.testing.conformance.base import RAISES, Conformance
from idempotent_tasks.testing.conformance.requests import KEY, LEASE_SECONDS, RETENTION_SECONDS, done, grant, request_by

__all__ = ["OutcomeConformance"]


class OutcomeConformance(Conformance):
    """`Store.commit` and `Store.restore`: who may store an outcome, and what those are told who may not."""

    def test_commit_the_owner_commits(self, store: Store, idempotency_clock: FakeClock) -> None:
        """The outcome is stored with its time; attempts count from 0 again, and fence and owner stay."""
        claim = grant(store, validation="a")
        before = int(idempotency_clock.now() * 1000)
        assert store.commit(claim, done(), RETENTION_SECONDS) == Committed()
        record = store.get(KEY)
        assert (record.status, record.data, record.codec) == (Status.COMPLETED, '"done"', "json")
        assert (record.fence, record.owner, record.attempt, record.validation) == (claim.fence, "one", 0, "a")
        assert (record.task, record.task_id, record.worker) == ("shop.charge", "id-one", "worker@host")
        assert record.completed_at is not None
        assert before <= record.completed_at <= idempotency_clock.now() * 1000
        assert before / 1000 + RETENTION_SECONDS <= record.expiration <= idempotency_clock.now() + RETENTION_SECONDS + 1

    def test_commit_a_short_retention_still_outlives_the_claim(self, store: Store) -> None:
        """``expiration`` is later than ``in_progress_expiration`` in a finished record too."""
        claim = grant(store, lease_seconds=900)
        store.commit(claim, done(), 1)
        record = store.get(KEY)
        assert record.expiration * 1000 > (record.in_progress_expiration or 0)

    def test_commit_data_comes_back_as_it_was(self, store: Store, data: str | bytes | None) -> None:
        """Text, bytes and their empty forms are replayed unchanged and are not the same as no data."""
        store.commit(
            grant(store), Outcome(status=Status.COMPLETED, codec="x", data=data, error="why"), RETENTION_SECONDS
        )
        answer = store.claim(request_by("two"))
        assert isinstance(answer, Finished)
        assert (answer.record.data, type(answer.record.data)) == (data, type(data))
        assert (answer.record.codec, answer.record.error) == ("x", "why")

    def test_commit_of_the_largest_data(self, store: Store, largest: str | bytes) -> None:
        """As many bytes as the store says that it takes."""
        data = largest * store.max_data_bytes
        outcome = Outcome(status=Status.COMPLETED, codec="x", data=data)
        assert store.commit(grant(store), outcome, RETENTION_SECONDS) == Committed()
        assert store.get(KEY).data == data

    def test_commit_a_late_owner_may_commit(self, store: Store, idempotency_clock: FakeClock) -> None:
        """Owner alone decides: a claim that expired and that nobody took is still its owner's."""
        claim = grant(store)
        idempotency_clock.advance(LEASE_SECONDS + 600)
        assert store.commit(claim, done(), RETENTION_SECONDS) == Committed()
        assert isinstance(store.claim(request_by("two")), Finished)

    def test_commit_a_second_commit_changes_nothing(self, store: Store) -> None:
        """A commit whose answer was lost is repeated: success, and the data is the first one's."""
        claim = grant(store)
        store.commit(claim, done('"first"'), RETENTION_SECONDS)
        record = store.get(KEY)
        assert store.commit(claim, done('"second"'), RETENTION_SECONDS) == Committed()
        assert store.get(KEY) == record

    def test_superseded_while_the_other_runs(self, store: Store, idempotency_clock: FakeClock) -> None:
        """The late owner is told the other's record and does not disturb it."""
        late = grant(store)
        idempotency_clock.advance(LEASE_SECONDS + 2)
        grant(store, "two")
        record = store.get(KEY)
        assert record.owner == "two"
        assert store.commit(late, done('"late"'), RETENTION_SECONDS) == Superseded(record)
        assert store.get(KEY) == record

    def test_superseded_after_the_other_finished(self, store: Store, idempotency_clock: FakeClock) -> None:
        """The late owner is told the other's outcome, which stays the key's."""
        late = grant(store)
        idempotency_clock.advance(LEASE_SECONDS + 2)
        store.commit(grant(store, "two"), done('"two"'), RETENTION_SECONDS)
        answer = store.commit(late, done('"late"'), RETENTION_SECONDS)
        assert isinstance(answer, Superseded)
        assert (answer.record.owner, answer.record.data) == ("two", '"two"')
        assert store.get(KEY) == answer.record

    def test_superseded_after_the_other_released(self, store: Store, idempotency_clock: FakeClock) -> None:
        """Also a claim that was taken and given back was taken: the next claim runs, not the late outcome."""
        late = grant(store)
        idempotency_clock.advance(LEASE_SECONDS + 2)
        store.release(grant(store, "two"), "Retry")
        assert isinstance(store.commit(late, done('"late"'), RETENTION_SECONDS), Superseded)
        assert grant(store, "three").attempt == 1

    def test_superseded_by_an_outcome_that_kept_the_owner(self, store: Store, idempotency_clock: FakeClock) -> None:
        """Powertools' last write leaves the owner of the claim before it, but says not when it was completed."""
        claim = grant(store)
        theirs = replace(store.get(KEY), status=Status.COMPLETED, data='"theirs"')
        self.forget(store, KEY)
        store.restore(theirs)
        for _ in range(2):
            assert store.commit(claim, done('"ours"'), RETENTION_SECONDS * 2) == Superseded(theirs)
            idempotency_clock.advance(LEASE_SECONDS)
        assert store.get(KEY) == theirs

    def test_commit_repeated_late_is_kept_from_then_on(self, store: Store, idempotency_clock: FakeClock) -> None:
        """A process that stood still between a try and its repetition leaves no outcome that expires too early."""
        claim = grant(store)
        store.commit(claim, done('"first"'), RETENTION_SECONDS)
        idempotency_clock.advance(RETENTION_SECONDS - 10)
        assert store.commit(claim, done('"second"'), RETENTION_SECONDS) == Committed()
        record = store.get(KEY)
        assert record.data == '"first"'
        assert (
            idempotency_clock.now() + RETENTION_SECONDS - 2
            <= record.expiration
            <= idempotency_clock.now() + RETENTION_SECONDS + 2
        )

    def test_vanished_nothing_is_stored(self, store: Store) -> None:
        """A commit makes no record out of nothing."""
        claim = grant(store)
        self.forget(store, KEY)
        assert store.commit(claim, done(), RETENTION_SECONDS) == Vanished()
        with RAISES(RecordNotFoundError):
            store.get(KEY)

    def test_vanished_a_whole_record_is_restored(self, store: Store) -> None:
        """The record comes back as it was, may be restored twice, and replays."""
        claim = grant(store, validation="a")
        store.commit(claim, done(), RETENTION_SECONDS)
        record = store.get(KEY)
        self.forget(store, KEY)
        store.restore(record)
        store.restore(record)
        assert store.get(KEY) == record
        assert store.claim(request_by("two", validation="a")) == Finished(record)

    def test_vanished_notes_are_restored(self, store: Store) -> None:
        """A record is restored whole, and one in progress takes notes as before."""
        claim = grant(store)
        store.note_deferral(KEY, claim.owner, "a", 1)
        held = store.get(KEY)
        self.forget(store, KEY)
        store.restore(held)
        store.note_deferral(KEY, claim.owner, "b", 2)
        assert store.get(KEY) == replace(held, deferred={"a": 1, "b": 2})
        store.commit(claim, done(), RETENTION_SECONDS)
        store.note_dispatch(KEY, "id-a")
        finished = store.get(KEY)
        self.forget(store, KEY)
        store.restore(finished)
        assert store.get(KEY) == finished

    def test_vanished_notes_can_be_made_after_a_restore(self, store: Store) -> None:
        """Of a record that had none."""
        claim = grant(store)
        held = store.get(KEY)
        self.forget(store, KEY)
        store.restore(held)
        store.note_deferral(KEY, claim.owner, "a", 1)
        assert store.get(KEY).deferred == {"a": 1}

    def test_vanished_a_restored_fence_goes_on(self, store: Store, idempotency_clock: FakeClock) -> None:
        """The next claim after a restored record has a larger fence."""
        claim = grant(store)
        record = store.get(KEY)
        self.forget(store, KEY)
        store.restore(record)
        idempotency_clock.advance(LEASE_SECONDS + 2)
        assert grant(store, "two").fence == claim.fence + 1

    def test_vanished_a_claim_of_ones_own_is_no_outcome(self, store: Store) -> None:
        """An early request of the same claim, long on its way, lands before the restore: the commit is for that."""
        claim = grant(store)
        store.commit(claim, done(), RETENTION_SECONDS)
        record = store.get(KEY)
        self.forget(store, KEY)
        late = grant(store)
        with RAISES(RecordExistsError):
            store.restore(record)
        assert store.get(KEY).status is Status.INPROGRESS
        assert store.commit(late, done(), RETENTION_SECONDS) == Committed()

    def test_vanished_another_owner_was_faster(self, store: Store) -> None:
        """A record is never restored over another's, which stays as it is."""
        grant(store)
        mine = store.get(KEY)
        self.forget(store, KEY)
        grant(store, "two")
        theirs = store.get(KEY)
        with RAISES(RecordExistsError) as caught:
            store.restore(mine)
        assert (caught.exception.key, caught.exception.task) == (KEY, "shop.charge")
        assert store.get(KEY) == theirs

    def test_vanished_there_is_nothing_to_release_or_renew(self, store: Store) -> None:
        """Neither makes a record out of nothing."""
        claim = grant(store)
        self.forget(store, KEY)
        assert store.release(claim, "Retry") == Lost()
        assert store.renew(claim, LEASE_SECONDS, RETENTION_SECONDS) == Lost()
        with RAISES(RecordNotFoundError):
            store.get(KEY)
