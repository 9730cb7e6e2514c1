"""Giving a claim back, and keeping it for longer."""

from dataclasses import replace

from idempotent_tasks.core.records import (
    Busy,
    Claim,
    Finished,
    Lost,
    Released,
    Renewed,
    Status,
    Superseded,
    reservation_owner,
)
from idempotent_tasks.core.store import Store
from idempotent_tasks.testing.clock import FakeClock
from idempotent_tasks.testing.conformance.base import Conformance
from idempotent_tasks.testing.conformance.requests import KEY, LEASE_SECONDS, RETENTION_SECONDS, done, grant, request_by

__all__ = ["ReleaseConformance"]


class ReleaseConformance(Conformance):
    """`Store.release` and `Store.renew`: giving a claim back, and keeping it for longer."""

    def test_release_the_owner_goes_and_the_time_stays(self, store: Store, idempotency_clock: FakeClock) -> None:
        """Fence and payload stay on the record, which has no owner; attempts count from 0; the reason is noted."""
        claim = grant(store, validation="a")
        store.note_deferral(KEY, claim.owner, "a", int(idempotency_clock.now() * 1000) + 3_000)
        held = store.get(KEY)
        before = int(idempotency_clock.now() * 1000)
        assert store.release(claim, "ValueError") == Released()
        record = store.get(KEY)
        at = record.in_progress_expiration
        assert record == replace(
            held, owner=None, deferred={}, in_progress_expiration=at, attempt=0, error="ValueError"
        )
        assert at is not None
        assert before <= at <= idempotency_clock.now() * 1000
        assert record.free

    def test_release_its_time_is_never_before_its_claim(self, store: Store) -> None:
        """A clock that was set back leaves no time at which an older request of the same claim could pass."""
        claim = grant(store)
        assert claim.claimed_at == store.get(KEY).claimed_at
        asked = claim.claimed_at + 20_000
        assert store.release(replace(claim, claimed_at=asked), "Retry") == Released()
        assert store.get(KEY).in_progress_expiration == asked

    def test_release_whoever_sees_it_claims_at_once(self, store: Store, idempotency_clock: FakeClock) -> None:
        """A claimer's own clock may be behind that of the release: it has seen it, so it asks after it."""
        store.release(grant(store), "Retry")
        released = replace(store.get(KEY), in_progress_expiration=int(idempotency_clock.now() + 20) * 1000)
        self.forget(store, KEY)
        store.restore(released)
        before = idempotency_clock.now()
        claim = grant(store, "two")
        assert before + LEASE_SECONDS - 0.002 <= claim.expires_at <= idempotency_clock.now() + LEASE_SECONDS + 0.002
        assert claim.fence == released.fence + 1

    def test_release_a_late_commit_of_the_same_run_changes_nothing(self, store: Store) -> None:
        """What was released before is not committed: nobody is left who may."""
        claim = grant(store)
        store.release(claim, "WorkerLostError", crashed=True)
        record = store.get(KEY)
        assert store.commit(claim, done(), RETENTION_SECONDS) == Superseded(record)
        assert store.get(KEY) == record
        grant(store, "two")

    def test_release_a_body_that_never_began_takes_back_its_own_attempt_only(
        self, store: Store, idempotency_clock: FakeClock
    ) -> None:
        """Neither does it count as a crash, nor are the crashes before it forgotten."""
        for owner in ("one", "two"):
            grant(store, owner)
            idempotency_clock.advance(LEASE_SECONDS + 2)
        unseen = Claim.unseen(grant(store, "three").request)
        assert store.release(unseen, "Unseen", began=False) == Released()
        assert store.release(unseen, "Unseen", began=False) == Lost()
        assert store.get(KEY).attempt == 2
        assert grant(store, "four").attempt == 3

    def test_release_a_first_body_that_never_began_leaves_none(self, store: Store) -> None:
        """The count is never below 0, and a reservation has none to take back."""
        assert store.release(grant(store), "Unseen", began=False) == Released()
        assert store.get(KEY).attempt == 0
        reserved = grant(store, reservation_owner("id-two"), task_id="id-two")
        assert store.release(reserved, "Unseen", began=False) == Released()
        assert store.get(KEY).attempt == 0
        assert grant(store, "two").attempt == 1

    def test_release_forgets_the_crashes(self, store: Store, idempotency_clock: FakeClock) -> None:
        """After a release the count of crashes in a row starts again."""
        for owner in ("one", "two"):
            grant(store, owner)
            idempotency_clock.advance(LEASE_SECONDS + 2)
        store.release(grant(store, "three"), "Retry")
        assert grant(store, "four").attempt == 1

    def test_release_by_an_older_version(self, store: Store) -> None:
        """It left the owner and the time 0, which means the same: the key is free and is not renewed."""
        claim = grant(store)
        released = replace(store.get(KEY), in_progress_expiration=0)
        self.forget(store, KEY)
        store.restore(released)
        assert store.renew(claim, LEASE_SECONDS, RETENTION_SECONDS) == Lost()
        assert store.get(KEY) == released
        assert grant(store, "two").fence == claim.fence + 1

    def test_release_names_no_run_before_the_first(self, store: Store, idempotency_clock: FakeClock) -> None:
        """Once the second run is taken back, the run that is left is the first, and nobody was before it."""
        grant(store)
        idempotency_clock.advance(LEASE_SECONDS + 2)
        second = grant(store, "two")
        assert store.get(KEY).previous_task_id == "id-one"
        store.release(second, "Retry", nothing_done=True)
        record = store.get(KEY)
        named = record.previous_owner, record.previous_task_id, record.previous_claimed_at
        assert (record.runs, named) == (1, (None, None, None))

    def test_release_for_a_dead_process_it_forgets_nothing(self, store: Store) -> None:
        """A release in the name of a process that crashed frees the key and lets the crash count."""
        for attempt, owner in enumerate(("one", "two", "three"), start=1):
            claim = grant(store, owner)
            assert claim.attempt == attempt
            assert store.release(claim, "WorkerLostError", crashed=True) == Released()
        assert store.get(KEY).error == "WorkerLostError"

    def test_release_twice(self, store: Store) -> None:
        """A release whose answer was lost is repeated."""
        claim = grant(store)
        assert [store.release(claim, "Retry") for _ in range(2)] == [Released()] * 2

    def test_release_late(self, store: Store, idempotency_clock: FakeClock) -> None:
        """A claim that expired and that nobody took can still be released, so that its attempt does not count."""
        claim = grant(store)
        idempotency_clock.advance(LEASE_SECONDS + 2)
        assert store.release(claim, "Retry") == Released()
        assert grant(store, "two").attempt == 1

    def test_release_an_outcome_stays(self, store: Store) -> None:
        """A release never undoes a commit, not even the owner's own."""
        claim = grant(store)
        store.commit(claim, done(), RETENTION_SECONDS)
        record = store.get(KEY)
        assert store.release(claim, "Retry") == Lost()
        assert store.get(KEY) == record
        assert store.claim(request_by("two")) == Finished(record)

    def test_release_another_owners_claim_stays(self, store: Store, idempotency_clock: FakeClock) -> None:
        """A worker that lost its claim cannot free its successor's."""
        claim = self._taken_over(store, idempotency_clock)
        record = store.get(KEY)
        assert store.release(claim, "Retry") == Lost()
        assert store.get(KEY) == record

    def test_release_another_owners_outcome_stays(self, store: Store, idempotency_clock: FakeClock) -> None:
        """A zombie that fails after its successor succeeded changes nothing."""
        late = grant(store)
        idempotency_clock.advance(LEASE_SECONDS + 2)
        store.commit(grant(store, "two"), done(), RETENTION_SECONDS)
        record = store.get(KEY)
        assert store.release(late, "ValueError") == Lost()
        assert store.get(KEY) == record

    def test_renew_extends_the_claim(self, store: Store, idempotency_clock: FakeClock) -> None:
        """The claim lives from now on for another lease, and nobody takes it over meanwhile."""
        claim = grant(store)
        idempotency_clock.advance(LEASE_SECONDS - 5)
        before = int(idempotency_clock.now() * 1000)
        answer = store.renew(claim, LEASE_SECONDS, RETENTION_SECONDS)
        assert isinstance(answer, Renewed)
        until = answer.claim.in_progress_expiration
        assert before + LEASE_SECONDS * 1000 <= until <= idempotency_clock.now() * 1000 + LEASE_SECONDS * 1000
        assert answer.claim == replace(claim, in_progress_expiration=until)
        idempotency_clock.advance(LEASE_SECONDS - 5)
        assert store.claim(request_by("two")) == Busy(until / 1000, store.get(KEY))

    def test_renew_only_the_times_change(self, store: Store, idempotency_clock: FakeClock) -> None:
        """Fence, attempt, owner and the rest of the record stay."""
        claim = grant(store, validation="a")
        held = store.get(KEY)
        idempotency_clock.advance(5)
        answer = store.renew(claim, LEASE_SECONDS, RETENTION_SECONDS)
        record = store.get(KEY)
        assert isinstance(answer, Renewed)
        assert record.expiration >= held.expiration + 5
        until = answer.claim.in_progress_expiration
        assert record == replace(held, in_progress_expiration=until, expiration=record.expiration)

    def test_renew_the_record_still_outlives_its_claim(self, store: Store) -> None:
        """A renewal past the record's retention moves its ``expiration`` too."""
        answer = store.renew(grant(store, retention_seconds=1), 900, 1)
        assert isinstance(answer, Renewed)
        assert store.get(KEY).expiration * 1000 > answer.claim.in_progress_expiration

    def test_renew_the_first_claim_still_commits(self, store: Store) -> None:
        """A claim and its renewal are one and the same: the older value finishes the key as well."""
        claim = grant(store)
        store.renew(claim, LEASE_SECONDS, RETENTION_SECONDS)
        store.commit(claim, done(), RETENTION_SECONDS)
        assert store.get(KEY).status is Status.COMPLETED

    def test_renew_shortens_what_is_known_only(self, store: Store) -> None:
        """A claim's own end can be corrected; the later one that another renewal has set meanwhile stays."""
        claim = grant(store)
        answer = store.renew(claim, LEASE_SECONDS * 10, RETENTION_SECONDS)
        assert isinstance(answer, Renewed)
        record = store.get(KEY)
        assert store.renew(claim, LEASE_SECONDS, RETENTION_SECONDS) == answer
        assert store.get(KEY) == record
        corrected = store.renew(answer.claim, LEASE_SECONDS, RETENTION_SECONDS)
        assert isinstance(corrected, Renewed)
        assert corrected.claim.expires_at < answer.claim.expires_at
        assert store.get(KEY).in_progress_expiration == corrected.claim.in_progress_expiration

    def test_renew_late(self, store: Store, idempotency_clock: FakeClock) -> None:
        """A claim that expired and that nobody took lives on."""
        claim = grant(store)
        idempotency_clock.advance(LEASE_SECONDS + 2)
        assert isinstance(store.renew(claim, LEASE_SECONDS, RETENTION_SECONDS), Renewed)
        assert isinstance(store.claim(request_by("two")), Busy)

    def test_renew_another_owners_claim_is_not_extended(self, store: Store, idempotency_clock: FakeClock) -> None:
        """A worker that lost its claim learns so and does not lengthen its successor's."""
        claim = self._taken_over(store, idempotency_clock)
        record = store.get(KEY)
        assert store.renew(claim, LEASE_SECONDS * 10, RETENTION_SECONDS * 10) == Lost()
        assert store.get(KEY) == record

    def test_renew_an_outcome_is_not_extended(self, store: Store) -> None:
        """A renewal that arrives after the commit changes nothing."""
        claim = grant(store)
        store.commit(claim, done(), RETENTION_SECONDS)
        record = store.get(KEY)
        assert store.renew(claim, LEASE_SECONDS, RETENTION_SECONDS * 10) == Lost()
        assert store.get(KEY) == record

    def test_renew_a_released_key_stays_free(self, store: Store) -> None:
        """A renewal that was held up on the network and arrives after the release does not block the key again."""
        claim = grant(store)
        store.release(claim, "Retry")
        assert store.renew(claim, LEASE_SECONDS, RETENTION_SECONDS) == Lost()
        grant(store, "two")

    def test_claim_leases_of_any_length(self, store: Store, idempotency_clock: FakeClock, lease_seconds: float) -> None:
        """A lease is exact to the millisecond and need not be whole seconds."""
        before = idempotency_clock.now()
        claim = grant(store, lease_seconds=lease_seconds)
        assert before + lease_seconds - 0.002 <= claim.expires_at <= idempotency_clock.now() + lease_seconds

    def _taken_over(self, store: Store, idempotency_clock: FakeClock) -> Claim:
        """Return a claim of ``one`` that ``two`` has taken over."""
        claim = grant(store)
        idempotency_clock.advance(LEASE_SECONDS + 2)
        grant(store, "two")
        return claim
