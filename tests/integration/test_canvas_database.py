"""Chords whose results are in a database: Celery polls for them with a task of its own, ``celery.chord_unlock``."""

from collections.abc import Callable
from typing import Any

import pytest
from celery import chord

from tests.integration.conftest import MakeRig
from tests.support.canvases import PATIENT_SECONDS, RESULT, Canvases

pytestmark = pytest.mark.parametrize("broker", ["redis"], indirect=True)
MakeStored = Callable[..., Canvases]
#: What makes a worker's death harmless to the task that polls.
LATE = {"celery.chord_unlock": {"acks_late": True, "reject_on_worker_lost": True}}


@pytest.fixture
def make_stored(make_guarded: MakeRig, database_url: str) -> MakeStored:
    """Make a rig whose results are in a database."""

    def make(**settings: Any) -> Canvases:
        return Canvases(
            make_guarded(settings={"result_backend": database_url, "result_chord_retry_interval": 0.2} | settings)
        )

    return make


@pytest.mark.parametrize("window", ["Committed", "before-note"])
def test_worker_killed(make_stored: MakeStored, window: str) -> None:
    """Nothing is counted, so nothing is counted twice: the body runs once on all results."""
    make = make_stored(task_annotations=LATE)
    journal = make.rig.journal
    journal.shut(window)
    first = make.rig.start_worker(3, visibility_seconds=PATIENT_SECONDS)
    published = chord([make.charge("one"), make.charge("two")], make.plain("body")).apply_async()
    journal.wait_for("at-gate", gate=window, times=2)
    first.kill()
    journal.open(window)
    make.rig.start_worker()
    assert make.rig.result(published) == [RESULT, RESULT]
    make.wait_until_idle()
    assert make.effects("body") == [[RESULT, RESULT]]


@pytest.mark.parametrize(("annotations", "bodies"), [({}, []), (LATE, [[RESULT]])], ids=["default", "late"])
def test_worker_killed_while_it_polls(make_stored: MakeStored, annotations: Any, bodies: list[Any]) -> None:
    """Celery acknowledges its own polling task early: a worker that dies in it takes the chord along, unless told."""
    make = make_stored(task_annotations=annotations)
    journal = make.rig.journal
    journal.shut("before-sending-follow_plain")
    first = make.rig.start_worker(visibility_seconds=PATIENT_SECONDS)
    published = chord([make.charge("one")], make.plain("body")).apply_async()
    journal.wait_for("at-gate", gate="before-sending-follow_plain")
    first.kill()
    journal.open("before-sending-follow_plain")
    make.rig.start_worker()
    make.wait_until_idle()
    assert make.effects("body") == bodies
    assert make.state(published.id) == ("SUCCESS" if bodies else "PENDING")
