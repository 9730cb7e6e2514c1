"""Runs killed before and after their effect, under ``on_rerun="park"`` and ``recover``: no effect twice, none lost."""

from types import SimpleNamespace
from typing import Any

import pytest
from celery import chain, chord
from celery.exceptions import ChordError, TimeLimitExceeded
from celery.result import AsyncResult
from click.testing import CliRunner

from idempotent_tasks import DynamoDBStore, UnresolvedError
from idempotent_tasks.cli import idempotency
from tests.integration.conftest import MakeRig
from tests.support.rig import Rig
from tests.testbed.brokers import CHILD_LOSS_SECONDS

SETTLE = 2
PARKING = {"idempotency": {"key": "order", "lease": 2, "on_rerun": "park"}}
ASKING = {"idempotency": {"key": "order", "lease": 2, "recover": "tests.support.recovery:ask", "settle": SETTLE}}

on_redis = pytest.mark.parametrize("broker", ["redis"], indirect=True)
at_each_side = pytest.mark.parametrize("gate", ["before-effect", "after-effect"])


def kill_at(rig: Rig, gate: str, **options: Any) -> AsyncResult:
    """Kill the pool's process that runs a body, at a gate, and return what was published."""
    rig.journal.shut(gate)
    worker = rig.start_worker()
    published = rig.send("charge", "ord-1", 17, **options)
    worker.kill_child(rig.journal.wait_for("at-gate", gate=gate)["pid"])
    rig.journal.open(gate)
    return published


def run(rig: Rig, *words: str) -> str:
    """Run an admin command, and return what it printed."""
    result = CliRunner().invoke(idempotency, words, obj=SimpleNamespace(app=rig.app))
    assert result.exit_code == 0, result.output
    return result.output


def state_of(rig: Rig, published: AsyncResult) -> str:
    """Return the state of a task that may change after it was ready."""
    return str(rig.app.AsyncResult(published.id).state)


def wait_until_succeeded(rig: Rig, published: AsyncResult) -> None:
    """Return when a task that had failed has succeeded."""
    rig.journal.wait_until(lambda: state_of(rig, published) == "SUCCESS", 20, "nobody runs the message again")


@at_each_side
def test_a_killed_run_is_parked_until_somebody_decides(make_guarded: MakeRig, store: DynamoDBStore, gate: str) -> None:
    """Each delivery ends visibly; after the decision each is a success, its link goes on, and one effect was made."""
    rig = make_guarded(visibility_seconds=CHILD_LOSS_SECONDS, tasks={"charge": PARKING})
    published = kill_at(rig, gate, link=rig.app.tasks["follow"].s("linked"))
    key = rig.journal.wait_for("Parked", id=published.id)["key"]
    rig.journal.wait_until(lambda: state_of(rig, published) == "FAILURE", 20, "the task does not fail")
    with pytest.raises(UnresolvedError, match="idempotency resolve"):
        rig.result(published)
    duplicate = rig.send("charge", "ord-1", 18)
    with pytest.raises(UnresolvedError):
        rig.result(duplicate)
    assert sorted(store.get(key).parked) == sorted([published.id, duplicate.id])
    assert "1 record" in run(rig, "list", "--state", "parked")
    was_made = rig.journal.count("effect", task="charge")
    assert was_made == (gate == "after-effect")
    decision = ("--done", "17") if was_made else ("--run",)
    assert "published 2 messages again" in run(rig, "resolve", key, *decision, "--yes")
    for each in (published, duplicate):
        wait_until_succeeded(rig, each)
    values = {rig.app.AsyncResult(each.id).result for each in (published, duplicate)}
    assert len(values) == 1
    assert values <= {17, 18}
    rig.journal.wait_for("effect", task="follow")
    assert rig.journal.count("effect", task="charge") == 1
    assert store.get(key).parked == {}


@at_each_side
def test_a_killed_run_is_asked_about(make_guarded: MakeRig, gate: str) -> None:
    """The next delivery waits until the dead run's request has arrived or never will, then asks, then runs or not."""
    rig = make_guarded(visibility_seconds=CHILD_LOSS_SECONDS, tasks={"charge": ASKING})
    published = kill_at(rig, gate)
    assert rig.result(published) == 17
    assert rig.journal.count("effect") == 1
    assert rig.journal.count("asked") == 1
    (recovered,) = rig.journal.entries("Recovered")
    assert recovered["done"] is (gate == "after-effect")
    (released, *_) = rig.journal.entries("Released", id=published.id)
    assert rig.journal.entries("asked")[0]["at"] - released["at"] >= SETTLE - 0.1


@on_redis
def test_the_canvas_of_a_parked_task(make_guarded: MakeRig) -> None:
    """After the decision a chain goes on; a chord whose member was parked has failed, and stays failed."""
    rig = make_guarded(visibility_seconds=CHILD_LOSS_SECONDS, tasks={"charge": PARKING})
    charge, follow, total = (rig.app.tasks[name] for name in ("charge", "follow", "total"))
    rig.journal.shut("after-effect")
    worker = rig.start_worker(2)
    chained = chain(charge.s("ord-1", 17), follow.s("chained")).apply_async()
    worker.kill_child(rig.journal.wait_for("at-gate")["pid"])
    joined = chord([charge.s("ord-2", 18), rig.app.tasks["add"].s(1, 2)], total.s()).apply_async()
    worker.kill_child(rig.journal.wait_for("at-gate", times=2)["pid"])
    rig.journal.open("after-effect")
    rig.journal.wait_for("Parked", times=2)
    with pytest.raises(ChordError):
        rig.result(rig.app.AsyncResult(joined.id))
    for parked in rig.journal.entries("Parked"):
        run(rig, "resolve", parked["key"], "--done", "17" if parked["id"] == chained.parent.id else "18", "--yes")
    wait_until_succeeded(rig, chained)
    assert rig.app.AsyncResult(chained.id).result == 17
    wait_until_succeeded(rig, joined.parent.children[0])
    assert rig.app.AsyncResult(joined.parent.children[0].id).result == 18
    assert state_of(rig, joined) == "FAILURE"
    assert rig.journal.count("effect", task="charge") == 2


@on_redis
def test_a_lost_machine_is_asked_about(make_guarded: MakeRig) -> None:
    """Its claim ends with its lease, which has the settling in it."""
    rig = make_guarded(tasks={"charge": ASKING})
    rig.journal.shut("after-effect")
    first = rig.start_worker(elsewhere_skew_seconds=0)
    published = rig.send("charge", "ord-1", 17)
    rig.journal.wait_for("at-gate")
    first.kill()
    rig.journal.open("after-effect")
    rig.start_worker()
    assert rig.result(published) == 17
    assert (rig.journal.count("effect"), rig.journal.count("asked")) == (1, 1)


@on_redis
def test_a_run_that_is_killed_while_it_asks(make_guarded: MakeRig) -> None:
    """Asking is no effect: whoever comes next asks again."""
    rig = make_guarded(visibility_seconds=CHILD_LOSS_SECONDS, tasks={"charge": ASKING})
    rig.journal.shut("after-effect")
    rig.journal.shut("asking")
    worker = rig.start_worker()
    published = rig.send("charge", "ord-1", 17)
    worker.kill_child(rig.journal.wait_for("at-gate", gate="after-effect")["pid"])
    worker.kill_child(rig.journal.wait_for("at-gate", gate="asking")["pid"])
    rig.journal.open("after-effect")
    rig.journal.open("asking")
    assert rig.result(published) == 17
    assert (rig.journal.count("effect"), rig.journal.count("asked")) == (1, 2)


@on_redis
def test_asking_that_takes_longer_than_the_claim_lives(make_guarded: MakeRig) -> None:
    """The claim is renewed meanwhile: a duplicate waits."""
    rig = make_guarded(visibility_seconds=60, tasks={"charge": ASKING})
    published = kill_at(rig, "after-effect")
    rig.journal.shut("asking")
    duplicate = rig.send("charge", "ord-1", 17)
    rig.journal.wait_for("at-gate", gate="asking")
    rig.journal.wait_for("Renewed", times=3)
    rig.journal.open("asking")
    assert rig.result(duplicate) == 17
    assert rig.result(published) == 17
    assert rig.journal.count("effect") == 1


@on_redis
def test_asking_beyond_the_hard_time_limit(make_guarded: MakeRig) -> None:
    """Its process is killed and the task fails, as at any hard limit; the next call asks again: nothing runs twice."""
    limited = {**ASKING, "time_limit": 3}
    rig = make_guarded(visibility_seconds=CHILD_LOSS_SECONDS, tasks={"charge": limited})
    rig.journal.shut("asking")
    published = kill_at(rig, "after-effect")
    with pytest.raises(TimeLimitExceeded):
        rig.result(published)
    rig.journal.open("asking")
    again = rig.send("charge", "ord-1", 17)
    assert rig.result(again) == 17
    assert rig.journal.count("effect") == 1


@on_redis
def test_a_provider_that_is_away(make_guarded: MakeRig) -> None:
    """Four deliveries later a person is asked; no copy of the message has run the body."""
    options = {**ASKING["idempotency"], "recover": "tests.support.recovery:refuse", "settle": 0}
    rig = make_guarded(visibility_seconds=CHILD_LOSS_SECONDS, tasks={"charge": {"idempotency": options}})
    published = kill_at(rig, "before-effect")
    with pytest.raises(UnresolvedError, match="ConnectionError"):
        rig.result(published, 60)
    assert (rig.journal.count("effect"), rig.journal.count("asked")) == (0, 5)
    run(rig, "resolve", rig.journal.wait_for("Parked")["key"], "--run", "--yes")
    wait_until_succeeded(rig, published)
    assert rig.journal.count("effect") == 1
