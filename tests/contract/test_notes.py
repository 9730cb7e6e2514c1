"""What a record notes of the deliveries around it: who waits with how many deferrals, and what was dispatched."""

from dataclasses import replace

import pytest

from idempotent_tasks.committed import committed_record
from idempotent_tasks.records import Busy, Finished, Released
from idempotent_tasks.stores import MOST_NOTED
from tests.contract.conftest import AnyStore, MovableClock
from tests.support.guarding import KEY, done, grant, wish

LEASE = 30
RETENTION = 3600


class TestDeferral:
    """A copy of a waiting delivery was published."""

    def test_the_highest_count_stays(self, store: AnyStore) -> None:
        """Counts only grow, each delivery has its own, and a refused claim brings them along."""
        grant(store)
        for delivery, deferrals in (("a/0", 0), ("a/0", 2), ("a/0", 1), ("a/1", 0), ("b/0", 7)):
            store.note_deferral(KEY, delivery, deferrals)
        answer = store.claim(wish("two"))
        assert isinstance(answer, Busy)
        assert answer.holder.deferred == store.get(KEY).deferred == {"a/0": 2, "a/1": 0, "b/0": 7}

    def test_it_survives_a_release_and_a_takeover(self, store: AnyStore, clock: MovableClock) -> None:
        """Whoever holds the key next, the copies still wait."""
        claim = grant(store)
        store.note_deferral(KEY, "a/0", 3)
        assert store.release(claim, "Retry") == Released()
        grant(store, "two")
        clock.advance(LEASE + 2)
        grant(store, "three")
        assert store.get(KEY).deferred == {"a/0": 3}

    def test_it_is_small_again_with_the_outcome(self, store: AnyStore) -> None:
        """An outcome has nobody waiting, and takes no notes of deferrals."""
        claim = grant(store)
        store.note_deferral(KEY, "a/0", 3)
        store.commit(claim, done(), RETENTION)
        store.note_deferral(KEY, "a/0", 4)
        assert store.get(KEY).deferred == {}

    def test_a_record_stays_small(self, store: AnyStore) -> None:
        """A limited number of deliveries is noted; those that are noted still count up."""
        grant(store)
        for number in range(MOST_NOTED + 1):
            store.note_deferral(KEY, f"{number}/0", 0)
        store.note_deferral(KEY, "0/0", 1)
        deferred = store.get(KEY).deferred
        assert len(deferred) == MOST_NOTED
        assert deferred["0/0"] == 1
        assert f"{MOST_NOTED}/0" not in deferred

    def test_nothing_is_made_of_nothing(self, store: AnyStore) -> None:
        """A key without a record gets none from a note."""
        store.note_deferral(KEY, "a/0", 0)
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
        answer = store.claim(wish("two"))
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
    answer = store.claim(wish("three"))
    assert isinstance(answer, Busy)
    assert answer.holder.process == process


class TestContinuation:
    """What follows the task was changed by its body."""

    TEXT = '{"callbacks": null, "errbacks": null, "chain": null, "chord": null}'

    def test_it_comes_with_the_outcome(self, store: AnyStore) -> None:
        """A refused claim brings it along, and a record without a change has none."""
        claim = grant(store)
        store.commit(claim, replace(done(), continuation=self.TEXT), RETENTION)
        answer = store.claim(wish("two"))
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
