"""Chords whose parts are counted by a set, in Celery's Redis result backend: replayed parts are counted once."""

from typing import Any

import celery
import pytest
from celery import Signature, chord

from tests.integration.conftest import MakeRig
from tests.support.canvases import PATIENT_SECONDS, RESULT, Canvases
from tests.support.rig import Rig

#: Claims that end soon after their process: 2 s after the last renewal.
RENEWED = {"add": {"idempotency": {"lease": 2}}}
on_redis = pytest.mark.parametrize("broker", ["redis"], indirect=True)


def add(rig: Rig, *args: int, **options: Any) -> Signature:
    """Return the signature of an addition on the rig's app."""
    return rig.app.tasks["add"].s(*args).set(**options)


def total(rig: Rig) -> Signature:
    """Return the signature of a chord's body on the rig's app."""
    return rig.app.tasks["total"].s()


@on_redis
def test_chord_completes_with_a_replayed_member(make_guarded: MakeRig) -> None:
    """A header member whose key has an outcome already counts as done, and the body gets its stored result."""
    rig = make_guarded()
    rig.start_worker()
    assert rig.result(add(rig, 1, 2, idempotency_key="one").apply_async()) == 3
    header = [add(rig, 1, 2, idempotency_key="one"), add(rig, 3, 4)]
    assert rig.result(chord(header, total(rig)).apply_async()) == 10
    assert rig.journal.count("effect", key=[1, 2]) == 1
    assert rig.journal.count("effect", task="total") == 1


def test_chord_member_killed_after_commit_before_it_was_counted(make_guarded: MakeRig) -> None:
    """A member redelivered after its commit is counted by its replay, and the chord's body runs once."""
    rig = make_guarded(tasks=RENEWED)
    rig.journal.shut("Committed")
    first = rig.start_worker()
    published = chord([add(rig, 1, 2), add(rig, 3, 4)], total(rig)).apply_async()
    rig.journal.wait_for("at-gate", gate="Committed", times=2)
    first.kill()
    rig.journal.open("Committed")
    rig.start_worker()
    assert rig.result(published) == 10
    assert rig.journal.count("Replayed", task="add") >= 2
    assert rig.journal.count("effect", task="add") == 2
    assert rig.journal.count("effect", task="total") == 1


@on_redis
def test_chord_member_killed_after_it_was_counted_before_ack(make_guarded: MakeRig) -> None:
    """A member redelivered after the chord counted it is not counted twice: the body still waits for the other."""
    rig = make_guarded(tasks=RENEWED)
    rig.journal.shut("before-ack")
    rig.journal.shut("add-3-4")
    first = rig.start_worker()
    published = chord([add(rig, 1, 2), add(rig, 3, 4)], total(rig)).apply_async()
    rig.journal.wait_for("at-gate", gate="before-ack")
    rig.journal.wait_for("at-gate", gate="add-3-4")
    first.kill()
    rig.journal.open("before-ack")
    rig.start_worker()
    rig.journal.wait_for("Replayed", task="add")
    rig.journal.open("add-3-4")
    assert rig.result(published) == 10
    assert rig.journal.count("effect", task="total") == 1


@on_redis
@pytest.mark.skipif(celery.VERSION < (5, 7), reason="Celery 5.7 brought the claim of a chord's body")
@pytest.mark.parametrize(
    ("bodies", "settings"),
    [
        ([], {"broker_connection_timeout": 30}),
        ([[RESULT]], {"broker_connection_timeout": 1, "task_publish_retry": False, "result_chord_join_timeout": 1}),
    ],
    ids=["early", "late"],
)
def test_chord_killed_while_it_sends_its_body(
    make_guarded: MakeRig, bodies: list[Any], settings: dict[str, Any]
) -> None:
    """Celery itself claims the sending of a chord's body: a redelivery sends it only after that claim's end."""
    rig = make_guarded(settings=settings)
    make = Canvases(rig)

    def claims() -> Any:
        return rig.app.backend.client.keys(f"{rig.config.result_prefix}*.c")

    rig.journal.shut("before-sending-follow")
    first = rig.start_worker(1, visibility_seconds=PATIENT_SECONDS)
    published = chord([make.charge("one")], make.guarded("body")).apply_async()
    rig.journal.wait_for("at-gate", gate="before-sending-follow")
    first.kill()
    assert claims()
    if bodies:
        rig.journal.wait_until(lambda: not claims(), 20, "the claim does not end")
    rig.journal.open("before-sending-follow")
    rig.start_worker()
    make.wait_until_idle()
    assert claims()
    assert make.effects("body") == bodies
    assert make.state(published.id) == ("SUCCESS" if bodies else "PENDING")
