"""Tasks that exclude themselves (``expires=0``): ticks of several beats, killed workers, and redeliveries."""

from tests.integration.conftest import MakeRig
from tests.support.rig import Rig
from tests.testbed.brokers import CHILD_LOSS_SECONDS

#: `Idempotency.exclusive()` as a mapping.
EXCLUSIVE = {"key": "'task'", "expires": 0, "on_busy": "skip"}
#: Claims that outlive these tests, unless somebody releases them.
LONG = {"time_limit": 120, "idempotency": EXCLUSIVE}


def test_of_two_ticks_at_once_one_runs(make_guarded: MakeRig) -> None:
    """Two beats fire at the same moment: the tick that comes second is dropped, and a later one runs."""
    rig = make_guarded(tasks={"charge": LONG})
    rig.journal.shut("before-effect")
    rig.start_worker(1)
    rig.start_worker(1)
    ticks = [rig.send("charge", f"tick-{number}") for number in (1, 2)]
    running = rig.journal.wait_for("started")["id"]
    (dropped,) = {tick.id for tick in ticks} - {running}
    rig.journal.wait_for("Skipped", id=dropped)
    rig.journal.open("before-effect")
    rig.journal.wait_for("Committed", id=running)
    assert rig.result(rig.send("charge", "tick-3", 3)) == 3
    assert rig.journal.count("effect") == 2


def test_a_killed_child_frees_key_and_lock(make_guarded: MakeRig) -> None:
    """The message of the tick that died runs at once, not when its claims expire; then the next tick."""
    rig = make_guarded(visibility_seconds=CHILD_LOSS_SECONDS, tasks={"charge": LONG})
    rig.journal.shut("before-effect")
    worker = rig.start_worker()
    first = rig.send("charge", "tick-1", 1)
    worker.kill_child(rig.journal.wait_for("at-gate")["pid"])
    rig.journal.open("before-effect")
    assert rig.result(first) == 1
    assert rig.result(rig.send("charge", "tick-2", 2)) == 2
    assert [each["key"] for each in rig.journal.entries("effect")] == ["tick-1", "tick-2"]


def test_a_killed_workers_lock_is_taken_by_the_next_tick(make_guarded: MakeRig) -> None:
    """Its process has ended, which another worker on the machine sees; so does the dead one's own message."""
    rig = make_guarded(visibility_seconds=60, tasks={"charge": LONG})
    rig.journal.shut("before-effect")
    first = rig.start_worker()
    rig.send("charge", "tick-1", 1)
    rig.journal.wait_for("at-gate")
    first.kill()
    rig.journal.open("before-effect")
    rig.start_worker(visibility_seconds=60)
    # A broker that delivers the first tick again at once may have it run while another one comes.
    rig.journal.wait_until(lambda: _ticks(rig), 20, "no tick ran after its holder was killed")


def test_a_lock_from_elsewhere_is_taken_when_it_expires(make_guarded: MakeRig) -> None:
    """A machine that is lost blocks the ticks for one lease: those are dropped, and the first one after it runs."""
    rig = make_guarded(visibility_seconds=60, tasks={"charge": {"idempotency": {**EXCLUSIVE, "lease": 3}}})
    rig.journal.shut("before-effect")
    first = rig.start_worker(elsewhere_skew_seconds=0)
    rig.send("charge", "tick-1", 1)
    rig.journal.wait_for("at-gate")
    first.kill()
    rig.journal.open("before-effect")
    rig.start_worker(visibility_seconds=60)
    dropped = rig.send("charge", "tick-2", 2)
    rig.journal.wait_for("Skipped", id=dropped.id)
    # As beat does, until one is not dropped.
    rig.journal.wait_until(lambda: _ticks(rig), 20, "no tick ran after the lease")
    assert rig.journal.count("effect") == 1


def test_a_redelivery_after_other_ticks_gets_its_own_outcome(make_guarded: MakeRig) -> None:
    """A worker dies between commit and acknowledgement, another tick runs, then the first one's message comes back."""
    rig = make_guarded(tasks={"charge": LONG})
    rig.journal.shut("Committed")
    first = rig.start_worker()
    published = rig.send("charge", "tick-1", 1)
    rig.journal.wait_for("at-gate", gate="Committed")
    first.kill()
    rig.journal.open("Committed")
    rig.start_worker()
    assert rig.result(rig.send("charge", "tick-2", 2)) == 2
    assert rig.result(published) == 1
    assert rig.journal.count("effect") == 2


def _ticks(rig: Rig) -> bool:
    """Publish a tick, and return whether it ran."""
    tick = rig.send("charge", "next tick", 3)
    rig.journal.wait_until(
        lambda: any(rig.journal.count(event, id=tick.id) for event in ("Skipped", "Committed")), 20, "a tick got lost"
    )
    return rig.journal.count("Committed", id=tick.id) == 1
