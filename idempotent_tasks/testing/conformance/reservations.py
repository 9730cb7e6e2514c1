"""Keys that a producer reserves: for one delivery, which takes them over, and for a time."""

from idempotent_tasks.core.records import (
    Busy,
    Finished,
    Lost,
    Mismatch,
    Released,
    Status,
    is_reservation,
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
    reservation,
    reserve,
)

__all__ = ["ReservationConformance"]


class ReservationConformance(Conformance):
    """Reservations: a key that a producer keeps for one delivery, and for a time."""

    def test_reservation_taken_over_by_its_delivery(self, store: Store) -> None:
        """At once, as the first attempt, with a later fence; then the key is the delivery's like any claimed one."""
        reserved = reserve(store, "id-one")
        assert is_reservation(store.get(KEY))
        claim = grant(store, "one")
        record = store.get(KEY)
        assert (claim.attempt, claim.fence) == (1, reserved.fence + 1)
        assert (record.owner, record.task_id, is_reservation(record)) == ("one", "id-one", False)

    def test_reservation_is_taken_over_once(self, store: Store) -> None:
        """A twin of the delivery, with the same task id, waits for the one that has the key."""
        reserve(store, "id-one")
        grant(store, "one")
        assert isinstance(store.claim(request_by("twin", task_id="id-one")), Busy)

    def test_reservation_others_find_the_key_busy(self, store: Store) -> None:
        """A delivery with another task id waits until the reservation expires, at the longest."""
        reserved = reserve(store, "id-one")
        held = store.get(KEY)
        assert store.claim(request_by("two")) == Busy(reserved.expires_at, held)
        assert store.get(KEY) == held

    def test_reservation_two_producers_reserve_once(self, store: Store) -> None:
        """The second is told whose task has the key."""
        reserve(store, "id-one")
        answer = store.claim(reservation("id-two"))
        assert isinstance(answer, Busy)
        assert answer.holder.task_id == "id-one"

    def test_reservation_a_lost_message_blocks_until_its_reservation_expires(
        self, store: Store, idempotency_clock: FakeClock
    ) -> None:
        """Nobody came: the next delivery or producer gets the key, and nothing counts as a crash."""
        reserve(store, "id-one")
        idempotency_clock.advance(LEASE_SECONDS - 2)
        assert isinstance(store.claim(request_by("two")), Busy)
        idempotency_clock.advance(4)
        reserve(store, "id-two")
        idempotency_clock.advance(LEASE_SECONDS + 2)
        assert grant(store, "three").attempt == 1

    def test_reservation_a_delivery_that_comes_late_claims_like_any_other(
        self, store: Store, idempotency_clock: FakeClock
    ) -> None:
        """After the reservation has expired, and where another has the key by then, it waits."""
        reserve(store, "id-one")
        idempotency_clock.advance(LEASE_SECONDS + 2)
        assert grant(store, "one").attempt == 1
        self.forget(store, KEY)
        reserve(store, "id-one")
        idempotency_clock.advance(LEASE_SECONDS + 2)
        grant(store, "two")
        assert isinstance(store.claim(request_by("one")), Busy)

    def test_reservation_a_publish_that_failed_frees_the_key(self, store: Store) -> None:
        """The reservation is released by its own owner, once; the fence stays."""
        reserved = reserve(store, "id-one")
        assert store.release(reserved, "NotPublished", crashed=True) == Released()
        claim = grant(store, "two")
        assert (claim.attempt, claim.fence) == (1, reserved.fence + 1)
        assert store.release(reserved, "NotPublished", crashed=True) == Lost()
        assert store.get(KEY).owner == "two"

    def test_reservation_the_delivery_of_a_publish_that_seemed_to_fail_keeps_its_key(self, store: Store) -> None:
        """The broker had the message after all, and its delivery was faster than the producer's release."""
        reserved = reserve(store, "id-one")
        grant(store, "one")
        assert store.release(reserved, "NotPublished", crashed=True) == Lost()
        assert isinstance(store.claim(request_by("two")), Busy)

    def test_reservation_reserving_again_for_the_same_task_prolongs(
        self, store: Store, idempotency_clock: FakeClock
    ) -> None:
        """A producer that publishes one task id again, after a failure that left a reservation, may do so."""
        reserve(store, "id-one")
        idempotency_clock.advance(LEASE_SECONDS - 5)
        again = reserve(store, "id-one")
        idempotency_clock.advance(LEASE_SECONDS - 5)
        assert isinstance(store.claim(request_by("two")), Busy)
        assert grant(store, "one").fence == again.fence + 1

    def test_reservation_keeps_the_count_of_crashes(self, store: Store, idempotency_clock: FakeClock) -> None:
        """Neither being reserved nor a failed publish forgets, or counts as, a crash."""
        for owner in ("one", "two"):
            grant(store, owner)
            idempotency_clock.advance(LEASE_SECONDS + 2)
        reserved = reserve(store, "id-three")
        store.release(reserved, "NotPublished", crashed=True)
        again = reserve(store, "id-four")
        store.release(again, "NotPublished", began=False)
        reserve(store, "id-four")
        assert grant(store, "four").attempt == 3

    def test_reservation_an_outcome_is_nobodys_to_reserve(self, store: Store, idempotency_clock: FakeClock) -> None:
        """A producer is told that the key is done, until the record expires."""
        store.commit(grant(store), done(), RETENTION_SECONDS)
        record = store.get(KEY)
        assert store.claim(reservation("id-two")) == Finished(record)
        assert store.claim(reservation("id-one")) == Finished(record)
        idempotency_clock.advance(RETENTION_SECONDS + 3)
        reserve(store, "id-two")
        assert store.get(KEY).status is Status.INPROGRESS

    def test_reservation_another_payload_is_a_mismatch(self, store: Store, reserver: str) -> None:
        """A reserved key refuses another payload, to its own task id too."""
        reserve(store, "id-one", validation="a")
        assert store.claim(reservation(reserver, validation="b")) == Mismatch("a", "b")
        assert store.claim(request_by("x", task_id=reserver, validation="b")) == Mismatch("a", "b")
        assert grant(store, "one", validation="a").attempt == 1

    def test_reservation_says_until_when_it_stands_in(self, store: Store) -> None:
        """Who is refused learns it, and the claim of the message's own delivery wipes it."""
        until = int(store.clock.now() * 1000) + 60_000
        store.claim(request_by(reservation_owner("id-one"), task_id="id-one", stands_in_until=until))
        answer = store.claim(request_by("two"))
        assert isinstance(answer, Busy)
        assert answer.holder.stands_in_until == store.get(KEY).stands_in_until == until
        grant(store, "one", task_id="id-one")
        assert store.get(KEY).stands_in_until is None
