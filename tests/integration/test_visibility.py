"""Bodies, waits and backlogs that outlive the broker's visibility timeout.

Redis and SQS hide a message for that long from its delivery on, whatever the worker does with it, and no transport of
kombu renews it (``kombu.transport.redis.QoS.restore_visible``; ``VisibilityTimeout`` of an SQS queue).
"""

from collections import Counter
from datetime import UTC, datetime, timedelta

import pytest

from idempotent_tasks.messaging.deferral import SHORTEST_COUNTDOWN
from tests.integration.conftest import MakeRig
from tests.testbed.brokers import Broker, messages_held
from tests.testbed.journal import Journal
from tests.testbed.waiting import wait_for

#: Long claims, so that no claim expires while its body stands at a gate.
BY_ORDER = {"time_limit": 120, "idempotency": {"key": "order"}}
VISIBILITY_SECONDS = 3
#: Deferrals for which a body runs, for 4 timeouts at least.  The first countdown is 1 s to 1.25 s; on Redis all later
#: ones are cut to half the visibility timeout; on SQS, whose queue itself holds the copy, each is twice the one before.
GENERATIONS = {"redis": 8, "sqs": 5}

on_visibility_timeouts = pytest.mark.parametrize("broker", ["redis", "sqs"], indirect=True)


def deferred_by_generation(journal: Journal, task_id: str) -> Counter[int]:
    """Return how often a task was published again, by how often the copy at hand had been deferred before."""
    generations: Counter[int] = Counter()
    at_hand: dict[int, int] = {}
    for entry in journal.entries(id=task_id):
        # One process of the pool has one delivery at a time.
        if entry["event"] == "begun":
            at_hand[entry["pid"]] = entry["deferrals"]
        elif entry["event"] == "Deferred":
            generations[at_hand[entry["pid"]]] += 1
    return generations


def repeated_generations(journal: Journal, task_id: str) -> set[int]:
    """Return the generations of copies of which a worker received more than were published."""
    received = Counter(each["deferrals"] for each in journal.entries("received", id=task_id))
    published = deferred_by_generation(journal, task_id)
    return {each for each, times in received.items() if each > 0 and times > max(published[each - 1], 1)}


@on_visibility_timeouts
def test_body_of_four_visibility_timeouts_has_one_effect(make_guarded: MakeRig, broker: Broker) -> None:
    """A body of four visibility timeouts, on two workers: one effect, one copy waiting at a time, none left over."""
    rig = make_guarded(visibility_seconds=VISIBILITY_SECONDS, tasks={"charge": BY_ORDER})
    rig.journal.shut("before-effect")
    for _ in range(2):
        rig.start_worker()
    published = rig.send("charge", "ord-1", 17)
    rig.journal.wait_for("Deferred", 40.0, times=GENERATIONS[broker.name], id=published.id)
    rig.journal.open("before-effect")
    assert rig.result(published) == 17
    assert rig.journal.count("started") == rig.journal.count("effect") == 1
    rig.journal.wait_for("Replayed", 40.0, id=published.id)
    wait_for(lambda: messages_held(rig.app) == 0, 20.0, "a copy of the message was left over")
    # One copy after the other; one that the broker repeats while it is being deferred costs one more, for a round.
    deferrals = rig.journal.entries("Deferred", id=published.id)
    seconds = deferrals[-1]["at"] - rig.journal.wait_for("started")["at"]
    assert len(deferrals) <= seconds / SHORTEST_COUNTDOWN
    assert max(deferred_by_generation(rig.journal, published.id).values()) <= 2


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
    wait_for(lambda: messages_held(rig.app) == 0, 20.0, "a copy of the message was left over")
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
    wait_for(lambda: messages_held(rig.app) == 0, 20.0, "a copy of the message was left over")


@on_visibility_timeouts
def test_copies_in_a_saturated_worker_do_not_multiply(make_guarded: MakeRig) -> None:
    """A deferred copy waits for a slot beyond the visibility timeout and is delivered again: still one copy a round."""
    rig = make_guarded(
        visibility_seconds=VISIBILITY_SECONDS,
        tasks={"charge": BY_ORDER},
        # Celery's default: the worker takes more messages than it has slots for.
        settings={"worker_prefetch_multiplier": 4},
    )
    rig.journal.shut("before-effect")
    rig.start_worker(2)
    original = rig.send("charge", "ord-1", 17)
    rig.journal.wait_for("Deferred", id=original.id)
    seen: set[int] = set()
    for number in (1, 2):
        # This body takes the slot in which the copy is deferred, whenever it comes.
        gate = f"add-{number}-{number}"
        rig.journal.shut(gate)
        rig.send("add", number, number)
        rig.journal.wait_for("at-gate", gate=gate)
        repeated = wait_for(lambda: repeated_generations(rig.journal, original.id) - seen, 30.0, "no copy came twice")
        seen.update(repeated)
        rig.journal.open(gate)
        for generation in repeated:
            received = rig.journal.count("received", id=original.id, deferrals=generation)
            rig.journal.wait_for("begun", times=received, id=original.id, deferrals=generation)
    rig.journal.open("before-effect")
    assert rig.result(original) == 17
    wait_for(lambda: messages_held(rig.app) == 0, 30.0, "a copy of the message was left over")
    assert rig.journal.count("effect", id=original.id) == 1
    # There was one slot for all copies, so none was deferred at the very moment when another was.
    assert max(deferred_by_generation(rig.journal, original.id).values()) == 1
