"""Chords whose parts are counted by a number, in Celery's DynamoDB result backend: where a second count does harm."""

from collections.abc import Callable
from urllib.parse import urlsplit

import pytest
from celery import chord

from tests.integration.conftest import MakeRig
from tests.support.canvases import PATIENT_SECONDS, RESULT, Canvases

MakeCounted = Callable[[], Canvases]
pytestmark = pytest.mark.parametrize("broker", ["redis"], indirect=True)


@pytest.fixture
def make_counted(make_guarded: MakeRig, ministack: str, prefix: str) -> MakeCounted:
    """Make a rig whose results are in DynamoDB."""

    def make() -> Canvases:
        backend = f"dynamodb://{urlsplit(ministack).netloc}/{prefix}"
        rig = make_guarded(settings={"result_backend": backend, "result_chord_join_timeout": 1.0})
        # Here, because the worker's processes would all create the table.
        assert rig.app.backend.client is not None
        return Canvases(rig)

    return make


@pytest.mark.parametrize("window", ["Committed", "before-ack"])
def test_killed_before_the_count_or_after_its_note(make_counted: MakeCounted, window: str) -> None:
    """Each part is counted once: by its replay where it was not counted before, and not again where it was."""
    make = make_counted()
    journal = make.rig.journal
    journal.shut(window)
    first = make.rig.start_worker(visibility_seconds=PATIENT_SECONDS)
    body = make.plain("body", link_error=[make.guarded("errback")])
    published = chord([make.charge("one"), make.charge("two")], body).apply_async()
    journal.wait_for("at-gate", gate=window, times=2)
    first.kill()
    journal.open(window)
    make.rig.start_worker()
    make.wait_until_idle()
    assert make.effects("body") == [[RESULT, RESULT]]
    assert make.effects("errback") == []
    assert make.state(published.id) == "SUCCESS"


def test_killed_between_the_last_count_and_its_note(make_counted: MakeCounted) -> None:
    """The body runs once on all results, but a part that comes again calls the body's errbacks and marks it failed."""
    make = make_counted()
    journal = make.rig.journal
    journal.shut("before-note")
    journal.shut("follow-body")
    first = make.rig.start_worker(1, visibility_seconds=PATIENT_SECONDS)
    body = make.guarded("body", link_error=[make.guarded("errback")])
    published = chord([make.charge("one")], body).apply_async()
    journal.wait_for("at-gate", gate="before-note")
    first.kill()
    journal.open("before-note")
    make.rig.start_worker()
    journal.wait_for("effect", key="errback")
    journal.wait_for("at-gate", gate="follow-body")
    assert make.state(published.id) == "FAILURE"
    journal.open("follow-body")
    make.wait_until_idle()
    assert make.effects("body") == [[RESULT]]
    assert make.effects("errback") == [published.id]
    assert make.state(published.id) == "SUCCESS"


def test_killed_between_an_earlier_count_and_its_note(make_counted: MakeCounted) -> None:
    """Counted again while another part runs, the chord seems complete: it fails, and its body never runs."""
    make = make_counted()
    journal = make.rig.journal
    journal.shut("before-note")
    journal.shut("add-8-9")
    first = make.rig.start_worker(visibility_seconds=PATIENT_SECONDS)
    other = make.rig.app.tasks["add"].s(8, 9)
    published = chord([make.charge("one"), other], make.guarded("body")).apply_async()
    journal.wait_for("at-gate", gate="before-note")
    journal.wait_for("at-gate", gate="add-8-9")
    first.kill()
    journal.open("before-note")
    make.rig.start_worker()
    journal.wait_for("Dispatched")
    assert make.state(published.id) == "FAILURE"
    journal.open("add-8-9")
    make.wait_until_idle()
    assert make.effects("body") == []
    assert journal.count("Committed") == 2
