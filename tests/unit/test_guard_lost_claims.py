"""The guard after its claim was lost: superseded commits, records that vanish, owners that come back from the dead."""

from itertools import repeat
from typing import Any

import pytest

from idempotent_tasks import events
from idempotent_tasks.core.guard import Replayed, Returned
from idempotent_tasks.core.lease import RunContext
from idempotent_tasks.core.records import Busy, Status, Vanished
from idempotent_tasks.testing import FakeClock, MemoryStore
from tests.support.guarding import KEY, Bench, Broken, done, grant
from tests.support.stores import Step, answers, down, lost_answer, meanwhile


def takeover(store: MemoryStore, clock: FakeClock, *, finish: bool) -> Step:
    """Let the claim expire and another owner take the key just before the call."""

    def act() -> None:
        clock.advance(31)
        other = grant(store, "other")
        if finish:
            store.commit(other, done('"of the other"'), 3600)

    return meanwhile(act)


def test_a_late_commit_counts_where_nobody_took_the_key(broken: Broken, clock: FakeClock, store: MemoryStore) -> None:
    """A body that outran its claim may still commit."""
    bench = broken(commit=[meanwhile(lambda: clock.advance(300))])
    assert bench.deliver() == Returned("done")
    assert store.get(KEY).data == '"done"'


def test_superseded_by_a_finished_run_returns_its_result(broken: Broken, store: MemoryStore, clock: FakeClock) -> None:
    """Two bodies ran; the first outcome on record is the only one, and both deliveries return it."""
    bench = broken(commit=[takeover(store, clock, finish=True)])
    assert bench.deliver() == Replayed("of the other")
    assert bench.events() == ["Claimed", "Superseded", "Replayed"]
    assert bench.the(events.Replayed).holder_task_id == "id-other"
    assert store.get(KEY).data == '"of the other"'


def test_superseded_by_a_running_one_is_busy(broken: Broken, store: MemoryStore, clock: FakeClock) -> None:
    """The outcome is the other's to decide, so this delivery waits like any duplicate."""
    bench = broken(commit=[takeover(store, clock, finish=False)])
    verdict = bench.deliver()
    assert isinstance(verdict, Busy)
    assert verdict.until == clock.now() + 30
    assert verdict.holder.owner == "other"
    assert bench.events() == ["Claimed", "Superseded"]


def test_superseded_with_an_unwritable_result_returns_the_others(
    broken: Broken, store: MemoryStore, clock: FakeClock
) -> None:
    """A dropped result needs no encoding."""
    bench = broken(commit=[takeover(store, clock, finish=True)])
    assert bench.deliver(value={1, 2}) == Replayed("of the other")


def test_a_record_that_vanished_is_put_back(broken: Broken, store: MemoryStore) -> None:
    """Somebody deleted the item under a running body: the outcome is on record all the same."""
    bench = broken(commit=[meanwhile(lambda: store.forget(KEY))])
    assert bench.deliver(validation="five") == Returned("done")
    assert bench.events() == ["Claimed", "Committed"]
    record = store.get(KEY)
    assert (record.status, record.data, record.validation) == (Status.COMPLETED, '"done"', "five")
    assert record.fence == bench.the(events.Committed).fence
    assert bench.deliver("two", validation="five") == Replayed("done")


def test_a_record_put_back_outlives_its_claim(broken: Broken, store: MemoryStore, clock: FakeClock) -> None:
    """Also where the retention is shorter than the claim."""
    bench = broken(commit=[meanwhile(lambda: store.forget(KEY))])
    bench.deliver(retention_seconds=1, lease_seconds=60)
    record = store.get(KEY)
    assert record.in_progress_expiration is not None
    assert record.expiration > record.in_progress_expiration / 1000


def test_a_restores_answer_lost_is_one_record(broken: Broken, store: MemoryStore) -> None:
    """The repeated commit finds what the restore wrote."""
    bench = broken(commit=[meanwhile(lambda: store.forget(KEY))], restore=[lost_answer()])
    assert bench.deliver() == Returned("done")
    assert bench.events() == ["Claimed", "Committed"]
    assert len(store.records()) == 1


def test_vanished_and_retaken_by_a_running_one_is_busy(broken: Broken, store: MemoryStore) -> None:
    """Between the commit and the restore another delivery claimed the key: it decides the outcome."""
    bench = broken(commit=[meanwhile(lambda: store.forget(KEY))], restore=[meanwhile(lambda: grant(store, "other"))])
    verdict = bench.deliver()
    assert isinstance(verdict, Busy)
    assert verdict.holder.owner == "other"
    assert store.get(KEY).status is Status.INPROGRESS


def test_vanished_and_retaken_by_a_finished_one_returns_its_result(broken: Broken, store: MemoryStore) -> None:
    """The other's outcome is the key's."""

    def retake() -> None:
        store.commit(grant(store, "other"), done('"of the other"'), 3600)

    bench = broken(commit=[meanwhile(lambda: store.forget(KEY))], restore=[meanwhile(retake)])
    assert bench.deliver() == Replayed("of the other")


def test_vanished_retaken_and_vanished_again_is_still_committed(broken: Broken, store: MemoryStore) -> None:
    """A commit is reported only where the outcome is on record."""

    def retake() -> None:
        grant(store, "other")

    bench = broken(
        commit=[meanwhile(lambda: store.forget(KEY)), meanwhile(lambda: store.forget(KEY))],
        restore=[meanwhile(retake)],
    )
    assert bench.deliver() == Returned("done")
    on_record = [record.status for record in store.records()] == [Status.COMPLETED]
    assert ("Committed" in bench.events()) is on_record


def test_a_record_that_vanishes_at_every_look_is_unrecorded(broken: Broken, store: MemoryStore) -> None:
    """The guard does not chase a record indefinitely."""
    bench = broken(commit=repeat(answers(Vanished())), restore=repeat(down()))
    assert bench.deliver() == Returned("done")
    assert bench.events() == ["Claimed", "Unrecorded"]


def zombie(bench: Bench, store: MemoryStore, clock: FakeClock, ending: Any) -> Any:
    """Let a body outlive its claim while another delivery runs and finishes, then end; return its verdict."""

    def body(run: RunContext) -> Any:
        clock.advance(31)
        assert bench.deliver("two", "first on record") == Returned("first on record")
        if isinstance(ending, BaseException):
            raise ending
        return ending

    return bench.deliver("zombie", body)


def test_a_zombies_late_success_changes_nothing(bench: Bench, store: MemoryStore, clock: FakeClock) -> None:
    """The first committed result stays, and the zombie returns it."""
    assert zombie(bench, store, clock, "late") == Replayed("first on record")
    assert store.get(KEY).data == '"first on record"'
    assert bench.deliver("three") == Replayed("first on record")
    assert bench.ran == ["zombie", "two"]


def test_a_zombies_late_failure_changes_nothing(bench: Bench, store: MemoryStore, clock: FakeClock) -> None:
    """The zombie's error is its own, and the key keeps its result; the end of its claim is told once, as a loss."""
    with pytest.raises(KeyError):
        zombie(bench, store, clock, KeyError("late"))
    assert store.get(KEY).data == '"first on record"'
    assert bench.deliver("three") == Replayed("first on record")
    assert bench.the(events.Released).reason.startswith("KeyError, then Lost")


def test_a_zombies_late_failure_leaves_a_running_claim_alone(
    bench: Bench, store: MemoryStore, clock: FakeClock
) -> None:
    """A release with a lost token frees nothing."""

    def body(run: RunContext) -> None:
        clock.advance(31)
        grant(store, "two")
        raise KeyError("late")

    with pytest.raises(KeyError):
        bench.deliver("zombie", body)
    assert isinstance(bench.deliver("three"), Busy)
