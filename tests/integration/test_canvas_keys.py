"""Workflows that share a key, and bodies that send a message of their own in the place of a result."""

import pytest
from celery import chain, chord, group

from tests.integration.conftest import MakeRig
from tests.support.canvases import PATIENT_SECONDS, RESULT, Canvases

pytestmark = pytest.mark.parametrize("broker", ["redis"], indirect=True)


def deferred(make: Canvases) -> set[str]:
    """Return the ids of the tasks that were deferred."""
    return {entry["id"] for entry in make.rig.journal.entries("Deferred")}


def test_chain_goes_on_after_a_replayed_step(make_guarded: MakeRig) -> None:
    """Two chains share their first step's key: it runs once, and each chain's own second step runs on its result."""
    rig = make_guarded()
    make = Canvases(rig)
    rig.start_worker()
    for step in ("step-1", "step-2"):
        assert rig.result(chain(make.charge("one", idempotency_key="one"), make.guarded(step)).apply_async()) == RESULT
        assert make.effects(step) == [RESULT]
    assert rig.journal.count("effect", task="charge") == 1
    assert rig.journal.count("Replayed") == 1


def test_workflows_that_share_a_key_all_go_on(make_guarded: MakeRig) -> None:
    """Publishes of one key that waited for a run, which was killed: one effect, and each one's own continuation."""
    rig = make_guarded()
    make = Canvases(rig)
    rig.journal.shut("before-effect")
    first = rig.start_worker(1, visibility_seconds=PATIENT_SECONDS)
    one = make.charge("ord-1", idempotency_key="ord-1")
    results = [chain(one.clone(), make.plain("step")).apply_async()]
    rig.journal.wait_for("at-gate", gate="before-effect")
    rig.start_worker(1)
    header = [one.clone().set(link=[make.plain("link")]), one.clone()]
    results.append(chain(chord(header, make.plain("body")), make.plain("end")).apply_async())
    results.append(group(one.clone(), one.clone()).apply_async())
    rig.journal.wait_until(lambda: len(deferred(make) - {results[0].parent.id}) == 4, 20, "not all copies are deferred")
    first.kill()
    rig.journal.open("before-effect")
    assert [rig.result(each) for each in results] == [RESULT, [RESULT, RESULT], [RESULT, RESULT]]
    make.wait_until_idle()
    assert rig.journal.count("effect", task="charge") == 1
    assert make.effects("step") == make.effects("link") == [RESULT]
    assert make.effects("body") == make.effects("end") == [[RESULT, RESULT]]


def test_worker_killed_after_a_body_sent_what_takes_its_place(make_guarded: MakeRig) -> None:
    """A retry and a replacement have the task's own id: sent again, they have one effect, and all goes on once."""
    rig = make_guarded()
    make = Canvases(rig)
    rig.journal.shut("before-ack")
    first = rig.start_worker(3, visibility_seconds=PATIENT_SECONDS)
    tasks = rig.app.tasks
    results = [
        chain(tasks["swap"].s("by-other", "charge"), make.guarded("after-other")).apply_async(),
        chain(tasks["swap"].s("by-itself", "swap"), make.guarded("after-itself")).apply_async(),
        chord([tasks["retry"].s("retried", 1)], make.plain("body")).apply_async(),
    ]
    rig.journal.wait_for("at-gate", gate="before-ack", times=3)
    first.kill()
    rig.journal.open("before-ack")
    rig.start_worker()
    assert [rig.result(each) for each in results] == [None, None, [2]]
    make.wait_until_idle()
    for order in ("by-other", "by-itself", "retried"):
        assert rig.journal.count("effect", key=order) == 1
    assert make.effects("after-other") == make.effects("after-itself") == [None]
    assert make.effects("body") == [[2]]
