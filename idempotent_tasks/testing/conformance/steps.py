"""Steps of a body, whose outcomes later runs of the same generation find; kept in the record or beside it."""

from dataclasses import replace
from unittest import SkipTest

from idempotent_tasks.core.records import (
    MAX_STEP_BYTES,
    Claim,
    Granted,
    KeptSteps,
    Lost,
    Parked,
    Released,
    Renewed,
    Status,
    Step,
    step_id,
)
from idempotent_tasks.core.store import ParkingStore, SteppingStore, Store
from idempotent_tasks.errors import RecordNotFoundError
from idempotent_tasks.testing.clock import FakeClock
from idempotent_tasks.testing.conformance.base import RAISES, Conformance
from idempotent_tasks.testing.conformance.requests import (
    KEY,
    LEASE_SECONDS,
    RETENTION_SECONDS,
    done,
    grant,
)

__all__ = ["StepConformance"]

NOTHING = KeptSteps()
SMALL = Step(inputs="i1", codec="json", data='"small"')
#: Does not fit into a record's part for steps, which holds the rest of a result of any size.
LARGE = Step(inputs="i2", codec="json", data='"' + "x" * 100_000 + '"')
OTHER_LARGE = replace(LARGE, inputs="i3", data='"' + "y" * 100_000 + '"')


class StepConformance(Conformance):
    """`SteppingStore`: the outcomes of a body's steps; skipped for a store without ``keep_step()``."""

    def test_step_lies_in_the_record(self, store: Store, data: str | bytes | None) -> None:
        """With each kind of data; nothing else of the record changes."""
        stepping, claim = self._stepping(store), grant(store)
        held = store.get(KEY)
        step = Step(inputs="i", codec="json", data=data, error=None if data is not None else "not stored")
        kept = KeptSteps(here={"charge": step})
        assert stepping.keep_step(claim, "charge", step, claim.steps) == kept
        assert store.get(KEY) == replace(held, steps=kept)

    def test_step_is_added_to_the_others(self, store: Store, idempotency_clock: FakeClock) -> None:
        """Whatever signs its name has; notes of deferrals stay."""
        stepping, claim = self._stepping(store), grant(store)
        store.note_deferral(KEY, claim.owner, "a", int(idempotency_clock.now() * 1000) + 3_000)
        held, kept = store.get(KEY), claim.steps
        names = ("charge 1", "charge.2", "é#:[0]", "steps", ":step", "#steps")
        for name in names:
            kept = self._kept(stepping, claim, name, replace(SMALL, inputs=name), kept)
        assert kept == KeptSteps(here={name: replace(SMALL, inputs=name) for name in names})
        assert store.get(KEY) == replace(held, steps=kept)

    def test_step_has_room_to_the_byte(self, store: Store) -> None:
        """One that is larger lies elsewhere, a smaller one after it in the record, and it is there once."""
        stepping, claim = self._stepping(store), grant(store)
        first = self._kept(stepping, claim, "a", SMALL, claim.steps)
        room = MAX_STEP_BYTES - first.size_bytes - replace(SMALL, data="").size_bytes - len("é".encode())
        larger = self._kept(stepping, claim, "é", replace(SMALL, data="x" * (room + 1)), first)
        assert larger == replace(first, elsewhere=frozenset({step_id("é")}))
        filler = replace(SMALL, data="x" * room)
        full = self._kept(stepping, claim, "ü", filler, larger)
        assert full == replace(larger, here={"a": SMALL, "ü": filler})
        assert stepping.keep_step(claim, "ü", filler, larger) == full
        last = self._kept(stepping, claim, "b", Step(inputs="", codec=""), full)
        assert last == replace(full, elsewhere=frozenset({step_id("é"), step_id("b")}))
        assert store.get(KEY).steps == last

    def test_step_elsewhere_is_found_by_its_name(self, store: Store) -> None:
        """The record only has what names it."""
        stepping, claim = self._stepping(store), grant(store)
        held = store.get(KEY)
        binary = replace(LARGE, data=b"\x00\xff" * 50_000)
        kept = self._kept(stepping, claim, "one", LARGE, claim.steps)
        kept = self._kept(stepping, claim, "two", binary, kept)
        assert kept == KeptSteps(elsewhere=frozenset({step_id("one"), step_id("two")}))
        assert store.get(KEY) == replace(held, steps=kept)
        assert (stepping.kept_step(claim, "one"), stepping.kept_step(claim, "two")) == (LARGE, binary)

    def test_step_that_was_never_kept(self, store: Store) -> None:
        """It is not found, whatever others are."""
        stepping, claim = self._stepping(store), grant(store)
        self._kept(stepping, claim, "one", LARGE, claim.steps)
        with RAISES(RecordNotFoundError):
            stepping.kept_step(claim, "two")

    def test_step_whose_answer_was_lost(self, store: Store) -> None:
        """Its repetition has the same answer and changes nothing, also where it was not the first."""
        stepping, claim = self._stepping(store), grant(store)
        kept = claim.steps
        for name, step in (("a", SMALL), ("b", LARGE), ("c", SMALL), ("d", OTHER_LARGE)):
            answer = self._kept(stepping, claim, name, step, kept)
            record = store.get(KEY)
            assert stepping.keep_step(claim, name, step, kept) == answer
            assert store.get(KEY) == record
            kept = answer
        assert stepping.kept_step(claim, "b") == LARGE

    def test_step_of_a_claim_that_is_over(self, store: Store, idempotency_clock: FakeClock) -> None:
        """The effect is done, and nobody else has the key: it is kept."""
        stepping, claim = self._stepping(store), grant(store)
        idempotency_clock.advance(LEASE_SECONDS + 2)
        kept = self._kept(stepping, claim, "a", SMALL, claim.steps)
        kept = self._kept(stepping, claim, "b", LARGE, kept)
        assert grant(store, "two").steps == kept

    def test_step_of_a_claim_that_was_taken_over(self, store: Store, idempotency_clock: FakeClock) -> None:
        """It is lost, and changes nothing of what its successor does."""
        stepping, late = self._stepping(store), grant(store)
        kept = self._kept(stepping, late, "a", SMALL, late.steps)
        idempotency_clock.advance(LEASE_SECONDS + 2)
        claim = grant(store, "two")
        record = store.get(KEY)
        for name, step in (("b", SMALL), ("c", LARGE)):
            assert stepping.keep_step(late, name, step, kept) == Lost()
        assert store.get(KEY) == record
        kept = self._kept(stepping, claim, "c", OTHER_LARGE, claim.steps)
        record = store.get(KEY)
        assert stepping.keep_step(late, "c", LARGE, late.steps) == Lost()
        assert store.get(KEY) == record
        assert stepping.kept_step(claim, "c") == OTHER_LARGE

    def test_step_by_its_holder_only(self, store: Store) -> None:
        """Not of a key that is released, finished or gone: nothing is made of it."""
        stepping, claim = self._stepping(store), grant(store)
        store.release(claim, "Retry")
        self._refused(stepping, claim)
        claim = grant(store, "two")
        store.commit(claim, done(), RETENTION_SECONDS)
        self._refused(stepping, claim)
        self.forget(store, KEY)
        for step in (SMALL, LARGE):
            assert stepping.keep_step(claim, "a", step, claim.steps) == Lost()
        with RAISES(RecordNotFoundError):
            store.get(KEY)

    def test_steps_are_left_to_the_next_run(self, store: Store, idempotency_clock: FakeClock) -> None:
        """Through a renewal, a release, a claim that is over, and a claim whose answer was lost; it keeps more."""
        stepping, claim = self._stepping(store), grant(store)
        kept = self._kept(stepping, claim, "a", SMALL, claim.steps)
        kept = self._kept(stepping, claim, "b", LARGE, kept)
        assert isinstance(store.renew(claim, LEASE_SECONDS, RETENTION_SECONDS), Renewed)
        assert store.release(claim, "Retry") == Released()
        two = grant(store, "two")
        assert (two.steps, two.generation) == (kept, claim.generation)
        again = store.claim(two.request)
        assert isinstance(again, Granted)
        assert again.claim.steps == kept
        kept = self._kept(stepping, two, "c", SMALL, two.steps)
        idempotency_clock.advance(LEASE_SECONDS + 2)
        three = grant(store, "three")
        assert three.steps == kept == store.get(KEY).steps
        assert stepping.kept_step(three, "b") == LARGE

    def test_steps_stay_with_a_parked_key(self, store: Store, idempotency_clock: FakeClock) -> None:
        """Whoever decides looks at them, and the run that follows finds them."""
        stepping, claim = self._stepping(store), grant(store)
        if not isinstance(store, ParkingStore):
            raise SkipTest("this store cannot park keys")
        kept = self._kept(stepping, claim, "a", SMALL, claim.steps)
        idempotency_clock.advance(LEASE_SECONDS + 2)
        assert isinstance(store.park(grant(store, "two"), "Rerun"), Parked)
        assert store.get(KEY).steps == kept

    def test_steps_end_with_the_outcome(self, store: Store, idempotency_clock: FakeClock) -> None:
        """The next generation does them anew, and does not find those of the one before."""
        stepping, claim = self._stepping(store), grant(store)
        kept = self._kept(stepping, claim, "a", SMALL, claim.steps)
        self._kept(stepping, claim, "b", LARGE, kept)
        store.commit(claim, done(), RETENTION_SECONDS)
        assert store.get(KEY).steps == NOTHING
        idempotency_clock.advance(RETENTION_SECONDS + 3)
        self._begins_anew(stepping)

    def test_steps_end_with_an_expired_record(self, store: Store, idempotency_clock: FakeClock) -> None:
        """Whoever claims a key whose record has expired starts afresh, swept or not."""
        stepping, claim = self._stepping(store), grant(store)
        kept = self._kept(stepping, claim, "a", SMALL, claim.steps)
        self._kept(stepping, claim, "b", LARGE, kept)
        idempotency_clock.advance(RETENTION_SECONDS + LEASE_SECONDS + 3)
        self._begins_anew(stepping)

    def test_steps_that_an_outcome_has_left(self, store: Store, idempotency_clock: FakeClock) -> None:
        """Of a writer that does not know them: they are of the generation that has ended."""
        stepping, claim = self._stepping(store), grant(store)
        kept = self._kept(stepping, claim, "a", SMALL, claim.steps)
        kept = self._kept(stepping, claim, "b", LARGE, kept)
        held = store.get(KEY)
        self.forget(store, KEY)
        now = idempotency_clock.now()
        over = replace(held, status=Status.COMPLETED, completed_at=int(now * 1000), expiration=int(now) + 60, runs=0)
        store.restore(replace(over, unresolved_since=None, counted_fence=None, data="1", codec="json"))
        idempotency_clock.advance(63)
        self._begins_anew(stepping)

    def test_steps_before_a_run_that_does_not_know_them(self, store: Store, idempotency_clock: FakeClock) -> None:
        """Of an older version: it has done the whole body, or has begun it in a generation that it has not counted."""
        stepping, claim = self._stepping(store), grant(store)
        self._kept(stepping, claim, "a", SMALL, claim.steps)
        held = store.get(KEY)
        self.forget(store, KEY)
        store.restore(replace(held, owner="older", fence=held.fence + 1))
        idempotency_clock.advance(LEASE_SECONDS + 2)
        assert grant(store, "two").steps == store.get(KEY).steps == NOTHING

    def _stepping(self, store: Store) -> SteppingStore:
        if not isinstance(store, SteppingStore):
            raise SkipTest("this store keeps no steps")
        return store

    def _kept(self, stepping: SteppingStore, claim: Claim, name: str, step: Step, kept: KeptSteps) -> KeptSteps:
        """Keep a step, which must be kept."""
        answer = stepping.keep_step(claim, name, step, kept)
        assert isinstance(answer, KeptSteps), answer
        return answer

    def _refused(self, stepping: SteppingStore, claim: Claim) -> None:
        record = stepping.get(KEY)
        for step in (SMALL, LARGE):
            assert stepping.keep_step(claim, "a", step, claim.steps) == Lost()
        assert stepping.get(KEY) == record

    def _begins_anew(self, stepping: SteppingStore) -> None:
        """Claim the key, of which no run has left a step, and keep one of those that an earlier generation had."""
        claim = grant(stepping, "next")
        assert (claim.steps, stepping.get(KEY).steps) == (NOTHING, NOTHING)
        with RAISES(RecordNotFoundError):
            stepping.kept_step(claim, "b")
        kept = self._kept(stepping, claim, "b", OTHER_LARGE, claim.steps)
        assert kept == KeptSteps(elsewhere=frozenset({step_id("b")}))
        assert stepping.kept_step(claim, "b") == OTHER_LARGE
