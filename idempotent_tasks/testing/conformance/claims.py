"""Who is granted a claim, what a grant is worth, and what everybody else is told."""

from dataclasses import replace

from idempotent_tasks.core.records import (
    Busy,
    Committed,
    Finished,
    Granted,
    Mismatch,
    Outcome,
    Record,
    Released,
    Status,
)
from idempotent_tasks.core.store import Store
from idempotent_tasks.errors import RecordNotFoundError
from idempotent_tasks.testing.clock import FakeClock
from idempotent_tasks.testing.conformance.base import RAISES, Conformance
from idempotent_tasks.testing.conformance.requests import KEY, LEASE_SECONDS, RETENTION_SECONDS, done, grant, request_by

__all__ = ["ClaimConformance"]


class ClaimConformance(Conformance):
    """`Store.claim` and `Store.get`: who is granted a key, and what everybody else is told."""

    def test_it_is_a_store(self, store: Store) -> None:
        """Each implementation has the whole protocol."""
        assert isinstance(store, Store)

    def test_claim_an_absent_key_is_granted(self, store: Store) -> None:
        """The first claim of a key is the first attempt, and the record says who has it, and for whom."""
        claim = grant(store)
        record = store.get(KEY)
        assert claim.attempt == 1
        assert (record.status, record.owner, record.fence, record.attempt) == (Status.INPROGRESS, "one", claim.fence, 1)
        assert (record.task, record.task_id, record.worker) == ("shop.charge", "id-one", "worker@host")
        assert (record.data, record.codec, record.completed_at, record.error, record.validation) == (None,) * 5
        assert record.in_progress_expiration == claim.in_progress_expiration

    def test_claim_of_any_key(self, store: Store, key: str) -> None:
        """A key is text, of which nothing has a meaning to the store."""
        granted = grant(store, key=key)
        assert store.get(key).key == granted.key == key
        assert store.claim(request_by("two", key=key)) == Busy(granted.expires_at, store.get(key))
        assert store.commit(granted, done(), RETENTION_SECONDS) == Committed()
        assert store.claim(request_by("two", key=key)) == Finished(store.get(key))

    def test_claim_units(self, store: Store, idempotency_clock: FakeClock) -> None:
        """``expiration`` is in epoch seconds; everything else about time is in epoch milliseconds."""
        before = int(idempotency_clock.now() * 1000)
        claim = grant(store)
        after = idempotency_clock.now() * 1000 + 1
        record = store.get(KEY)
        assert record.claimed_at is not None
        assert before <= record.claimed_at <= after
        assert before + LEASE_SECONDS * 1000 <= claim.in_progress_expiration <= after + LEASE_SECONDS * 1000
        assert before / 1000 + RETENTION_SECONDS <= record.expiration <= after / 1000 + RETENTION_SECONDS + 1
        assert claim.expires_at == claim.in_progress_expiration / 1000

    def test_claim_the_first_fence_is_the_time(self, store: Store, idempotency_clock: FakeClock) -> None:
        """A key's fences start at the claim's epoch milliseconds."""
        before = int(idempotency_clock.now() * 1000)
        assert before <= grant(store).fence <= idempotency_clock.now() * 1000

    def test_claim_a_fence_needs_more_than_32_bits_and_fits_into_64(self, store: Store) -> None:
        """A column for fences is a ``BIGINT``: also for a key that is claimed a thousand times a second for a year."""
        first = grant(store).fence
        assert first > 2**32
        assert first + 1000 * 366 * 86_400 < 2**63

    def test_claim_a_held_key_is_busy(self, store: Store) -> None:
        """A refusal names the holder and the end of its claim, and changes nothing."""
        claim = grant(store)
        held = store.get(KEY)
        assert store.claim(request_by("two")) == Busy(claim.expires_at, held)
        assert store.get(KEY) == held

    def test_claim_that_expired_is_granted_to_the_next(self, store: Store, idempotency_clock: FakeClock) -> None:
        """A holder that died is replaced: a later fence, one attempt more, another owner."""
        first = grant(store)
        idempotency_clock.advance(LEASE_SECONDS + 2)
        second = grant(store, "two")
        assert second.fence == first.fence + 1
        assert second.attempt == 2
        assert store.get(KEY).owner == "two"

    def test_claim_that_has_not_expired_yet_is_busy(self, store: Store, idempotency_clock: FakeClock) -> None:
        """Nobody takes over early."""
        grant(store)
        idempotency_clock.advance(LEASE_SECONDS - 2)
        assert isinstance(store.claim(request_by("two")), Busy)

    def test_claim_attempts_count_the_crashes(self, store: Store, idempotency_clock: FakeClock) -> None:
        """Each claim that ends without commit or release adds one."""
        attempts = []
        for owner in ("one", "two", "three", "four"):
            attempts.append(grant(store, owner).attempt)
            idempotency_clock.advance(LEASE_SECONDS + 2)
        assert attempts == [1, 2, 3, 4]

    def test_claim_a_released_key_is_granted_at_once(self, store: Store) -> None:
        """A release frees the key before its time."""
        first = grant(store)
        assert store.release(first, "Retry") == Released()
        second = grant(store, "two")
        assert second.fence == first.fence + 1
        assert second.attempt == 1
        assert store.get(KEY).error is None

    def test_claim_an_outcome_is_finished(self, store: Store, outcome: Outcome) -> None:
        """Who meets an outcome is given the record with its data, also after the claim would have expired."""
        store.commit(grant(store), outcome, RETENTION_SECONDS)
        record = store.get(KEY)
        assert store.claim(request_by("two")) == Finished(record)
        assert (record.status, record.data, record.codec, record.error) == (
            outcome.status,
            outcome.data,
            outcome.codec,
            outcome.error,
        )

    def test_claim_an_outcome_does_not_end_with_its_claim(self, store: Store, idempotency_clock: FakeClock) -> None:
        """The lease that a finished body had is of no importance any more."""
        store.commit(grant(store), done(), RETENTION_SECONDS)
        idempotency_clock.advance(LEASE_SECONDS + 2)
        assert isinstance(store.claim(request_by("two")), Finished)

    def test_claim_an_expired_outcome_is_granted_and_wiped(
        self, store: Store, idempotency_clock: FakeClock, outcome: Outcome
    ) -> None:
        """After its retention an outcome counts as absent, deleted or not, and leaves nothing but the fence."""
        first = grant(store, validation="a")
        store.commit(first, outcome, RETENTION_SECONDS)
        idempotency_clock.advance(RETENTION_SECONDS + 3)
        second = grant(store, "two")
        record = store.get(KEY)
        assert second.fence == first.fence + 1
        assert second.attempt == 1
        assert record.status is Status.INPROGRESS
        assert (record.data, record.codec, record.completed_at, record.error, record.validation) == (None,) * 5

    def test_claim_a_record_in_progress_expires_too(self, store: Store, idempotency_clock: FakeClock) -> None:
        """A claim that nobody finished or took over within its retention counts as absent, and so does its crash."""
        grant(store, validation="a", retention_seconds=LEASE_SECONDS)
        idempotency_clock.advance(LEASE_SECONDS + 5)
        assert grant(store, "two", validation="b").attempt == 1

    def test_claim_the_record_outlives_its_claim(self, store: Store) -> None:
        """A short retention does not let DynamoDB delete the item under a live claim."""
        claim = grant(store, lease_seconds=900, retention_seconds=1)
        assert store.get(KEY).expiration * 1000 > claim.in_progress_expiration

    def test_claim_repeated_is_granted_again(self, store: Store) -> None:
        """The repetition finds its own token: the same claim, not a conflict, and no further attempt."""
        first = store.claim(request_by("one", validation="a"))
        record = store.get(KEY)
        assert isinstance(first, Granted)
        assert store.claim(request_by("one", validation="a")) == first
        assert store.get(KEY) == record

    def test_claim_repeated_after_a_takeover_is_granted_again(self, store: Store, idempotency_clock: FakeClock) -> None:
        """The attempt that a takeover counts is counted once."""
        grant(store)
        idempotency_clock.advance(LEASE_SECONDS + 2)
        second = grant(store, "two")
        assert store.claim(request_by("two")) == Granted(second)

    def test_claim_repeated_after_its_own_commit_is_finished(self, store: Store) -> None:
        """A delivery that already stored its outcome replays it."""
        store.commit(grant(store), done(), RETENTION_SECONDS)
        assert isinstance(store.claim(request_by("one")), Finished)

    def test_claim_repeated_after_a_takeover_is_busy(self, store: Store, idempotency_clock: FakeClock) -> None:
        """Once another owner has the key, the old token is worth nothing."""
        grant(store)
        idempotency_clock.advance(LEASE_SECONDS + 2)
        grant(store, "two")
        assert isinstance(store.claim(request_by("one")), Busy)

    def test_claim_of_a_foreign_record_without_a_time_out(self, store: Store, idempotency_clock: FakeClock) -> None:
        """Powertools knows none outside Lambda: nobody can tell whether the holder lives, until the record expires."""
        expiration = int(idempotency_clock.now()) + 600
        store.restore(Record(key=KEY, status=Status.INPROGRESS, expiration=expiration))
        assert store.claim(request_by()) == Busy(expiration, store.get(KEY))
        idempotency_clock.advance(602)
        assert grant(store).attempt == 1

    def test_claim_of_a_foreign_record_whose_time_out_has_passed(
        self, store: Store, idempotency_clock: FakeClock
    ) -> None:
        """A function under Powertools that died is replaced."""
        now = idempotency_clock.now()
        foreign = Record(key=KEY, status=Status.INPROGRESS, expiration=int(now) + 600)
        store.restore(replace(foreign, in_progress_expiration=int(now * 1000) + 5000))
        assert isinstance(store.claim(request_by()), Busy)
        idempotency_clock.advance(7)
        assert grant(store).attempt == 1

    def test_claim_of_a_foreign_outcome(self, store: Store, idempotency_clock: FakeClock) -> None:
        """What Powertools has finished is finished."""
        expiration = int(idempotency_clock.now()) + 600
        store.restore(Record(key=KEY, status=Status.COMPLETED, expiration=expiration, data="1"))
        assert store.claim(request_by()) == Finished(store.get(KEY))

    def test_claim_of_a_foreign_outcome_that_expired(self, store: Store, idempotency_clock: FakeClock) -> None:
        """Powertools' last write keeps our count of crashes, which the outcome has ended all the same."""
        outcome = Record(key=KEY, status=Status.COMPLETED, expiration=int(idempotency_clock.now()) + 600, data="1")
        store.restore(replace(outcome, owner="one", fence=7, attempt=2))
        idempotency_clock.advance(602)
        claim = grant(store, "two")
        assert (claim.fence, claim.attempt, store.get(KEY).attempt) == (8, 1, 1)

    def test_mismatch_while_in_progress(self, store: Store) -> None:
        """A running body's key refuses another payload as such, not as busy."""
        grant(store, validation="a")
        assert store.claim(request_by("two", validation="b")) == Mismatch("a", "b")

    def test_mismatch_on_an_outcome(self, store: Store, outcome: Outcome) -> None:
        """Nobody is given the outcome of another payload."""
        store.commit(grant(store, validation="a"), outcome, RETENTION_SECONDS)
        assert store.claim(request_by("two", validation="b")) == Mismatch("a", "b")

    def test_mismatch_on_takeover(self, store: Store, idempotency_clock: FakeClock) -> None:
        """A dead holder's key is still the key of its payload, and its record stays as it is."""
        grant(store, validation="a")
        idempotency_clock.advance(LEASE_SECONDS + 2)
        dead = store.get(KEY)
        assert store.claim(request_by("two", validation="b")) == Mismatch("a", "b")
        assert store.get(KEY) == dead
        assert grant(store, "three", validation="a").attempt == 2

    def test_mismatch_after_a_release(self, store: Store) -> None:
        """A key that waits for its retry refuses another payload."""
        store.release(grant(store, validation="a"), "Retry")
        assert store.claim(request_by("two", validation="b")) == Mismatch("a", "b")

    def test_mismatch_not_once_the_record_expired(self, store: Store, idempotency_clock: FakeClock) -> None:
        """An expired record remembers no payload."""
        store.commit(grant(store, validation="a"), done(), RETENTION_SECONDS)
        idempotency_clock.advance(RETENTION_SECONDS + 3)
        grant(store, "two", validation="b")
        assert store.get(KEY).validation == "b"

    def test_mismatch_not_of_what_another_expression_selected(
        self, store: Store, idempotency_clock: FakeClock, finished_with: Outcome | None
    ) -> None:
        """Its digest says nothing about this payload: a deployment that changes ``validate`` fails no delivery."""
        first = grant(store, validation="a", validated_by="cents")
        if finished_with is not None:
            store.commit(first, finished_with, RETENTION_SECONDS)
        other = request_by("two", validation="b", validated_by="[cents, currency]")
        assert isinstance(store.claim(other), Busy if finished_with is None else Finished)
        idempotency_clock.advance(LEASE_SECONDS + 2 if finished_with is None else RETENTION_SECONDS + 3)
        grant(store, "two", validation="b", validated_by="[cents, currency]")
        record = store.get(KEY)
        assert (record.validation, record.validated_by) == ("b", "[cents, currency]")

    def test_mismatch_of_records_that_name_no_expression(
        self, store: Store, idempotency_clock: FakeClock, expressions: tuple[str | None, str | None]
    ) -> None:
        """Those of Powertools and of older versions are compared, and so is what one expression selected."""
        stored, offered = expressions
        grant(store, validation="a", validated_by=stored)
        other = request_by("two", validation="b", validated_by=offered)
        assert store.claim(other) == Mismatch("a", "b")
        idempotency_clock.advance(LEASE_SECONDS + 2)
        assert store.claim(other) == Mismatch("a", "b")

    def test_mismatch_not_where_there_is_nothing_to_compare(
        self, store: Store, idempotency_clock: FakeClock, payloads: tuple[str | None, str | None]
    ) -> None:
        """The same payload, or none on either side, is busy, then taken over, then finished."""
        stored, offered = payloads
        grant(store, validation=stored)
        assert isinstance(store.claim(request_by("two", validation=offered)), Busy)
        idempotency_clock.advance(LEASE_SECONDS + 2)
        second = grant(store, "two", validation=offered)
        assert store.get(KEY).validation == offered
        store.commit(second, done(), RETENTION_SECONDS)
        assert isinstance(store.claim(request_by("three", validation=offered)), Finished)

    def test_claim_the_fence_grows_with_every_claim(self, store: Store, idempotency_clock: FakeClock) -> None:
        """Takeover, release, commit and expiry, even deletion: a later claim has a larger fence."""
        fences = [grant(store, "one").fence]
        idempotency_clock.advance(LEASE_SECONDS + 2)
        fences.append((taken := grant(store, "two")).fence)
        store.release(taken, "Retry")
        fences.append((again := grant(store, "three")).fence)
        store.commit(again, done(), RETENTION_SECONDS)
        idempotency_clock.advance(RETENTION_SECONDS + 3)
        fences.append(grant(store, "four").fence)
        self.forget(store, KEY)
        fences.append(grant(store, "five").fence)
        assert fences == sorted(set(fences))

    def test_get_a_missing_record(self, store: Store) -> None:
        """The error names the key."""
        with RAISES(RecordNotFoundError) as caught:
            store.get(KEY)
        assert caught.exception.key == KEY
        assert KEY in str(caught.exception)

    def test_get_a_forgotten_record(self, store: Store) -> None:
        """After `forget`, which may be repeated, there is none."""
        grant(store)
        self.forget(store, KEY)
        self.forget(store, KEY)
        with RAISES(RecordNotFoundError):
            store.get(KEY)

    def test_get_an_expired_record(self, store: Store, idempotency_clock: FakeClock) -> None:
        """It is returned as written; its status by the store's clock is `EXPIRED`."""
        store.commit(grant(store), done(), RETENTION_SECONDS)
        idempotency_clock.advance(RETENTION_SECONDS + 3)
        record = store.get(KEY)
        assert record.status is Status.COMPLETED
        assert record.status_at(store.clock.now()) is Status.EXPIRED

    def test_get_keys_do_not_meet(self, store: Store) -> None:
        """Each key has a record of its own."""
        grant(store, key="shop.charge#1")
        grant(store, "two", key="shop.charge#2")
        assert [store.get(f"shop.charge#{number}").owner for number in (1, 2)] == ["one", "two"]
