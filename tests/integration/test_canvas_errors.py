"""Error callbacks under redelivery: a failure is no outcome, so the body runs again, and fails again."""

import pytest

from tests.integration.conftest import MakeRig
from tests.support.canvases import PATIENT_SECONDS, Canvases


@pytest.mark.parametrize("broker", ["redis"], indirect=True)
def test_worker_killed_after_a_failure_before_its_ack(make_guarded: MakeRig) -> None:
    """Each failing delivery sends the error callbacks, under the same ids: once if guarded, else twice."""
    rig = make_guarded(tasks={"fail": {"autoretry_for": []}})
    make = Canvases(rig)
    rig.journal.shut("before-ack")
    first = rig.start_worker(1, visibility_seconds=PATIENT_SECONDS)
    errbacks = [make.guarded("errback"), make.plain("plain-errback")]
    published = rig.send("fail", "ord-1", 1, link_error=errbacks)
    rig.journal.wait_for("at-gate", gate="before-ack")
    first.kill()
    rig.journal.open("before-ack")
    rig.start_worker()
    rig.journal.wait_for("over", id=published.id, state="FAILURE", times=2)
    make.wait_until_idle()
    assert make.effects("errback") == [published.id]
    assert make.effects("plain-errback") == [published.id] * 2
    assert len(make.ids("plain-errback")) == 1
