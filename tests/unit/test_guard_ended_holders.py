"""A key whose holder's process is certain to have ended: it is taken at once, and nobody else's is."""

from itertools import repeat
from typing import Any

import pytest

from idempotent_tasks import CrashLoopError, events
from idempotent_tasks.core.guard import HOLDER_ENDED, Guard, Replayed, Returned
from idempotent_tasks.core.processes import this_process
from idempotent_tasks.core.records import Busy
from idempotent_tasks.testing import FakeClock, MemoryStore
from tests.support.guarding import KEY, Bench, Broken, done, grant
from tests.support.stores import Step, down, lost_answer, meanwhile

#: The names of the processes that this one is certain of the end of.
ENDED: set[str] = set()


@pytest.fixture(autouse=True)
def certainty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have this process be certain of the end of no others."""
    ENDED.clear()
    monkeypatch.setattr(this_process(), "has_ended", ENDED.__contains__)


def knowing(bench: Bench, *processes: str, **policy: Any) -> Guard:
    """Return a guard whose process is certain of the end of these."""
    ENDED.update(processes)
    return bench.guard(**policy)


def test_it_is_taken_over_at_once_and_the_crash_counts(bench: Bench, store: MemoryStore) -> None:
    """The delivery does not wait for the claim to expire."""
    dead = grant(store, "dead", process="p1")
    assert bench.deliver(guard=knowing(bench, "p1")) == Returned("done")
    assert bench.events() == ["Released", "Claimed", "Committed"]
    released = bench.the(events.Released)
    assert (released.reason, released.task_id) == (HOLDER_ENDED, "id-dead")
    claimed = bench.the(events.Claimed)
    assert (claimed.attempt, claimed.fence) == (2, dead.fence + 1)


def test_a_living_holder_is_left_alone(bench: Bench, store: MemoryStore) -> None:
    """Nothing is released where the end of the process is not certain."""
    grant(store, "alive", process="p2")
    assert isinstance(bench.deliver(guard=knowing(bench, "p1")), Busy)
    assert store.get(KEY).held_until > store.clock.now()


def test_a_successor_is_not_robbed(broken: Broken, store: MemoryStore) -> None:
    """Between the look and the release another delivery took the key: the release is for the dead owner only."""

    def another_takes_it() -> None:
        store.release(dead, "HolderEnded", crashed=True)
        grant(store, "alive", process="p2")

    dead = grant(store, "dead", process="p1")
    bench = broken(release=[meanwhile(another_takes_it)])
    verdict = bench.deliver(guard=knowing(bench, "p1"))
    assert isinstance(verdict, Busy)
    assert verdict.holder.owner == "alive"
    assert bench.ran == []


def test_its_last_commit_counts(broken: Broken, store: MemoryStore) -> None:
    """A commit that was on its way when the process ended is the outcome, and is replayed."""
    dead = grant(store, "dead", process="p1")
    bench = broken(release=[meanwhile(lambda: store.commit(dead, done(), 3600))])
    assert bench.deliver(guard=knowing(bench, "p1")) == Replayed("done")


@pytest.mark.parametrize("trouble", [down(), lost_answer()], ids=["down", "answer lost"])
def test_the_release_is_tried_again(broken: Broken, store: MemoryStore, trouble: Step) -> None:
    """One failed call does not make the delivery wait."""
    grant(store, "dead", process="p1")
    bench = broken(release=[trouble])
    assert bench.deliver(guard=knowing(bench, "p1")) == Returned("done")


def test_a_release_that_fails_leaves_the_claim_to_expire(broken: Broken, store: MemoryStore, clock: FakeClock) -> None:
    """The delivery waits like any duplicate, and takes over in the end."""
    grant(store, "dead", process="p1")
    bench = broken(release=repeat(down()))
    assert isinstance(bench.deliver(guard=knowing(bench, "p1")), Busy)
    clock.advance(31)
    assert bench.deliver("two", guard=knowing(bench, "p1")) == Returned("done")


def test_crashes_are_counted_to_the_end(bench: Bench, store: MemoryStore) -> None:
    """A body that ends its process every time is given up, although nobody waits for its claims to expire."""
    for owner in ("one", "two"):
        store.release(grant(store, owner), HOLDER_ENDED, crashed=True)
    grant(store, "three", process="p1")
    with pytest.raises(CrashLoopError, match="3 times in a row"):
        bench.deliver(guard=knowing(bench, "p1", max_crashes=3))


@pytest.mark.parametrize("end", [SystemExit(1), KeyboardInterrupt()], ids=repr)
def test_a_body_that_ends_its_process_frees_its_key_and_counts(bench: Bench, end: BaseException) -> None:
    """A SIGTERM that cuts a body short, as at a hard time limit, is no clean end of it, nor is an exit of its own."""
    guard = bench.guard(max_crashes=2)
    for owner in ("one", "two"):
        with pytest.raises(type(end)) as caught:
            bench.deliver(owner, end, guard=guard)
        assert caught.value is end
    with pytest.raises(CrashLoopError, match="2 times in a row"):
        bench.deliver("three", guard=guard)
    assert bench.ran == ["one", "two"]
    assert bench.events() == ["Claimed", "Released"] * 2 + ["CrashLooped", "Released"]
