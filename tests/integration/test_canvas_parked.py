"""Error callbacks of a parked step, what Celery says of the steps after it, and a chord that is published again."""

import pytest
from celery import chain, chord

from idempotent_tasks import UnresolvedError
from tests.integration.conftest import MakeRig
from tests.integration.test_unresolved import PARKING, run, state_of, wait_until_succeeded
from tests.support.canvases import Canvases
from tests.support.rig import Rig

TASKS = {"fail": {**PARKING, "autoretry_for": []}, "charge": {"idempotency": {"key": "order"}}}

pytestmark = pytest.mark.parametrize("broker", ["redis"], indirect=True)


def leave_no_outcome(rig: Rig) -> str:
    """Have a run of a key fail, and return the key."""
    published = rig.send("fail", "ord-1", 1)
    with pytest.raises(Exception, match="try 0"):
        rig.result(published)
    key: str = rig.journal.wait_for("Released", id=published.id)["key"]
    return key


def test_a_chain_goes_on_after_the_decision(make_guarded: MakeRig) -> None:
    """Its error callback has run by then, once, and does not run again."""
    rig = make_guarded(tasks=TASKS)
    make = Canvases(rig)
    rig.start_worker()
    key = leave_no_outcome(rig)
    follow = rig.app.tasks["follow"]
    step = rig.app.tasks["fail"].s("ord-1", 1).on_error(make.guarded("errback"))
    last = chain(step, follow.s("next")).apply_async()
    with pytest.raises(UnresolvedError):
        rig.result(last.parent)
    rig.journal.wait_for("effect", key="errback")
    make.wait_until_idle()
    # Celery says of the steps of a failed chain that they have failed too.
    assert state_of(rig, last) == "FAILURE"
    assert rig.journal.count("started", key="next") == 0
    run(rig, "resolve", key, "--done", "17", "--yes")
    for each in (last.parent, last):
        wait_until_succeeded(rig, each)
    assert rig.app.AsyncResult(last.id).result == 17
    make.wait_until_idle()
    assert rig.journal.count("effect", key="errback") == 1


def test_a_failed_chord_that_is_published_again(make_guarded: MakeRig) -> None:
    """After the decision its members replay, and its body runs."""
    rig = make_guarded(tasks=TASKS)
    rig.start_worker()
    key = leave_no_outcome(rig)
    tasks = rig.app.tasks
    header = [tasks["fail"].s("ord-1", 1), tasks["charge"].s("ord-2", 18)]
    with pytest.raises(UnresolvedError):
        rig.result(chord(header)(tasks["follow"].s("body")))
    run(rig, "resolve", key, "--done", "17", "--yes")
    assert rig.result(chord(header)(tasks["follow"].s("body"))) == [17, 18]
    assert rig.journal.count("effect", task="charge") == 1
