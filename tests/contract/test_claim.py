"""Who is granted a claim, what a grant is worth, and what everybody else is told."""

import pytest

from idempotent_tasks import RecordNotFoundError, Status, Store
from idempotent_tasks.core.records import Busy, Finished, Granted, Mismatch, Outcome, Released
from tests.contract.conftest import AnyStore, MovableClock
from tests.support.guarding import KEY, done, grant, request_by

LEASE = 30
RETENTION = 3600

FAILED = Outcome(status=Status.FAILED, codec="json", data='"no"', error="ValueError")


def test_it_is_a_store(store: AnyStore) -> None:
    """Each implementation has the whole protocol."""
    assert isinstance(store, Store)


def test_an_absent_key_is_granted(store: AnyStore) -> None:
    """The first claim of a key is the first attempt, and the record says who has it, and for whom."""
    claim = grant(store)
    record = store.get(KEY)
    assert claim.attempt == 1
    assert (record.status, record.owner, record.fence, record.attempt) == (Status.INPROGRESS, "one", claim.fence, 1)
    assert (record.task, record.task_id, record.worker) == ("shop.charge", "id-one", "worker@host")
    assert (record.data, record.codec, record.completed_at, record.error, record.validation) == (None,) * 5
    assert record.in_progress_expiration == claim.in_progress_expiration


def test_units(store: AnyStore, clock: MovableClock) -> None:
    """``expiration`` is in epoch seconds; everything else about time is in epoch milliseconds."""
    before = int(clock.now() * 1000)
    claim = grant(store)
    after = clock.now() * 1000 + 1
    record = store.get(KEY)
    assert record.claimed_at is not None
    assert before <= record.claimed_at <= after
    assert before + LEASE * 1000 <= claim.in_progress_expiration <= after + LEASE * 1000
    assert before / 1000 + RETENTION <= record.expiration <= after / 1000 + RETENTION + 1
    assert claim.expires_at == claim.in_progress_expiration / 1000


def test_the_first_fence_is_the_time(store: AnyStore, clock: MovableClock) -> None:
    """A key's fences start at the claim's epoch milliseconds."""
    before = int(clock.now() * 1000)
    assert before <= grant(store).fence <= clock.now() * 1000


def test_a_fence_needs_more_than_32_bits_and_fits_into_64(store: AnyStore) -> None:
    """A column for fences is a ``BIGINT``: also for a key that is claimed a thousand times a second for a year."""
    first = grant(store).fence
    assert first > 2**32
    assert first + 1000 * 366 * 86_400 < 2**63


def test_a_held_key_is_busy(store: AnyStore) -> None:
    """A refusal names the holder and the end of its claim, and changes nothing."""
    claim = grant(store)
    held = store.get(KEY)
    assert store.claim(request_by("two")) == Busy(claim.expires_at, held)
    assert store.get(KEY) == held


def test_a_claim_that_expired_is_granted_to_the_next(store: AnyStore, clock: MovableClock) -> None:
    """A holder that died is replaced: a later fence, one attempt more, another owner."""
    first = grant(store)
    clock.advance(LEASE + 2)
    second = grant(store, "two")
    assert second.fence == first.fence + 1
    assert second.attempt == 2
    assert store.get(KEY).owner == "two"


def test_a_claim_that_has_not_expired_yet_is_busy(store: AnyStore, clock: MovableClock) -> None:
    """Nobody takes over early."""
    grant(store)
    clock.advance(LEASE - 2)
    assert isinstance(store.claim(request_by("two")), Busy)


def test_attempts_count_the_crashes(store: AnyStore, clock: MovableClock) -> None:
    """Each claim that ends without commit or release adds one."""
    attempts = []
    for owner in ("one", "two", "three", "four"):
        attempts.append(grant(store, owner).attempt)
        clock.advance(LEASE + 2)
    assert attempts == [1, 2, 3, 4]


def test_a_released_key_is_granted_at_once(store: AnyStore) -> None:
    """A release frees the key before its time."""
    first = grant(store)
    assert store.release(first, "Retry") == Released()
    second = grant(store, "two")
    assert second.fence == first.fence + 1
    assert second.attempt == 1
    assert store.get(KEY).error is None


@pytest.mark.parametrize("outcome", [done(), FAILED], ids=["completed", "failed"])
def test_an_outcome_is_finished(store: AnyStore, outcome: Outcome) -> None:
    """Who meets an outcome is given the record with its data, also after the claim would have expired."""
    store.commit(grant(store), outcome, RETENTION)
    record = store.get(KEY)
    assert store.claim(request_by("two")) == Finished(record)
    assert (record.status, record.data, record.codec, record.error) == (
        outcome.status,
        outcome.data,
        outcome.codec,
        outcome.error,
    )


def test_an_outcome_does_not_end_with_its_claim(store: AnyStore, clock: MovableClock) -> None:
    """The lease that a finished body had is of no importance any more."""
    store.commit(grant(store), done(), RETENTION)
    clock.advance(LEASE + 2)
    assert isinstance(store.claim(request_by("two")), Finished)


@pytest.mark.parametrize("outcome", [done(), FAILED], ids=["completed", "failed"])
def test_an_expired_outcome_is_granted_and_wiped(store: AnyStore, clock: MovableClock, outcome: Outcome) -> None:
    """After its retention an outcome counts as absent, deleted or not, and leaves nothing but the fence."""
    first = grant(store, validation="a")
    store.commit(first, outcome, RETENTION)
    clock.advance(RETENTION + 3)
    second = grant(store, "two")
    record = store.get(KEY)
    assert second.fence == first.fence + 1
    assert second.attempt == 1
    assert record.status is Status.INPROGRESS
    assert (record.data, record.codec, record.completed_at, record.error, record.validation) == (None,) * 5


def test_a_record_in_progress_expires_too(store: AnyStore, clock: MovableClock) -> None:
    """A claim that nobody finished or took over within its retention counts as absent, and so does its crash."""
    grant(store, validation="a", retention_seconds=LEASE)
    clock.advance(LEASE + 5)
    assert grant(store, "two", validation="b").attempt == 1


def test_the_record_outlives_its_claim(store: AnyStore) -> None:
    """A short retention does not let DynamoDB delete the item under a live claim."""
    claim = grant(store, lease_seconds=900, retention_seconds=1)
    assert store.get(KEY).expiration * 1000 > claim.in_progress_expiration


class TestLostAnswers:
    """The same call again, because the answer of the first was lost."""

    def test_a_repeated_claim_is_granted_again(self, store: AnyStore) -> None:
        """The repetition finds its own token: the same claim, not a conflict, and no further attempt."""
        first = store.claim(request_by("one", validation="a"))
        record = store.get(KEY)
        assert isinstance(first, Granted)
        assert store.claim(request_by("one", validation="a")) == first
        assert store.get(KEY) == record

    def test_a_repeated_claim_after_a_takeover_is_granted_again(self, store: AnyStore, clock: MovableClock) -> None:
        """The attempt that a takeover counts is counted once."""
        grant(store)
        clock.advance(LEASE + 2)
        second = grant(store, "two")
        assert store.claim(request_by("two")) == Granted(second)

    def test_a_claim_repeated_after_its_own_commit_is_finished(self, store: AnyStore) -> None:
        """A delivery that already stored its outcome replays it."""
        store.commit(grant(store), done(), RETENTION)
        assert isinstance(store.claim(request_by("one")), Finished)

    def test_a_claim_repeated_after_a_takeover_is_busy(self, store: AnyStore, clock: MovableClock) -> None:
        """Once another owner has the key, the old token is worth nothing."""
        grant(store)
        clock.advance(LEASE + 2)
        grant(store, "two")
        assert isinstance(store.claim(request_by("one")), Busy)


class TestMismatch:
    """One key, two payloads."""

    def test_while_in_progress(self, store: AnyStore) -> None:
        """A running body's key refuses another payload as such, not as busy."""
        grant(store, validation="a")
        assert store.claim(request_by("two", validation="b")) == Mismatch("a", "b")

    @pytest.mark.parametrize("outcome", [done(), FAILED], ids=["completed", "failed"])
    def test_on_an_outcome(self, store: AnyStore, outcome: Outcome) -> None:
        """Nobody is given the outcome of another payload."""
        store.commit(grant(store, validation="a"), outcome, RETENTION)
        assert store.claim(request_by("two", validation="b")) == Mismatch("a", "b")

    def test_on_takeover(self, store: AnyStore, clock: MovableClock) -> None:
        """A dead holder's key is still the key of its payload, and its record stays as it is."""
        grant(store, validation="a")
        clock.advance(LEASE + 2)
        dead = store.get(KEY)
        assert store.claim(request_by("two", validation="b")) == Mismatch("a", "b")
        assert store.get(KEY) == dead
        assert grant(store, "three", validation="a").attempt == 2

    def test_after_a_release(self, store: AnyStore) -> None:
        """A key that waits for its retry refuses another payload."""
        store.release(grant(store, validation="a"), "Retry")
        assert store.claim(request_by("two", validation="b")) == Mismatch("a", "b")

    def test_not_once_the_record_expired(self, store: AnyStore, clock: MovableClock) -> None:
        """An expired record remembers no payload."""
        store.commit(grant(store, validation="a"), done(), RETENTION)
        clock.advance(RETENTION + 3)
        grant(store, "two", validation="b")
        assert store.get(KEY).validation == "b"

    @pytest.mark.parametrize("outcome", [None, done(), FAILED], ids=["running", "completed", "failed"])
    def test_not_of_what_another_expression_selected(
        self, store: AnyStore, clock: MovableClock, outcome: Outcome | None
    ) -> None:
        """Its digest says nothing about this payload: a deployment that changes ``validate`` fails no delivery."""
        first = grant(store, validation="a", validated_by="cents")
        if outcome is not None:
            store.commit(first, outcome, RETENTION)
        other = request_by("two", validation="b", validated_by="[cents, currency]")
        assert isinstance(store.claim(other), Busy if outcome is None else Finished)
        clock.advance(LEASE + 2 if outcome is None else RETENTION + 3)
        grant(store, "two", validation="b", validated_by="[cents, currency]")
        record = store.get(KEY)
        assert (record.validation, record.validated_by) == ("b", "[cents, currency]")

    @pytest.mark.parametrize(("stored", "offered"), [("cents", "cents"), (None, "cents"), ("cents", None)])
    def test_of_records_that_name_no_expression(
        self, store: AnyStore, clock: MovableClock, stored: str | None, offered: str | None
    ) -> None:
        """Those of Powertools and of older versions are compared, and so is what one expression selected."""
        grant(store, validation="a", validated_by=stored)
        other = request_by("two", validation="b", validated_by=offered)
        assert store.claim(other) == Mismatch("a", "b")
        clock.advance(LEASE + 2)
        assert store.claim(other) == Mismatch("a", "b")

    @pytest.mark.parametrize(("stored", "offered"), [("a", "a"), ("a", None), (None, "b"), (None, None)])
    def test_not_where_there_is_nothing_to_compare(
        self, store: AnyStore, clock: MovableClock, stored: str | None, offered: str | None
    ) -> None:
        """The same payload, or none on either side, is busy, then taken over, then finished."""
        grant(store, validation=stored)
        assert isinstance(store.claim(request_by("two", validation=offered)), Busy)
        clock.advance(LEASE + 2)
        second = grant(store, "two", validation=offered)
        assert store.get(KEY).validation == offered
        store.commit(second, done(), RETENTION)
        assert isinstance(store.claim(request_by("three", validation=offered)), Finished)


def test_the_fence_grows_with_every_claim(store: AnyStore, clock: MovableClock) -> None:
    """Takeover, release, commit and expiry, even deletion: a later claim has a larger fence."""
    fences = [grant(store, "one").fence]
    clock.advance(LEASE + 2)
    fences.append((taken := grant(store, "two")).fence)
    store.release(taken, "Retry")
    fences.append((again := grant(store, "three")).fence)
    store.commit(again, done(), RETENTION)
    clock.advance(RETENTION + 3)
    fences.append(grant(store, "four").fence)
    store.forget(KEY)
    fences.append(grant(store, "five").fence)
    assert fences == sorted(set(fences))


class TestGet:
    """Reading a record."""

    def test_a_missing_record(self, store: AnyStore) -> None:
        """The error names the key."""
        with pytest.raises(RecordNotFoundError) as caught:
            store.get(KEY)
        assert caught.value.key == KEY
        assert KEY in str(caught.value)

    def test_a_forgotten_record(self, store: AnyStore) -> None:
        """After `forget`, which may be repeated, there is none."""
        grant(store)
        store.forget(KEY)
        store.forget(KEY)
        with pytest.raises(RecordNotFoundError):
            store.get(KEY)

    def test_an_expired_record(self, store: AnyStore, clock: MovableClock) -> None:
        """It is returned as written; its status by the store's clock is `EXPIRED`."""
        store.commit(grant(store), done(), RETENTION)
        clock.advance(RETENTION + 3)
        record = store.get(KEY)
        assert record.status is Status.COMPLETED
        assert record.status_at(store.clock.now()) is Status.EXPIRED

    def test_keys_do_not_meet(self, store: AnyStore) -> None:
        """Each key has a record of its own."""
        grant(store, key="shop.charge#1")
        grant(store, "two", key="shop.charge#2")
        assert [store.get(f"shop.charge#{number}").owner for number in (1, 2)] == ["one", "two"]
