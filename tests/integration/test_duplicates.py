"""Deliveries that meet an outcome, or a run, of their key."""

from typing import Any

import pytest

from idempotent_tasks import InProgressError
from tests.integration.conftest import MakeRig

BY_ORDER = {"idempotency": {"key": "order"}}
on_redis = pytest.mark.parametrize("broker", ["redis"], indirect=True)
on_visibility_timeouts = pytest.mark.parametrize("broker", ["redis", "sqs"], indirect=True)


def test_two_publishes_with_one_key_have_one_effect(make_guarded: MakeRig) -> None:
    """The same order published twice at once is charged once, and both publishers get the result."""
    rig = make_guarded(tasks={"charge": BY_ORDER})
    rig.start_worker()
    published = [rig.send("charge", "ord-1", 17), rig.send("charge", "ord-1", 17)]
    assert [rig.result(each) for each in published] == [17, 17]
    assert rig.journal.count("effect") == 1


@on_redis
def test_an_explicit_key_makes_two_publishes_one(make_guarded: MakeRig) -> None:
    """``apply_async(idempotency_key=...)`` decides over the task's own key, across different arguments."""
    rig = make_guarded(tasks={"charge": BY_ORDER})
    rig.start_worker()
    published = [rig.send("charge", order, order, idempotency_key="one") for order in ("ord-1", "ord-2")]
    first, second = (rig.result(each) for each in published)
    assert first == second
    assert rig.journal.count("effect") == 1


@on_visibility_timeouts
def test_redelivery_while_the_body_runs_is_deferred(make_guarded: MakeRig) -> None:
    """The visibility timeout passes under a running body: the second delivery neither runs, nor is it lost."""
    rig = make_guarded(tasks={"charge": BY_ORDER})
    rig.journal.shut("before-effect")
    rig.start_worker()
    published = rig.send("charge", "ord-1", 17)
    rig.journal.wait_for("Deferred", id=published.id, reason="busy")
    rig.journal.open("before-effect")
    assert rig.result(published) == 17
    rig.journal.wait_for("Replayed", id=published.id)
    assert rig.journal.count("effect") == 1
    assert published.state == "SUCCESS"


@on_redis
def test_falsy_results_replay_as_themselves(make_guarded: MakeRig) -> None:
    """Each falsy result comes back from the real backend as itself, when it is new and when it is replayed."""
    values: list[Any] = [None, 0, "", [], {}, False]
    rig = make_guarded(tasks={"charge": BY_ORDER})
    rig.start_worker(1)
    for _ in range(2):
        results = [rig.result(rig.send("charge", repr(value), value)) for value in values]
        assert [(each, type(each)) for each in results] == [(each, type(each)) for each in values]
    assert rig.journal.count("effect") == rig.journal.count("Replayed") == len(values)


@on_redis
def test_on_busy_raise_fails_the_duplicate_only(make_guarded: MakeRig) -> None:
    """Under ``raise`` a duplicate fails with `InProgressError`, and the run that it met is not disturbed."""
    rig = make_guarded(tasks={"charge": {"idempotency": {"key": "order", "on_busy": "raise"}}})
    rig.journal.shut("before-effect")
    rig.start_worker()
    original = rig.send("charge", "ord-1", 17)
    rig.journal.wait_for("at-gate")
    with pytest.raises(InProgressError, match="charge"):
        rig.result(rig.send("charge", "ord-1", 17))
    rig.journal.open("before-effect")
    assert rig.result(original) == 17
    assert rig.journal.count("effect") == 1


@on_redis
def test_on_busy_skip_drops_the_duplicate(make_guarded: MakeRig) -> None:
    """Under ``skip`` a duplicate is acknowledged and leaves no result."""
    rig = make_guarded(tasks={"charge": {"idempotency": {"key": "order", "on_busy": "skip"}}})
    rig.journal.shut("before-effect")
    rig.start_worker()
    original = rig.send("charge", "ord-1", 17)
    rig.journal.wait_for("at-gate")
    duplicate = rig.send("charge", "ord-1", 17)
    rig.journal.wait_for("over", id=duplicate.id, state="IGNORED")
    rig.journal.open("before-effect")
    assert rig.result(original) == 17
    assert duplicate.state == "PENDING"
    assert rig.journal.count("Deferred") == 0
    assert rig.journal.count("effect") == 1


@on_redis
def test_on_busy_wait_returns_the_result_from_its_slot(make_guarded: MakeRig) -> None:
    """Under ``wait`` a duplicate keeps its slot until the run that it met has committed, and replays."""
    rig = make_guarded(tasks={"charge": {"idempotency": {"key": "order", "on_busy": "wait", "wait_timeout": 30}}})
    rig.journal.shut("before-effect")
    rig.start_worker()
    original = rig.send("charge", "ord-1", 17)
    rig.journal.wait_for("at-gate")
    duplicate = rig.send("charge", "ord-1", 17)
    rig.journal.wait_for("begun", id=duplicate.id)
    rig.journal.open("before-effect")
    assert [rig.result(original), rig.result(duplicate)] == [17, 17]
    assert rig.journal.count("Deferred") == 0
    assert rig.journal.count("effect") == 1
