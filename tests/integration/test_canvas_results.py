"""Results and their family under redelivery: what a backend knows of a finished task stays as it was."""

from typing import Any

import pytest
from celery import chain

from tests.integration.conftest import MakeRig
from tests.support.canvases import PATIENT_SECONDS, RESULT, Canvases


def family(make: Canvases, task_id: str) -> dict[str, Any]:
    """Return all that the result backend has of a task."""
    meta = make.rig.app.backend.get_task_meta(task_id, cache=False)
    return {name: meta.get(name) for name in ("status", "result", "children", "parent_id", "date_done")}


@pytest.mark.parametrize("broker", ["redis"], indirect=True)
@pytest.mark.parametrize("backend", ["redis", "database"])
def test_redelivery_changes_no_result(make_guarded: MakeRig, request: pytest.FixtureRequest, backend: str) -> None:
    """A redelivered, replayed task stays SUCCESS, never STARTED again, and keeps its result, children and parent."""
    url = {"result_backend": request.getfixturevalue("database_url")} if backend == "database" else {}
    rig = make_guarded(settings={**url, "task_track_started": True})
    make = Canvases(rig)
    rig.journal.shut("before-ack")
    first = rig.start_worker(1, visibility_seconds=PATIENT_SECONDS)
    published = chain(make.charge("one", link=[make.guarded("link")]), make.guarded("step")).apply_async()
    rig.journal.wait_for("at-gate", gate="before-ack")
    before = family(make, published.parent.id)
    assert (before["status"], before["result"], len(before["children"] or "??")) == ("SUCCESS", RESULT, 2)
    first.kill()
    rig.journal.shut("Replayed")
    rig.journal.open("before-ack")
    rig.start_worker()
    rig.journal.wait_for("at-gate", gate="Replayed")
    # The tracer has stored STARTED by now, or tried to.
    assert family(make, published.parent.id) == before
    rig.journal.open("Replayed")
    make.wait_until_idle()
    assert family(make, published.parent.id) == before
    assert rig.app.AsyncResult(published.parent.id).get(timeout=1) == RESULT
    assert make.effects("step") == make.effects("link") == [RESULT]
