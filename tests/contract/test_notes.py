"""What a record notes of the deliveries around it: which copies wait until when, and what was dispatched."""

from dataclasses import replace

import pytest

from idempotent_tasks.core.records import Busy, Finished, Released, committed_record
from idempotent_tasks.core.store import MOST_FORGOTTEN, MOST_NOTED
from tests.contract.conftest import AnyStore, MovableClock
from tests.support.guarding import KEY, done, grant, request_by

OWNER = "one"
LEASE = 30
RETENTION = 3600
#: Some epoch milliseconds: a store keeps them and looks at none.
DUE = 1_800_000_000_000


class TestDeferral:
    """A copy of a waiting delivery was published."""

    def test_a_refused_claim_brings_the_notes(self, store: AnyStore) -> None:
        """Each copy has its own, and the last word on it counts."""
        grant(store)
        for token, due in (("a", DUE + 1), ("b", DUE + 7), ("a", DUE + 3), ("a", DUE + 2)):
            store.note_deferral(KEY, OWNER, token, due)
        answer = store.claim(request_by("two"))
        assert isinstance(answer, Busy)
        assert answer.holder.deferred == store.get(KEY).deferred == {"a": DUE + 2, "b": DUE + 7}

    def test_another_holder_takes_no_note(self, store: AnyStore) -> None:
        """What is said of the holder that was seen does not hold for the one that came after it."""
        store.release(grant(store), "ValueError")
        grant(store, "two")
        store.note_deferral(KEY, OWNER, "a", DUE + 3)
        assert store.get(KEY).deferred == {}

    @pytest.mark.parametrize("crashed", [False, True])
    def test_a_release_voids_the_notes(self, store: AnyStore, *, crashed: bool) -> None:
        """The copies are on their way to a free key, and none that is seen again may be dropped for another."""
        claim = grant(store)
        store.note_deferral(KEY, OWNER, "a", DUE + 3)
        assert store.release(claim, "Retry", crashed=crashed) == Released()
        assert store.get(KEY).deferred == {}
        store.note_deferral(KEY, OWNER, "a", DUE + 3)
        assert store.get(KEY).deferred == {}

    def test_a_takeover_voids_the_notes(self, store: AnyStore, clock: MovableClock) -> None:
        """The next claim of an expired one's key clears its notes; the expired claim takes no note either."""
        grant(store)
        store.note_deferral(KEY, OWNER, "a", DUE + 3)
        clock.advance(LEASE + 2)
        store.note_deferral(KEY, OWNER, "b", DUE + 3)
        assert "b" not in store.get(KEY).deferred
        grant(store, "two")
        assert store.get(KEY).deferred == {}

    def test_the_same_owner_again_begins_without(self, store: AnyStore) -> None:
        """A reservation has one owner token whenever it is made."""
        store.release(grant(store), "NotPublished")
        grant(store)
        assert store.get(KEY).deferred == {}
        store.note_deferral(KEY, OWNER, "a", DUE + 3)
        assert store.get(KEY).deferred == {"a": DUE + 3}

    def test_a_renewal_keeps_the_notes(self, store: AnyStore) -> None:
        """It is the same claim."""
        claim = grant(store)
        store.note_deferral(KEY, OWNER, "a", DUE + 3)
        store.renew(claim, LEASE, RETENTION)
        assert store.get(KEY).deferred == {"a": DUE + 3}

    def test_it_is_small_again_with_the_outcome(self, store: AnyStore) -> None:
        """An outcome has nobody waiting, and takes no notes of deferrals."""
        claim = grant(store)
        store.note_deferral(KEY, OWNER, "a", DUE + 3)
        store.commit(claim, done(), RETENTION)
        store.note_deferral(KEY, OWNER, "a", DUE + 4)
        assert store.get(KEY).deferred == {}

    def test_a_record_stays_small(self, store: AnyStore) -> None:
        """A limited number of copies is noted; of those that are, a later note still counts."""
        grant(store)
        for number in range(MOST_NOTED + 1):
            store.note_deferral(KEY, OWNER, str(number), DUE + 1)
        store.note_deferral(KEY, OWNER, "0", DUE + 2)
        deferred = store.get(KEY).deferred
        assert len(deferred) == MOST_NOTED
        assert deferred["0"] == DUE + 2
        assert str(MOST_NOTED) not in deferred

    def test_a_note_makes_room_for_itself(self, store: AnyStore) -> None:
        """What is past is removed in the same write, so many at a time; what was never noted is no matter."""
        grant(store)
        for number in range(MOST_NOTED):
            store.note_deferral(KEY, OWNER, str(number), DUE + 1)
        past = ["never", *map(str, range(MOST_NOTED))]
        store.note_deferral(KEY, OWNER, "new", DUE + 2, past)
        deferred = store.get(KEY).deferred
        assert len(deferred) == MOST_NOTED - (MOST_FORGOTTEN - 1) + 1
        assert deferred["new"] == DUE + 2
        assert "0" not in deferred

    def test_a_note_is_not_removed_by_itself(self, store: AnyStore) -> None:
        """A copy that comes back when its own former note is past says when its next successor comes."""
        grant(store)
        store.note_deferral(KEY, OWNER, "a", DUE + 1)
        store.note_deferral(KEY, OWNER, "a", DUE + 2, ["a"])
        assert store.get(KEY).deferred == {"a": DUE + 2}

    def test_nothing_is_made_of_nothing(self, store: AnyStore) -> None:
        """A key without a record gets none from a note."""
        store.note_deferral(KEY, OWNER, "a", DUE + 3)
        store.note_dispatch(KEY, "a")
        grant(store)
        assert (store.get(KEY).deferred, store.get(KEY).attempt) == ({}, 1)


class TestDispatch:
    """What follows a task was sent."""

    def test_it_is_told_with_the_outcome(self, store: AnyStore) -> None:
        """A redelivery's refused claim brings the ids whose continuation was sent."""
        store.commit(grant(store), done(), RETENTION)
        for task_id in ("a", "b", "a"):
            store.note_dispatch(KEY, task_id)
        answer = store.claim(request_by("two"))
        assert isinstance(answer, Finished)
        assert answer.record.dispatched == {"a", "b"}

    def test_a_key_in_progress_takes_no_note(self, store: AnyStore) -> None:
        """What an earlier outcome led to says nothing about the next."""
        grant(store)
        store.note_dispatch(KEY, "a")
        assert store.get(KEY).dispatched == frozenset()

    def test_the_next_run_begins_without(self, store: AnyStore, clock: MovableClock) -> None:
        """After the outcome's retention the notes are gone with it."""
        store.commit(grant(store), done(), RETENTION)
        store.note_dispatch(KEY, "a")
        clock.advance(RETENTION + 2)
        store.commit(grant(store, "two"), done(), RETENTION)
        assert store.get(KEY).dispatched == frozenset()

    def test_a_record_stays_small(self, store: AnyStore) -> None:
        """A limited number of ids is noted."""
        store.commit(grant(store), done(), RETENTION)
        for number in range(MOST_NOTED + 1):
            store.note_dispatch(KEY, str(number))
        assert len(store.get(KEY).dispatched) == MOST_NOTED


@pytest.mark.parametrize("process", ["host/boot/1/2/3@4", None])
def test_a_claim_names_its_process(store: AnyStore, process: str | None) -> None:
    """A refused claim tells which process holds the key, where the holder said it, and forgets the one before."""
    store.release(grant(store, "one", process="host/boot/1/2/7@1"), "Retry")
    grant(store, "two", process=process)
    answer = store.claim(request_by("three"))
    assert isinstance(answer, Busy)
    assert answer.holder.process == process


class TestContinuation:
    """What follows the task was changed by its body."""

    TEXT = '{"callbacks": null, "errbacks": null, "chain": null, "chord": null}'

    def test_it_comes_with_the_outcome(self, store: AnyStore) -> None:
        """A refused claim brings it along, and a record without a change has none."""
        claim = grant(store)
        store.commit(claim, replace(done(), continuation=self.TEXT), RETENTION)
        answer = store.claim(request_by("two"))
        assert isinstance(answer, Finished)
        assert answer.record.continuation == store.get(KEY).continuation == self.TEXT

    def test_the_next_claim_wipes_it(self, store: AnyStore, clock: MovableClock) -> None:
        """A later run, and its outcome, start from what their own message says."""
        store.commit(grant(store), replace(done(), continuation=self.TEXT), RETENTION)
        clock.advance(RETENTION + LEASE + 5)
        claim = grant(store, "two")
        assert store.get(KEY).continuation is None
        store.commit(claim, done(), RETENTION)
        assert store.get(KEY).continuation is None

    def test_a_restored_record_has_it(self, store: AnyStore) -> None:
        """One that vanished while its body ran."""
        claim = grant(store)
        store.forget(KEY)
        store.restore(committed_record(claim, replace(done(), continuation=self.TEXT), RETENTION, store.clock.now()))
        assert store.get(KEY).continuation == self.TEXT
