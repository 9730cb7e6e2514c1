"""Keys whose next run waits for a person's decision, and keys that nobody is granted before a run has settled."""

from dataclasses import replace
from unittest import SkipTest

from idempotent_tasks.core.records import (
    MAX_PARKED_BYTES,
    PARKED_UNTIL,
    Busy,
    Claim,
    Lost,
    MessageKept,
    NoRoom,
    NotParked,
    Parked,
    Record,
    Released,
    Superseded,
    reservation_owner,
)
from idempotent_tasks.core.store import ParkingStore, Store
from idempotent_tasks.testing.clock import FakeClock
from idempotent_tasks.testing.conformance.base import Conformance
from idempotent_tasks.testing.conformance.requests import (
    KEY,
    LEASE_SECONDS,
    RETENTION_SECONDS,
    done,
    grant,
    request_by,
    reservation,
)

__all__ = ["ParkingConformance", "SettlingConformance"]

SETTLE_SECONDS = 20.0
REASON = "Rerun"
#: Longer than any lease.
LONG = 1_000_000


class SettlingConformance(Conformance):
    """`Store.release` of a run that began, under a request that has `settle_seconds`."""

    def test_settle_nobody_is_granted_the_key_meanwhile(self, store: Store, idempotency_clock: FakeClock) -> None:
        """The key is free, and busy until what the run has requested elsewhere has arrived."""
        claim = grant(store, settle_seconds=SETTLE_SECONDS)
        before = int(idempotency_clock.now() * 1000)
        assert store.release(claim, "ValueError") == Released()
        record = store.get(KEY)
        assert record.free
        assert record.settled_at == record.in_progress_expiration
        assert record.settled_at is not None
        until = record.settled_at / 1000
        assert before / 1000 + SETTLE_SECONDS <= until <= idempotency_clock.now() + SETTLE_SECONDS
        idempotency_clock.advance(SETTLE_SECONDS - 2)
        assert store.claim(request_by("two")) == Busy(until, record)
        assert store.claim(reservation("id-one")) == Busy(until, record)

    def test_settle_the_key_is_granted_afterwards(self, store: Store, idempotency_clock: FakeClock) -> None:
        """The next claim knows of the run, and waits no more."""
        store.release(grant(store, settle_seconds=SETTLE_SECONDS), "ValueError")
        idempotency_clock.advance(SETTLE_SECONDS + 2)
        claim = grant(store, "two")
        assert claim.runs == 2
        assert store.get(KEY).settled_at is None
        assert store.release(claim, "Retry") == Released()
        grant(store, "three")

    def test_settle_after_a_crash_too(self, store: Store, idempotency_clock: FakeClock) -> None:
        """The request of a dead process may be on its way as well, and its crash counts."""
        claim = grant(store, settle_seconds=SETTLE_SECONDS)
        assert store.release(Claim.unseen(claim.request), "WorkerLostError", crashed=True) == Released()
        idempotency_clock.advance(SETTLE_SECONDS - 2)
        assert isinstance(store.claim(request_by("two")), Busy)
        idempotency_clock.advance(5)
        assert grant(store, "two").attempt == 2

    def test_settle_not_for_a_run_that_did_nothing(self, store: Store) -> None:
        """Nothing of it is on its way."""
        store.release(grant(store, settle_seconds=SETTLE_SECONDS), "Retry", nothing_done=True)
        assert store.get(KEY).settled_at is None
        grant(store, "two")

    def test_settle_not_for_a_body_that_never_began(self, store: Store) -> None:
        """Neither for a reservation, which has no body."""
        store.release(grant(store, settle_seconds=SETTLE_SECONDS), "Unseen", began=False)
        reserved = grant(store, reservation_owner("id-two"), task_id="id-two", settle_seconds=SETTLE_SECONDS)
        store.release(reserved, "NotPublished", crashed=True)
        assert store.get(KEY).settled_at is None
        grant(store, "two")

    def test_settle_a_release_whose_answer_was_lost(self, store: Store, idempotency_clock: FakeClock) -> None:
        """Its repetition changes nothing: the time counts from the first."""
        claim = grant(store, settle_seconds=SETTLE_SECONDS)
        store.release(claim, "ValueError")
        record = store.get(KEY)
        idempotency_clock.advance(5)
        assert store.release(claim, "ValueError") == Released()
        assert store.get(KEY) == record


class ParkingConformance(Conformance):
    """`ParkingStore`: keys whose next run waits for a person; skipped for a store without ``park()``."""

    def test_park_keeps_the_key_for_a_person(self, store: Store, idempotency_clock: FakeClock) -> None:
        """In progress until the year 9999, under an owner that no claim has; the run that did not begin is none."""
        parking, claim = self._parking(store), self._rerun(store, idempotency_clock)
        store.note_deferral(KEY, claim.owner, "a", int(idempotency_clock.now() * 1000) + 3_000)
        held = store.get(KEY)
        answer = parking.park(claim, REASON)
        record = store.get(KEY)
        assert answer == Parked(record)
        assert record.parked_at is not None
        assert claim.claimed_at <= record.parked_at <= idempotency_clock.now() * 1000
        assert record == replace(
            held,
            owner=record.owner,
            parked_at=record.parked_at,
            expiration=PARKED_UNTIL,
            in_progress_expiration=PARKED_UNTIL * 1000,
            attempt=1,
            runs=1,
            deferred={},
            error=REASON,
        )
        assert record.owner != claim.owner

    def test_park_names_the_run_that_left_no_outcome(self, store: Store, idempotency_clock: FakeClock) -> None:
        """The person looks for that one, not for the delivery that has parked the key."""
        first = grant(store)
        idempotency_clock.advance(LEASE_SECONDS + 2)
        self._parking(store).park(grant(store, "two"), REASON)
        record = store.get(KEY)
        named = record.previous_owner, record.previous_task_id, record.previous_claimed_at
        assert named == ("one", "id-one", first.claimed_at)

    def test_park_no_claim_is_granted(self, store: Store, idempotency_clock: FakeClock) -> None:
        """Neither to a delivery, nor to the one that has parked it, nor to a producer, however late."""
        record = self._parked(store, idempotency_clock)
        idempotency_clock.advance(LONG)
        for request in (request_by("three"), request_by("two"), reservation("id-two"), reservation("id-three")):
            assert store.claim(request) == Parked(record)
        assert store.get(KEY) == record

    def test_park_no_late_call_of_its_claim_lands(self, store: Store, idempotency_clock: FakeClock) -> None:
        """A renewal, commit or release that was long on its way."""
        claim = self._rerun(store, idempotency_clock)
        self._parking(store).park(claim, REASON)
        record = store.get(KEY)
        assert store.renew(claim, LEASE_SECONDS, RETENTION_SECONDS) == Lost()
        assert store.commit(claim, done(), RETENTION_SECONDS) == Superseded(record)
        assert store.release(claim, "Retry") == Lost()
        assert store.release(Claim.unseen(claim.request), "Unseen", began=False) == Lost()
        assert store.get(KEY) == record

    def test_park_no_earlier_runs_call_lands(self, store: Store, idempotency_clock: FakeClock) -> None:
        """A zombie's outcome comes too late: a person decides."""
        zombie = grant(store)
        idempotency_clock.advance(LEASE_SECONDS + 2)
        self._parking(store).park(grant(store, "two"), REASON)
        record = store.get(KEY)
        assert store.commit(zombie, done(), RETENTION_SECONDS) == Superseded(record)
        assert store.get(KEY) == record

    def test_park_twice(self, store: Store, idempotency_clock: FakeClock) -> None:
        """A call whose answer was lost is repeated."""
        claim = self._rerun(store, idempotency_clock)
        first = self._parking(store).park(claim, REASON)
        idempotency_clock.advance(5)
        assert self._parking(store).park(claim, REASON) == first

    def test_park_by_its_holder_only(self, store: Store, idempotency_clock: FakeClock) -> None:
        """Whoever has lost the claim, or has its outcome, parks nothing."""
        parking, late = self._parking(store), self._rerun(store, idempotency_clock)
        idempotency_clock.advance(LEASE_SECONDS + 2)
        holder = grant(store, "three")
        record = store.get(KEY)
        assert parking.park(late, REASON) == Lost()
        assert store.get(KEY) == record
        store.commit(holder, done(), RETENTION_SECONDS)
        record = store.get(KEY)
        assert parking.park(holder, REASON) == Lost()
        assert store.get(KEY) == record

    def test_park_a_key_that_is_gone_or_free(self, store: Store, idempotency_clock: FakeClock) -> None:
        """Nothing is made of it."""
        parking, claim = self._parking(store), self._rerun(store, idempotency_clock)
        store.release(claim, "Retry")
        record = store.get(KEY)
        assert parking.park(claim, REASON) == Lost()
        assert store.get(KEY) == record
        self.forget(store, KEY)
        assert parking.park(claim, REASON) == Lost()
        grant(store, "three")

    def test_keep_message_adds_it_to_the_others(self, store: Store, idempotency_clock: FakeClock) -> None:
        """Under its task id, whatever signs that has, with the bytes that all take together."""
        record, parking = self._parked(store, idempotency_clock), self._parking(store)
        messages = {"id-two": b"\x00\xff", "é.#:1": b"three"}
        for task_id, message in messages.items():
            assert parking.keep_message(KEY, task_id, message) == MessageKept()
        size = sum(len(task_id.encode()) + len(message) for task_id, message in messages.items())
        assert store.get(KEY) == replace(record, parked=messages, parked_bytes=size)

    def test_keep_message_the_first_of_a_task_stays(self, store: Store, idempotency_clock: FakeClock) -> None:
        """Another copy of it is the same task, and takes no more room."""
        self._parked(store, idempotency_clock)
        self._parking(store).keep_message(KEY, "id-two", b"first")
        record = store.get(KEY)
        assert self._parking(store).keep_message(KEY, "id-two", b"another") == MessageKept()
        assert store.get(KEY) == record

    def test_keep_message_only_as_much_as_there_is_room_for(self, store: Store, idempotency_clock: FakeClock) -> None:
        """To the byte, task ids included; a smaller one may still fit."""
        self._parked(store, idempotency_clock)
        parking, room = self._parking(store), MAX_PARKED_BYTES - len("id-1")
        assert parking.keep_message(KEY, "id-1", b"x" * (room + 1)) == NoRoom()
        assert parking.keep_message(KEY, "id-1", b"x" * (room - 5)) == MessageKept()
        assert parking.keep_message(KEY, "id-2", b"x" * 2) == NoRoom()
        assert parking.keep_message(KEY, "id-2", b"x") == MessageKept()
        assert store.get(KEY).parked_bytes == MAX_PARKED_BYTES

    def test_keep_message_only_of_a_parked_key(self, store: Store) -> None:
        """Not of one that is missing, held, free or finished."""
        parking = self._parking(store)
        assert parking.keep_message(KEY, "id-1", b"x") == NotParked()
        claim = grant(store)
        assert parking.keep_message(KEY, "id-1", b"x") == NotParked()
        store.release(claim, "Retry")
        assert parking.keep_message(KEY, "id-1", b"x") == NotParked()
        store.commit(grant(store, "two"), done(), RETENTION_SECONDS)
        record = store.get(KEY)
        assert parking.keep_message(KEY, "id-1", b"x") == NotParked()
        assert store.get(KEY) == record

    def test_keep_message_what_is_to_be_published_again_stays(self, store: Store, idempotency_clock: FakeClock) -> None:
        """With their decision, through a claim of the key that was freed, its outcome, and a claim long after that."""
        kept = replace(
            self._parked(store, idempotency_clock), owner=None, parked_at=None, runs=0, attempt=0, parked={"id-1": b"x"}
        )
        now = int(idempotency_clock.now())
        resolved = replace(
            kept, parked_bytes=5, resolved_fence=kept.fence, expiration=now + 600, in_progress_expiration=now * 1000
        )
        self.forget(store, KEY)
        store.restore(resolved)
        claim = grant(store, "three")
        assert claim.parked_bytes == 5
        store.commit(claim, done(), RETENTION_SECONDS)
        record = store.get(KEY)
        assert (record.parked, record.resolved_fence) == ({"id-1": b"x"}, kept.fence)
        idempotency_clock.advance(RETENTION_SECONDS + LONG)
        assert grant(store, "four").parked_bytes == 5
        record = store.get(KEY)
        assert (record.parked, record.resolved_fence) == ({"id-1": b"x"}, kept.fence)

    def _parking(self, store: Store) -> ParkingStore:
        if not isinstance(store, ParkingStore):
            raise SkipTest("this store cannot park keys")
        return store

    def _rerun(self, store: Store, idempotency_clock: FakeClock) -> Claim:
        """Return the claim of ``two`` after a run of ``one`` that left no outcome."""
        grant(store)
        idempotency_clock.advance(LEASE_SECONDS + 2)
        return grant(store, "two")

    def _parked(self, store: Store, idempotency_clock: FakeClock) -> Record:
        parking = self._parking(store)
        answer = parking.park(self._rerun(store, idempotency_clock), REASON)
        assert isinstance(answer, Parked), answer
        return answer.record
