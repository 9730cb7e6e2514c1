"""How many runs of a key began and left no outcome, in which generation, and for how long a record says so."""

from dataclasses import replace
from typing import Final

from idempotent_tasks.core.records import (
    Claim,
    Committed,
    Finished,
    Granted,
    Lost,
    Outcome,
    Record,
    Released,
    Renewed,
    Status,
    reservation_owner,
)
from idempotent_tasks.core.store import Store
from idempotent_tasks.testing.clock import FakeClock
from idempotent_tasks.testing.conformance.base import Conformance
from idempotent_tasks.testing.conformance.requests import (
    KEY,
    LEASE_SECONDS,
    RETENTION_SECONDS,
    done,
    grant,
    request_by,
    reserve,
)

__all__ = ["RunConformance"]

_UNRESOLVED_SECONDS: Final = 14 * 86_400.0


class RunConformance(Conformance):
    """What counts as a run, what ends the count, and how long it is kept."""

    def test_runs_a_first_run(self, store: Store) -> None:
        """Claim and record say that no run began before it, and name none."""
        claim = grant(store)
        record = store.get(KEY)
        assert (claim.runs, record.runs) == (1, 1)
        assert _previous(record) == (None, None, None)

    def test_runs_a_takeover(self, store: Store, idempotency_clock: FakeClock) -> None:
        """A holder whose claim ran out began a run; the record names it."""
        first = grant(store)
        idempotency_clock.advance(LEASE_SECONDS + 2)
        second = grant(store, "two")
        record = store.get(KEY)
        assert (second.runs, record.runs) == (2, 2)
        assert _previous(record) == ("one", "id-one", first.claimed_at)

    def test_runs_a_request_repeated_after_a_takeover(self, store: Store, idempotency_clock: FakeClock) -> None:
        """It claims anew: whoever took the key over was told that its run may have begun, and that count stays."""
        grant(store)
        idempotency_clock.advance(LEASE_SECONDS + 2)
        store.release(grant(store, "two"), "Retry", nothing_done=True)
        idempotency_clock.advance(1)
        assert grant(store).runs == 2

    def test_runs_a_run_that_was_released(self, store: Store, crashed: bool) -> None:
        """A failure, a retry, a rejection or a seen death: the run began, and has no owner any more."""
        first = grant(store)
        assert store.release(first, "ValueError", crashed=crashed) == Released()
        assert store.get(KEY).runs == 1
        assert grant(store, "two").runs == 2
        assert _previous(store.get(KEY)) == (None, "id-one", first.claimed_at)

    def test_runs_every_end_without_an_outcome_counts(self, store: Store, idempotency_clock: FakeClock) -> None:
        """In any order; crashes are counted besides."""
        store.release(grant(store, "one"), "Retry")
        grant(store, "two")
        idempotency_clock.advance(LEASE_SECONDS + 2)
        store.release(grant(store, "three"), "WorkerLostError", crashed=True)
        last = grant(store, "four")
        assert (last.runs, last.attempt) == (4, 3)

    def test_runs_an_outcome_ends_the_count(self, store: Store, idempotency_clock: FakeClock, outcome: Outcome) -> None:
        """The record of an outcome counts none, and the next generation starts from nothing."""
        store.release(grant(store), "Retry")
        store.commit(grant(store, "two"), outcome, RETENTION_SECONDS)
        record = store.get(KEY)
        assert (record.runs, record.unresolved_since, _previous(record)) == (0, None, (None, None, None))
        idempotency_clock.advance(RETENTION_SECONDS + 3)
        assert grant(store, "three").runs == 1
        assert _previous(store.get(KEY)) == (None, None, None)

    def test_runs_a_body_that_never_began(self, store: Store) -> None:
        """It is subtracted, and only it; a repeated release subtracts nothing."""
        store.release(grant(store), "Retry")
        second = grant(store, "two")
        for _ in range(2):
            assert store.release(second, "Unseen", began=False) == Released()
        assert store.get(KEY).runs == 1
        assert grant(store, "three").runs == 2

    def test_runs_a_first_body_that_never_began(self, store: Store) -> None:
        """Nothing is left of it: the next run is the first, and nobody was before it."""
        assert store.release(Claim.unseen(grant(store).request), "Unseen", began=False) == Released()
        assert store.get(KEY).runs == 0
        assert grant(store, "two").runs == 1
        assert _previous(store.get(KEY)) == (None, None, None)

    def test_runs_a_body_that_did_nothing(self, store: Store, idempotency_clock: FakeClock) -> None:
        """It is subtracted too, and ends the row of crashes as any clean end does."""
        for owner in ("one", "two"):
            grant(store, owner)
            idempotency_clock.advance(LEASE_SECONDS + 2)
        third = grant(store, "three")
        assert store.release(third, "Retry", nothing_done=True) == Released()
        record = store.get(KEY)
        assert (record.runs, record.attempt) == (2, 0)
        assert grant(store, "four").runs == 3

    def test_runs_a_reservation(self, store: Store, idempotency_clock: FakeClock) -> None:
        """Neither being reserved, nor a lost message, nor a failed publish is a run."""
        assert reserve(store, "id-two").runs == 0
        idempotency_clock.advance(LEASE_SECONDS + 2)
        store.release(reserve(store, "id-two"), "NotPublished", crashed=True)
        reserve(store, "id-two")
        assert grant(store, "two").runs == 1
        assert _previous(store.get(KEY)) == (None, None, None)

    def test_runs_a_reservation_keeps_the_count(self, store: Store) -> None:
        """A retry that is reserved for, or a publish after a run without an outcome."""
        store.release(grant(store), "Retry")
        assert reserve(store, "id-two").runs == 1
        assert grant(store, "two").runs == 2
        assert _previous(store.get(KEY)) == (None, None, None)

    def test_runs_a_lock(self, store: Store, idempotency_clock: FakeClock) -> None:
        """It serialises runs and is none itself, whether it is released or runs out."""
        for owner in ("one", "two"):
            assert grant(store, owner, locks=True).runs == 0
            idempotency_clock.advance(LEASE_SECONDS + 2)
        lock = grant(store, "three", locks=True)
        assert store.release(lock, "Ended") == Released()
        assert store.get(KEY).runs == 0

    def test_runs_a_renewal_counts_nothing(self, store: Store) -> None:
        """It is the same run."""
        answer = store.renew(grant(store), LEASE_SECONDS * 2, _UNRESOLVED_SECONDS)
        assert isinstance(answer, Renewed)
        assert (answer.claim.runs, store.get(KEY).runs) == (1, 1)

    def test_runs_a_repeated_claim_counts_once(self, store: Store, idempotency_clock: FakeClock) -> None:
        """The answer to a grant was lost: the repeated request is told the same count, also when the lease is over."""
        store.release(grant(store), "Retry")
        second = grant(store, "two")
        assert store.claim(request_by("two")) == Granted(second)
        idempotency_clock.advance(LEASE_SECONDS + 2)
        again = grant(store, "two")
        assert (again.runs, again.attempt, again.fence) == (2, 1, second.fence)
        assert grant(store, "two", lease_seconds=LEASE_SECONDS).runs == 2

    def test_runs_whoever_was_taken_over_changes_no_count(self, store: Store, idempotency_clock: FakeClock) -> None:
        """A late release subtracts nothing from its successor's count."""
        first = grant(store)
        idempotency_clock.advance(LEASE_SECONDS + 2)
        grant(store, "two")
        assert store.release(first, "Unseen", began=False) == Lost()
        assert store.get(KEY).runs == 2

    def test_generation_it_begins_at_the_time(self, store: Store) -> None:
        """A key's first generation is the time of its first claim."""
        claim = grant(store)
        record = store.get(KEY)
        assert claim.generation == record.generation == record.unresolved_since == claim.claimed_at

    def test_generation_it_stays(self, store: Store, idempotency_clock: FakeClock) -> None:
        """Through retries, reservations, takeovers and the outcome; a replay shows it."""
        first = grant(store)
        store.release(first, "Retry")
        reserve(store, "id-two")
        grant(store, "two")
        idempotency_clock.advance(LEASE_SECONDS + 2)
        last = grant(store, "three")
        assert (last.generation, store.get(KEY).unresolved_since) == (first.generation, first.claimed_at)
        assert store.commit(last, done(), RETENTION_SECONDS) == Committed()
        answer = store.claim(request_by("four"))
        assert isinstance(answer, Finished)
        assert answer.record.generation == first.generation

    def test_generation_it_grows(self, store: Store, idempotency_clock: FakeClock) -> None:
        """After an outcome that expired, a claim that expired, and a deletion."""
        claims = [grant(store)]
        store.commit(claims[-1], done(), RETENTION_SECONDS)
        idempotency_clock.advance(RETENTION_SECONDS + 3)
        claims.append(grant(store, "two"))
        idempotency_clock.advance(RETENTION_SECONDS + 3)
        claims.append(grant(store, "three"))
        idempotency_clock.advance(1)
        self.forget(store, KEY)
        claims.append(grant(store, "four"))
        generations = [claim.generation for claim in claims]
        assert generations == sorted(set(generations))
        assert [claim.runs for claim in claims] == [1] * 4

    def test_generation_a_restored_outcome_keeps_it(self, store: Store, idempotency_clock: FakeClock) -> None:
        """A record that was put back starts afresh like any other when it has expired."""
        claim = grant(store)
        store.commit(claim, done(), RETENTION_SECONDS)
        record = store.get(KEY)
        self.forget(store, KEY)
        store.restore(record)
        assert store.get(KEY) == record
        idempotency_clock.advance(RETENTION_SECONDS + 3)
        second = grant(store, "two")
        assert (second.runs, second.attempt) == (1, 1)
        assert second.generation > claim.generation

    def test_expired_a_claim_that_expired(self, store: Store, idempotency_clock: FakeClock, ended: str) -> None:
        """Runs, crashes, notes, payload and holders of the old generation are gone; the fence goes on."""
        grant(store, validation="a")
        idempotency_clock.advance(LEASE_SECONDS + 2)
        second = grant(store, "two", validation="a")
        store.note_deferral(KEY, "two", "token", int(idempotency_clock.now() * 1000) + 60_000)
        if ended != "taken-over":
            store.release(second, "WorkerLostError", crashed=True)
        if ended == "reserved":
            reserve(store, "id-two")
        old = store.get(KEY)
        idempotency_clock.advance(RETENTION_SECONDS + 3)
        claim = grant(store, "three", validation="b")
        record = store.get(KEY)
        assert (claim.runs, claim.attempt, claim.fence) == (1, 1, old.fence + 1)
        assert claim.generation > (old.generation or 0)
        assert (record.validation, record.deferred, record.error, _previous(record)) == ("b", {}, None, (None,) * 3)
        assert (record.owner, record.task_id, record.claimed_at) == ("three", "id-three", claim.claimed_at)

    def test_expired_it_is_reserved_like_a_missing_one(self, store: Store, idempotency_clock: FakeClock) -> None:
        """A reservation starts the generation, and counts no run of it."""
        store.release(grant(store), "Retry")
        idempotency_clock.advance(RETENTION_SECONDS + 3)
        reserved = reserve(store, "id-two")
        assert (reserved.runs, reserved.attempt) == (0, 0)
        claim = grant(store, "two")
        assert (claim.runs, claim.generation) == (1, reserved.generation)

    def test_expired_two_claimers_of_an_expired_claim(self, store: Store, idempotency_clock: FakeClock) -> None:
        """One is granted; a repeated request of it is not counted again."""
        grant(store)
        idempotency_clock.advance(RETENTION_SECONDS + 3)
        second = grant(store, "two")
        assert store.claim(request_by("two")) == Granted(second)
        assert not isinstance(store.claim(request_by("three")), Granted)
        assert store.get(KEY).runs == 1

    def test_kept_without_an_outcome(self, store: Store, idempotency_clock: FakeClock) -> None:
        """A run that began is known of for longer than an outcome is kept: released, renewed, reserved, taken over."""
        claim = grant(store, unresolved_seconds=_UNRESOLVED_SECONDS)
        assert _UNRESOLVED_SECONDS - 2 <= _kept_seconds(store) <= _UNRESOLVED_SECONDS + 2
        store.renew(claim, LEASE_SECONDS, claim.request.kept_seconds)
        assert _kept_seconds(store) >= _UNRESOLVED_SECONDS - 2
        store.release(claim, "Retry")
        assert _kept_seconds(store) >= _UNRESOLVED_SECONDS - 2
        idempotency_clock.advance(_UNRESOLVED_SECONDS - 60)
        assert grant(store, "two", unresolved_seconds=_UNRESOLVED_SECONDS).runs == 2
        assert _kept_seconds(store) >= _UNRESOLVED_SECONDS - 2

    def test_kept_an_outcome(self, store: Store, idempotency_clock: FakeClock) -> None:
        """It is kept from the commit on, for as long as that says."""
        claim = grant(store, unresolved_seconds=_UNRESOLVED_SECONDS)
        idempotency_clock.advance(LEASE_SECONDS - 10)
        store.commit(claim, done(), RETENTION_SECONDS)
        assert RETENTION_SECONDS - 2 <= _kept_seconds(store) <= RETENTION_SECONDS + 2

    def test_kept_a_redelivery_after_the_retention_of_an_outcome(
        self, store: Store, idempotency_clock: FakeClock
    ) -> None:
        """An hour after a host died, a redelivery is a rerun; an hour after an outcome, it is a fresh start."""
        grant(store, unresolved_seconds=_UNRESOLVED_SECONDS)
        idempotency_clock.advance(RETENTION_SECONDS + 3)
        claim = grant(store, "two", unresolved_seconds=_UNRESOLVED_SECONDS)
        assert claim.runs == 2
        store.commit(claim, done(), RETENTION_SECONDS)
        idempotency_clock.advance(RETENTION_SECONDS + 3)
        assert grant(store, "three", unresolved_seconds=_UNRESOLVED_SECONDS).runs == 1

    def test_kept_it_outlives_the_claim(self, store: Store) -> None:
        """Whatever the request says."""
        claim = grant(store, lease_seconds=900, unresolved_seconds=1)
        assert store.get(KEY).expiration > claim.expires_at

    def test_runs_a_lock_takes_back_none(self, store: Store, idempotency_clock: FakeClock) -> None:
        """A lock whose body never began leaves the counts of the runs before it alone."""
        grant(store)
        idempotency_clock.advance(LEASE_SECONDS + 2)
        lock = grant(store, "two", locks=True)
        assert store.release(lock, "Ended", began=False) == Released()
        record = store.get(KEY)
        assert (record.runs, record.attempt) == (1, 1)

    def test_runs_of_an_older_version(self, store: Store, idempotency_clock: FakeClock) -> None:
        """It counts crashes only, of which each was a run; its last one may have ended in another way."""
        store.restore(_by_older_version(idempotency_clock, "one", attempt=3))
        idempotency_clock.advance(LEASE_SECONDS + 2)
        assert grant(store, "two").runs == 4

    def test_runs_an_older_version_began_another(self, store: Store, idempotency_clock: FakeClock) -> None:
        """Its claim keeps our count, which lacks its own run then."""
        store.release(grant(store), "Retry")
        store.release(grant(store, "two"), "Retry")
        counted = store.get(KEY)
        older = _by_older_version(idempotency_clock, "three", attempt=1, fence=counted.fence + 1)
        self.forget(store, KEY)
        store.restore(replace(older, runs=counted.runs, counted_fence=counted.fence, generation=counted.generation))
        idempotency_clock.advance(LEASE_SECONDS + 2)
        assert grant(store, "four").runs == 4

    def test_runs_a_first_reservation_of_an_older_version(self, store: Store, idempotency_clock: FakeClock) -> None:
        """Nobody was before it, so that its delivery is the first run."""
        owner = reservation_owner("id-one")
        store.restore(_by_older_version(idempotency_clock, owner, task_id="id-one", attempt=0))
        assert grant(store, "one").runs == 1

    def test_runs_a_later_reservation_of_an_older_version(self, store: Store, idempotency_clock: FakeClock) -> None:
        """A run without an outcome may have been before it, of which its record shows nothing."""
        owner = reservation_owner("id-one")
        older = _by_older_version(idempotency_clock, owner, task_id="id-one", attempt=0)
        store.restore(replace(older, fence=older.fence + 1))
        assert grant(store, "one").runs == 2

    def test_runs_a_first_reservation_does_not_hide_crashes(self, store: Store, idempotency_clock: FakeClock) -> None:
        """Crashes that were counted happened, whatever the fence is."""
        owner = reservation_owner("id-one")
        store.restore(_by_older_version(idempotency_clock, owner, task_id="id-one", attempt=2))
        assert grant(store, "one").runs == 3


def _previous(record: Record) -> tuple[str | None, str | None, int | None]:
    """Return owner token, task id and time of the claim before the record's."""
    return record.previous_owner, record.previous_task_id, record.previous_claimed_at


def _kept_seconds(store: Store) -> float:
    """Return for how many seconds from now the record is kept."""
    return store.get(KEY).expiration - store.clock.now()


def _by_older_version(
    clock: FakeClock, owner: str, *, attempt: int, task_id: str = "", fence: int | None = None
) -> Record:
    """Return the record of a claim by a version of this library that counts crashes, but no runs."""
    at = int(clock.now() * 1000)
    return Record(
        key=KEY,
        status=Status.INPROGRESS,
        expiration=int(clock.now() + RETENTION_SECONDS),
        in_progress_expiration=at + int(LEASE_SECONDS * 1000),
        owner=owner,
        fence=at if fence is None else fence,
        attempt=attempt,
        task_id=task_id or f"id-{owner}",
        claimed_at=at,
    )
