"""Chains and chords go on after a member that did not run but was replayed."""

from typing import Any

import pytest
from celery import Signature, chain, chord

from tests.integration.conftest import MakeRig
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
def test_chain_goes_on_after_a_replayed_link(make_guarded: MakeRig) -> None:
    """Two chains share their first link's key: it runs once, and each chain's own second link runs on its result."""
    rig = make_guarded()
    rig.start_worker()
    first = chain(add(rig, 1, 2, idempotency_key="one"), add(rig, 10)).apply_async()
    assert rig.result(first) == 13
    second = chain(add(rig, 1, 2, idempotency_key="one"), add(rig, 20)).apply_async()
    assert rig.result(second) == 23
    assert rig.journal.count("effect", key=[1, 2]) == 1
    assert rig.journal.count("Replayed") == 1


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
