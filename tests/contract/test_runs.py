"""How many runs of a key began and left no outcome, in which generation, and for how long a record says so."""

import pytest

from idempotent_tasks import Record, Status
from idempotent_tasks.core.records import (
    Claim,
    Committed,
    Finished,
    Granted,
    Lost,
    Outcome,
    Released,
    Renewed,
    reservation_owner,
)
from tests.contract.conftest import AnyStore, MovableClock
from tests.support.guarding import KEY, done, grant, request_by

LEASE = 30
RETENTION = 3600
UNRESOLVED = 14 * 86_400
FAILED = Outcome(status=Status.FAILED, codec="json", data='"no"', error="ValueError")


def reserve(store: AnyStore, task_id: str = "id-two") -> Claim:
    """Reserve `KEY` for the delivery of a task."""
    return grant(store, reservation_owner(task_id), task_id=task_id)


def previous(record: Record) -> tuple[str | None, str | None, int | None]:
    """Return owner token, task id and time of the claim before the record's."""
    return record.previous_owner, record.previous_task_id, record.previous_claimed_at


class TestCount:
    """What counts as a run, and what ends the count."""

    def test_a_first_run(self, store: AnyStore) -> None:
        """Claim and record say that no run began before it, and name none."""
        claim = grant(store)
        record = store.get(KEY)
        assert (claim.runs, record.runs) == (1, 1)
        assert previous(record) == (None, None, None)

    def test_a_takeover(self, store: AnyStore, clock: MovableClock) -> None:
        """A holder whose claim ran out began a run; the record names it."""
        first = grant(store)
        clock.advance(LEASE + 2)
        second = grant(store, "two")
        record = store.get(KEY)
        assert (second.runs, record.runs) == (2, 2)
        assert previous(record) == ("one", "id-one", first.claimed_at)

    @pytest.mark.parametrize("crashed", [False, True], ids=["raised", "crashed"])
    def test_a_run_that_was_released(self, store: AnyStore, *, crashed: bool) -> None:
        """A failure, a retry, a rejection or a seen death: the run began, and has no owner any more."""
        first = grant(store)
        assert store.release(first, "ValueError", crashed=crashed) == Released()
        assert store.get(KEY).runs == 1
        assert grant(store, "two").runs == 2
        assert previous(store.get(KEY)) == (None, "id-one", first.claimed_at)

    def test_every_end_without_an_outcome_counts(self, store: AnyStore, clock: MovableClock) -> None:
        """In any order; crashes are counted besides."""
        store.release(grant(store, "one"), "Retry")
        grant(store, "two")
        clock.advance(LEASE + 2)
        store.release(grant(store, "three"), "WorkerLostError", crashed=True)
        last = grant(store, "four")
        assert (last.runs, last.attempt) == (4, 3)

    @pytest.mark.parametrize("outcome", [done(), FAILED], ids=["completed", "failed"])
    def test_an_outcome_ends_the_count(self, store: AnyStore, clock: MovableClock, outcome: Outcome) -> None:
        """The record of an outcome counts none, and the next generation starts from nothing."""
        store.release(grant(store), "Retry")
        store.commit(grant(store, "two"), outcome, RETENTION)
        record = store.get(KEY)
        assert (record.runs, record.unresolved_since, previous(record)) == (0, None, (None, None, None))
        clock.advance(RETENTION + 3)
        assert grant(store, "three").runs == 1
        assert previous(store.get(KEY)) == (None, None, None)

    def test_a_body_that_never_began(self, store: AnyStore) -> None:
        """It is subtracted, and only it; a repeated release subtracts nothing."""
        store.release(grant(store), "Retry")
        second = grant(store, "two")
        for _ in range(2):
            assert store.release(second, "Unseen", began=False) == Released()
        assert store.get(KEY).runs == 1
        assert grant(store, "three").runs == 2

    def test_a_first_body_that_never_began(self, store: AnyStore) -> None:
        """Nothing is left of it: the next run is the first, and nobody was before it."""
        assert store.release(Claim.unseen(grant(store).request), "Unseen", began=False) == Released()
        assert store.get(KEY).runs == 0
        assert grant(store, "two").runs == 1
        assert previous(store.get(KEY)) == (None, None, None)

    def test_a_body_that_did_nothing(self, store: AnyStore, clock: MovableClock) -> None:
        """It is subtracted too, and ends the row of crashes as any clean end does."""
        for owner in ("one", "two"):
            grant(store, owner)
            clock.advance(LEASE + 2)
        third = grant(store, "three")
        assert store.release(third, "Retry", nothing_done=True) == Released()
        record = store.get(KEY)
        assert (record.runs, record.attempt) == (2, 0)
        assert grant(store, "four").runs == 3

    def test_a_reservation(self, store: AnyStore, clock: MovableClock) -> None:
        """Neither being reserved, nor a lost message, nor a failed publish is a run."""
        assert reserve(store).runs == 0
        clock.advance(LEASE + 2)
        store.release(reserve(store), "NotPublished", crashed=True)
        reserve(store)
        assert grant(store, "two").runs == 1
        assert previous(store.get(KEY)) == (None, None, None)

    def test_a_reservation_keeps_the_count(self, store: AnyStore) -> None:
        """A retry that is reserved for, or a publish after a run without an outcome."""
        store.release(grant(store), "Retry")
        assert reserve(store).runs == 1
        assert grant(store, "two").runs == 2
        assert previous(store.get(KEY)) == (None, None, None)

    def test_a_lock(self, store: AnyStore, clock: MovableClock) -> None:
        """It serialises runs and is none itself, whether it is released or runs out."""
        for owner in ("one", "two"):
            assert grant(store, owner, locks=True).runs == 0
            clock.advance(LEASE + 2)
        lock = grant(store, "three", locks=True)
        assert store.release(lock, "Ended") == Released()
        assert store.get(KEY).runs == 0

    def test_a_renewal_counts_nothing(self, store: AnyStore) -> None:
        """It is the same run."""
        answer = store.renew(grant(store), LEASE * 2, UNRESOLVED)
        assert isinstance(answer, Renewed)
        assert (answer.claim.runs, store.get(KEY).runs) == (1, 1)

    def test_a_repeated_claim_counts_once(self, store: AnyStore, clock: MovableClock) -> None:
        """The answer to a grant was lost: the repeated request is told the same count, also when the lease is over."""
        store.release(grant(store), "Retry")
        second = grant(store, "two")
        assert store.claim(request_by("two")) == Granted(second)
        clock.advance(LEASE + 2)
        again = grant(store, "two")
        assert (again.runs, again.attempt, again.fence) == (2, 1, second.fence)
        assert grant(store, "two", lease_seconds=LEASE).runs == 2

    def test_whoever_was_taken_over_changes_no_count(self, store: AnyStore, clock: MovableClock) -> None:
        """A late release subtracts nothing from its successor's count."""
        first = grant(store)
        clock.advance(LEASE + 2)
        grant(store, "two")
        assert store.release(first, "Unseen", began=False) == Lost()
        assert store.get(KEY).runs == 2


class TestGeneration:
    """A number that grows with every fresh start of a key."""

    def test_it_begins_at_the_time(self, store: AnyStore) -> None:
        """A key's first generation is the time of its first claim."""
        claim = grant(store)
        record = store.get(KEY)
        assert claim.generation == record.generation == record.unresolved_since == claim.claimed_at

    def test_it_stays(self, store: AnyStore, clock: MovableClock) -> None:
        """Through retries, reservations, takeovers and the outcome; a replay shows it."""
        first = grant(store)
        store.release(first, "Retry")
        reserve(store)
        grant(store, "two")
        clock.advance(LEASE + 2)
        last = grant(store, "three")
        assert (last.generation, store.get(KEY).unresolved_since) == (first.generation, first.claimed_at)
        assert store.commit(last, done(), RETENTION) == Committed()
        answer = store.claim(request_by("four"))
        assert isinstance(answer, Finished)
        assert answer.record.generation == first.generation

    def test_it_grows(self, store: AnyStore, clock: MovableClock) -> None:
        """After an outcome that expired, a claim that expired, and a deletion."""
        claims = [grant(store)]
        store.commit(claims[-1], done(), RETENTION)
        clock.advance(RETENTION + 3)
        claims.append(grant(store, "two"))
        clock.advance(RETENTION + 3)
        claims.append(grant(store, "three"))
        clock.advance(1)
        store.forget(KEY)
        claims.append(grant(store, "four"))
        generations = [claim.generation for claim in claims]
        assert generations == sorted(set(generations))
        assert [claim.runs for claim in claims] == [1] * 4

    def test_a_restored_outcome_keeps_it(self, store: AnyStore, clock: MovableClock) -> None:
        """A record that was put back starts afresh like any other when it has expired."""
        claim = grant(store)
        store.commit(claim, done(), RETENTION)
        record = store.get(KEY)
        store.forget(KEY)
        store.restore(record)
        assert store.get(KEY) == record
        clock.advance(RETENTION + 3)
        second = grant(store, "two")
        assert (second.runs, second.attempt) == (1, 1)
        assert second.generation > claim.generation


class TestExpired:
    """An item that TTL has not deleted yet is as good as none."""

    @pytest.mark.parametrize("end", ["taken over", "released", "reserved"])
    def test_a_claim_that_expired(self, store: AnyStore, clock: MovableClock, end: str) -> None:
        """Runs, crashes, notes, payload and holders of the old generation are gone; the fence goes on."""
        grant(store, validation="a")
        clock.advance(LEASE + 2)
        second = grant(store, "two", validation="a")
        store.note_deferral(KEY, "two", "token", int(clock.now() * 1000) + 60_000)
        if end != "taken over":
            store.release(second, "WorkerLostError", crashed=True)
        if end == "reserved":
            reserve(store)
        old = store.get(KEY)
        clock.advance(RETENTION + 3)
        claim = grant(store, "three", validation="b")
        record = store.get(KEY)
        assert (claim.runs, claim.attempt, claim.fence) == (1, 1, old.fence + 1)
        assert claim.generation > (old.generation or 0)
        assert (record.validation, record.deferred, record.error, previous(record)) == ("b", {}, None, (None,) * 3)
        assert (record.owner, record.task_id, record.claimed_at) == ("three", "id-three", claim.claimed_at)

    def test_it_is_reserved_like_a_missing_one(self, store: AnyStore, clock: MovableClock) -> None:
        """A reservation starts the generation, and counts no run of it."""
        store.release(grant(store), "Retry")
        clock.advance(RETENTION + 3)
        reserved = reserve(store)
        assert (reserved.runs, reserved.attempt) == (0, 0)
        claim = grant(store, "two")
        assert (claim.runs, claim.generation) == (1, reserved.generation)

    def test_two_claimers_of_an_expired_claim(self, store: AnyStore, clock: MovableClock) -> None:
        """One is granted; a repeated request of it is not counted again."""
        grant(store)
        clock.advance(RETENTION + 3)
        second = grant(store, "two")
        assert store.claim(request_by("two")) == Granted(second)
        assert not isinstance(store.claim(request_by("three")), Granted)
        assert store.get(KEY).runs == 1


class TestRetention:
    """`expires` counts from the outcome; what has none is kept for as long as the request says."""

    def kept(self, store: AnyStore, clock: MovableClock) -> float:
        """Return for how many seconds from now the record is kept."""
        return store.get(KEY).expiration - clock.now()

    def test_without_an_outcome(self, store: AnyStore, clock: MovableClock) -> None:
        """A run that began is known of for longer than an outcome is kept: released, renewed, reserved, taken over."""
        claim = grant(store, unresolved_seconds=UNRESOLVED)
        assert UNRESOLVED - 2 <= self.kept(store, clock) <= UNRESOLVED + 2
        store.renew(claim, LEASE, claim.request.kept_seconds)
        assert self.kept(store, clock) >= UNRESOLVED - 2
        store.release(claim, "Retry")
        assert self.kept(store, clock) >= UNRESOLVED - 2
        clock.advance(UNRESOLVED - 60)
        assert grant(store, "two", unresolved_seconds=UNRESOLVED).runs == 2
        assert self.kept(store, clock) >= UNRESOLVED - 2

    def test_an_outcome(self, store: AnyStore, clock: MovableClock) -> None:
        """It is kept from the commit on, for as long as that says."""
        claim = grant(store, unresolved_seconds=UNRESOLVED)
        clock.advance(LEASE - 10)
        store.commit(claim, done(), RETENTION)
        assert RETENTION - 2 <= self.kept(store, clock) <= RETENTION + 2

    def test_a_redelivery_after_the_retention_of_an_outcome(self, store: AnyStore, clock: MovableClock) -> None:
        """An hour after a host died, a redelivery is a rerun; an hour after an outcome, it is a fresh start."""
        grant(store, unresolved_seconds=UNRESOLVED)
        clock.advance(RETENTION + 3)
        claim = grant(store, "two", unresolved_seconds=UNRESOLVED)
        assert claim.runs == 2
        store.commit(claim, done(), RETENTION)
        clock.advance(RETENTION + 3)
        assert grant(store, "three", unresolved_seconds=UNRESOLVED).runs == 1

    def test_it_outlives_the_claim(self, store: AnyStore) -> None:
        """Whatever the request says."""
        claim = grant(store, lease_seconds=900, unresolved_seconds=1)
        assert store.get(KEY).expiration > claim.expires_at
