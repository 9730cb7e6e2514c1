"""Every kind of continuation, its first tasks' worker killed in each window between receipt and acknowledgement."""

from typing import Any

import pytest
from celery import chain, chord, group

from tests.integration.conftest import MakeRig
from tests.support.canvases import PATIENT_SECONDS, RESULT, Canvases

#: The gate at which a delivery is held, in the order in which it comes to them.
WINDOWS = ["before-claim", "before-effect", "Committed", "before-note", "before-ack"]
#: After the dispatch, before it is noted: nobody can know that what follows was sent.
UNKNOWN = "before-note"

GUARDED = ["link", "group-in-link", "chain-in-link", "step", "last", "upgraded", "upgraded-body", "part", "body", "end"]
PLAIN = ["plain-link", "plain-group-in-link", "plain-chain-in-link", "plain-upgraded"]
#: What two parts give to the body of their chord, and that passes on.
BOTH = {"upgraded-body": [[RESULT, RESULT]], "body": [[RESULT, RESULT]], "end": [[RESULT, RESULT]]}
#: Of the next step but one: the guarded step between sends it once.
BEHIND_GUARDED = "plain-behind-guarded"
#: Of a chord whose parts are counted by a set: sent once, however often the parts are counted.
PLAIN_BODY = "plain-body"


def publish(make: Canvases) -> list[Any]:
    """Publish one workflow of each kind, with six guarded first tasks, and return the results of their last tasks."""
    links = [
        make.guarded("link"),
        make.plain("plain-link"),
        group(make.guarded("group-in-link"), make.plain("plain-group-in-link")),
        chain(make.plain("plain-chain-in-link"), make.guarded("chain-in-link")),
    ]
    header = [chain(make.charge("member-0"), make.guarded("part")), make.charge("member-1")]
    return [
        make.charge("linked", link=links).apply_async(),
        chain(
            make.charge("chained"), make.guarded("step"), make.plain(BEHIND_GUARDED), make.guarded("last")
        ).apply_async(),
        # Celery makes a chord of a group that something follows.
        chain(
            make.charge("grouped"),
            group(make.guarded("upgraded"), make.plain("plain-upgraded")),
            make.guarded("upgraded-body"),
        ).apply_async(),
        chain(chord(header, make.guarded("body")), make.guarded("end")).apply_async(),
        chord([make.charge("plain-member")], make.plain(PLAIN_BODY)).apply_async(),
    ]


@pytest.mark.parametrize("broker", ["redis"], indirect=True)
@pytest.mark.parametrize("window", WINDOWS)
def test_worker_killed(make_guarded: MakeRig, window: str) -> None:
    """All that follows runs on the stored result; once, but for plain tasks in one window: twice under one id."""
    make = Canvases(make_guarded())
    journal = make.rig.journal
    journal.shut(window)
    # Before there is a worker, so that the six at the gate are the six first tasks and none that follows one of them.
    results = publish(make)
    first = make.rig.start_worker(6, visibility_seconds=PATIENT_SECONDS)
    journal.wait_for("at-gate", gate=window, times=6)
    make.wait_until_acknowledged("follow_plain")
    first.kill()
    journal.open(window)
    make.rig.start_worker()
    check(make, results, times_plain=2 if window == UNKNOWN else 1)


@pytest.mark.parametrize("broker", ["redis"], indirect=True)
def test_children_killed(make_guarded: MakeRig) -> None:
    """The same where only the processes of the pool die, and the worker gives their messages back."""
    make = Canvases(make_guarded())
    journal = make.rig.journal
    journal.shut("Committed")
    worker = make.rig.start_worker(6, visibility_seconds=PATIENT_SECONDS)
    results = publish(make)
    journal.wait_for("at-gate", gate="Committed", times=6)
    for entry in journal.entries("at-gate"):
        worker.kill_child(entry["pid"])
    journal.open("Committed")
    check(make, results, times_plain=1)


def check(make: Canvases, results: list[Any], times_plain: int) -> None:
    """Wait for the last tasks, and until nothing is on the way any more; then count."""
    for result in results:
        make.rig.result(result)
    make.wait_until_idle()
    assert make.rig.journal.count("effect", task="charge") == 6
    assert {name: make.effects(name) for name in GUARDED} == {name: [RESULT] for name in GUARDED} | BOTH
    assert {name: make.effects(name) for name in PLAIN} == {name: [RESULT] * times_plain for name in PLAIN}
    assert {len(make.ids(name)) for name in PLAIN} == {1}
    assert make.effects(BEHIND_GUARDED) == [RESULT]
    assert make.effects(PLAIN_BODY) == [[RESULT]]
