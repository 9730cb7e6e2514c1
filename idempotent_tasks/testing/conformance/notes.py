"""What a record notes of the deliveries around it: which copies wait until when, and what was dispatched."""

from dataclasses import replace
from typing import Final

from idempotent_tasks.core.records import Busy, Finished, Released, committed_record
from idempotent_tasks.core.store import MOST_FORGOTTEN, MOST_NOTED, Store
from idempotent_tasks.testing.clock import FakeClock
from idempotent_tasks.testing.conformance.base import Conformance
from idempotent_tasks.testing.conformance.requests import KEY, LEASE_SECONDS, RETENTION_SECONDS, done, grant, request_by

_OWNER: Final = "one"
#: Some epoch milliseconds: a store keeps them and looks at none.
_DUE: Final = 1_800_000_000_000
#: What a body that changed its callbacks leaves.
_CONTINUATION: Final = '{"callbacks": null, "errbacks": null, "chain": null, "chord": null}'

__all__ = ["NoteConformance"]


class NoteConformance(Conformance):
    """`Store.note_deferral`, `Store.note_dispatch`, and what else a record says of the deliveries around it."""

    def test_deferral_a_refused_claim_brings_the_notes(self, store: Store) -> None:
        """Each copy has its own, and the last word on it counts."""
        grant(store)
        for token, due in (("a", _DUE + 1), ("b", _DUE + 7), ("a", _DUE + 3), ("a", _DUE + 2)):
            store.note_deferral(KEY, _OWNER, token, due)
        answer = store.claim(request_by("two"))
        assert isinstance(answer, Busy)
        assert answer.holder.deferred == store.get(KEY).deferred == {"a": _DUE + 2, "b": _DUE + 7}

    def test_deferral_another_holder_takes_no_note(self, store: Store) -> None:
        """What is said of the holder that was seen does not hold for the one that came after it."""
        store.release(grant(store), "ValueError")
        grant(store, "two")
        store.note_deferral(KEY, _OWNER, "a", _DUE + 3)
        assert store.get(KEY).deferred == {}

    def test_deferral_a_release_voids_the_notes(self, store: Store, crashed: bool) -> None:
        """The copies are on their way to a free key, and none that is seen again may be dropped for another."""
        claim = grant(store)
        store.note_deferral(KEY, _OWNER, "a", _DUE + 3)
        assert store.release(claim, "Retry", crashed=crashed) == Released()
        assert store.get(KEY).deferred == {}
        store.note_deferral(KEY, _OWNER, "a", _DUE + 3)
        assert store.get(KEY).deferred == {}

    def test_deferral_a_takeover_voids_the_notes(self, store: Store, idempotency_clock: FakeClock) -> None:
        """The next claim of an expired one's key clears its notes; the expired claim takes no note either."""
        grant(store)
        store.note_deferral(KEY, _OWNER, "a", _DUE + 3)
        idempotency_clock.advance(LEASE_SECONDS + 2)
        store.note_deferral(KEY, _OWNER, "b", _DUE + 3)
        assert "b" not in store.get(KEY).deferred
        grant(store, "two")
        assert store.get(KEY).deferred == {}

    def test_deferral_the_same_owner_again_begins_without(self, store: Store) -> None:
        """A reservation has one owner token whenever it is made."""
        store.release(grant(store), "NotPublished")
        grant(store)
        assert store.get(KEY).deferred == {}
        store.note_deferral(KEY, _OWNER, "a", _DUE + 3)
        assert store.get(KEY).deferred == {"a": _DUE + 3}

    def test_deferral_a_renewal_keeps_the_notes(self, store: Store) -> None:
        """It is the same claim."""
        claim = grant(store)
        store.note_deferral(KEY, _OWNER, "a", _DUE + 3)
        store.renew(claim, LEASE_SECONDS, RETENTION_SECONDS)
        assert store.get(KEY).deferred == {"a": _DUE + 3}

    def test_deferral_record_is_small_again_with_the_outcome(self, store: Store) -> None:
        """An outcome has nobody waiting, and takes no notes of deferrals."""
        claim = grant(store)
        store.note_deferral(KEY, _OWNER, "a", _DUE + 3)
        store.commit(claim, done(), RETENTION_SECONDS)
        store.note_deferral(KEY, _OWNER, "a", _DUE + 4)
        assert store.get(KEY).deferred == {}

    def test_deferral_a_record_stays_small(self, store: Store) -> None:
        """A limited number of copies is noted; of those that are, a later note still counts."""
        grant(store)
        for number in range(MOST_NOTED + 1):
            store.note_deferral(KEY, _OWNER, str(number), _DUE + 1)
        store.note_deferral(KEY, _OWNER, "0", _DUE + 2)
        deferred = store.get(KEY).deferred
        assert len(deferred) == MOST_NOTED
        assert deferred["0"] == _DUE + 2
        assert str(MOST_NOTED) not in deferred

    def test_deferral_a_note_makes_room_for_itself(self, store: Store) -> None:
        """What is past is removed in the same write, so many at a time; what was never noted is no matter."""
        grant(store)
        for number in range(MOST_NOTED):
            store.note_deferral(KEY, _OWNER, str(number), _DUE + 1)
        past = ["never", *map(str, range(MOST_NOTED))]
        store.note_deferral(KEY, _OWNER, "new", _DUE + 2, past)
        deferred = store.get(KEY).deferred
        assert len(deferred) == MOST_NOTED - (MOST_FORGOTTEN - 1) + 1
        assert deferred["new"] == _DUE + 2
        assert "0" not in deferred

    def test_deferral_a_note_is_not_removed_by_itself(self, store: Store) -> None:
        """A copy that comes back when its own former note is past says when its next successor comes."""
        grant(store)
        store.note_deferral(KEY, _OWNER, "a", _DUE + 1)
        store.note_deferral(KEY, _OWNER, "a", _DUE + 2, ["a"])
        assert store.get(KEY).deferred == {"a": _DUE + 2}

    def test_deferral_nothing_is_made_of_nothing(self, store: Store) -> None:
        """A key without a record gets none from a note."""
        store.note_deferral(KEY, _OWNER, "a", _DUE + 3)
        store.note_dispatch(KEY, "a")
        grant(store)
        assert (store.get(KEY).deferred, store.get(KEY).attempt) == ({}, 1)

    def test_dispatch_is_told_with_the_outcome(self, store: Store) -> None:
        """A redelivery's refused claim brings the ids whose continuation was sent."""
        store.commit(grant(store), done(), RETENTION_SECONDS)
        for task_id in ("a", "b", "a"):
            store.note_dispatch(KEY, task_id)
        answer = store.claim(request_by("two"))
        assert isinstance(answer, Finished)
        assert answer.record.dispatched == {"a", "b"}

    def test_dispatch_a_key_in_progress_takes_no_note(self, store: Store) -> None:
        """What an earlier outcome led to says nothing about the next."""
        grant(store)
        store.note_dispatch(KEY, "a")
        assert store.get(KEY).dispatched == frozenset()

    def test_dispatch_the_next_run_begins_without(self, store: Store, idempotency_clock: FakeClock) -> None:
        """After the outcome's retention the notes are gone with it."""
        store.commit(grant(store), done(), RETENTION_SECONDS)
        store.note_dispatch(KEY, "a")
        idempotency_clock.advance(RETENTION_SECONDS + 2)
        store.commit(grant(store, "two"), done(), RETENTION_SECONDS)
        assert store.get(KEY).dispatched == frozenset()

    def test_dispatch_a_record_stays_small(self, store: Store) -> None:
        """A limited number of ids is noted."""
        store.commit(grant(store), done(), RETENTION_SECONDS)
        for number in range(MOST_NOTED + 1):
            store.note_dispatch(KEY, str(number))
        assert len(store.get(KEY).dispatched) == MOST_NOTED

    def test_claim_names_its_process(self, store: Store, process: str | None) -> None:
        """A refused claim tells which process holds the key, where the holder said it, and forgets the one before."""
        store.release(grant(store, "one", process="host/boot/1/2/7@1"), "Retry")
        grant(store, "two", process=process)
        answer = store.claim(request_by("three"))
        assert isinstance(answer, Busy)
        assert answer.holder.process == process

    def test_continuation_comes_with_the_outcome(self, store: Store) -> None:
        """A refused claim brings it along, and a record without a change has none."""
        claim = grant(store)
        store.commit(claim, replace(done(), continuation=_CONTINUATION), RETENTION_SECONDS)
        answer = store.claim(request_by("two"))
        assert isinstance(answer, Finished)
        assert answer.record.continuation == store.get(KEY).continuation == _CONTINUATION

    def test_continuation_the_next_claim_wipes_it(self, store: Store, idempotency_clock: FakeClock) -> None:
        """A later run, and its outcome, start from what their own message says."""
        store.commit(grant(store), replace(done(), continuation=_CONTINUATION), RETENTION_SECONDS)
        idempotency_clock.advance(RETENTION_SECONDS + LEASE_SECONDS + 5)
        claim = grant(store, "two")
        assert store.get(KEY).continuation is None
        store.commit(claim, done(), RETENTION_SECONDS)
        assert store.get(KEY).continuation is None

    def test_continuation_a_restored_record_has_it(self, store: Store) -> None:
        """One that vanished while its body ran."""
        claim = grant(store)
        self.forget(store, KEY)
        store.restore(
            committed_record(claim, replace(done(), continuation=_CONTINUATION), RETENTION_SECONDS, store.clock.now())
        )
        assert store.get(KEY).continuation == _CONTINUATION
