"""Bodies, waits and backlogs that outlive the broker's visibility timeout.

Redis and SQS hide a message for that long from its delivery on, whatever the worker does with it, and no transport of
kombu renews it (``kombu.transport.redis.QoS.restore_visible``; ``VisibilityTimeout`` of an SQS queue).
"""

from datetime import UTC, datetime, timedelta

import pytest

from tests.integration.conftest import MakeRig
from tests.support.backlog import backlog
from tests.support.waiting import wait_for

#: Long claims, so that no claim expires while its body stands at a gate.
BY_ORDER = {"time_limit": 120, "idempotency": {"key": "order"}}
VISIBILITY_SECONDS = 3
#: The first countdown is 1 s to 1.25 s, and all later ones are cut to half the visibility timeout: 4 timeouts.
GENERATIONS = 8

on_visibility_timeouts = pytest.mark.parametrize("broker", ["redis", "sqs"], indirect=True)


@on_visibility_timeouts
def test_body_of_four_visibility_timeouts_has_one_effect(make_guarded: MakeRig) -> None:
    """A body of four visibility timeouts, on two workers: one effect, its result, and nothing left over."""
    rig = make_guarded(visibility_seconds=VISIBILITY_SECONDS, tasks={"charge": BY_ORDER})
    rig.journal.shut("before-effect")
    for _ in range(2):
        rig.start_worker()
    published = rig.send("charge", "ord-1", 17)
    rig.journal.wait_for("Deferred", 40.0, times=GENERATIONS, id=published.id)
    rig.journal.open("before-effect")
    assert rig.result(published) == 17
    assert rig.journal.count("started") == rig.journal.count("effect") == 1
    rig.journal.wait_for("Replayed", id=published.id)
    wait_for(lambda: backlog(rig.app) == 0, 20.0, "a copy of the message was left over")


@on_visibility_timeouts
def test_eta_beyond_the_visibility_timeout_has_one_effect(make_guarded: MakeRig) -> None:
    """An ETA of two visibility timeouts, which makes a broker deliver again and again: one effect, not too early."""
    rig = make_guarded(visibility_seconds=VISIBILITY_SECONDS, tasks={"charge": BY_ORDER})
    for _ in range(2):
        rig.start_worker()
    rig.journal.shut("before-effect")
    eta = datetime.now(UTC) + timedelta(seconds=2 * VISIBILITY_SECONDS + 1)
    published = rig.send("charge", "ord-1", 17, eta=eta)
    # Every delivery waits in its worker for the same moment.
    rig.journal.wait_for("begun", times=2, id=published.id)
    rig.journal.wait_for("over", id=published.id, state="IGNORED")
    rig.journal.open("before-effect")
    assert rig.result(published) == 17
    assert rig.journal.wait_for("started")["at"] >= eta.timestamp()
    wait_for(lambda: backlog(rig.app) == 0, 20.0, "a copy of the message was left over")
    received = rig.journal.count("received", id=published.id)
    rig.journal.wait_for("over", times=received, id=published.id)
    assert rig.journal.count("started") == rig.journal.count("effect") == 1


@pytest.mark.parametrize("broker", ["sqs"], indirect=True)
def test_long_poll_of_a_dead_worker_loses_nothing(make_guarded: MakeRig) -> None:
    """A worker dies after its commit, while it polls: the redelivery replays, unmarked, whatever its receive count.

    SQS may hand a message to the open poll of a dead worker; then it is hidden for one visibility timeout more.
    """
    rig = make_guarded(
        visibility_seconds=VISIBILITY_SECONDS,
        transport={"wait_time_seconds": 2 * VISIBILITY_SECONDS},
        tasks={"charge": BY_ORDER},
    )
    rig.journal.shut("Committed")
    first = rig.start_worker()
    published = rig.send("charge", "ord-1", 17)
    rig.journal.wait_for("at-gate", gate="Committed")
    first.kill()
    rig.journal.open("Committed")
    rig.start_worker()
    assert rig.result(published) == 17
    received = rig.journal.entries("received", id=published.id)[-1]
    assert int(received["receive_count"]) >= 2
    assert not received["redelivered"]
    assert rig.journal.count("Replayed", id=published.id) == 1
    assert rig.journal.count("effect") == 1
    wait_for(lambda: backlog(rig.app) == 0, 20.0, "a copy of the message was left over")
