"""The checker: where the preconditions of its invariants end, on histories that are written by hand."""

import json
from collections import Counter
from typing import Any

import pytest

from simulation.calls import Call
from simulation.checker import check
from simulation.history import Entry, History
from simulation.scheduler import START

KEY = "leased#order-1"
#: What a process may ask to know the time, a claim, and the same claim once more.
TIME_REQUESTS, CLAIM_AND_AGAIN = 2, 2


@pytest.mark.parametrize(("called_at", "found"), [(1.01, []), (9.0, ["4 requests instead of 3"])])
def test_a_claim_that_meets_a_release_by_a_clock_that_is_ahead_may_be_sent_again(
    called_at: float, found: list[str]
) -> None:
    """Also where the release is no event of its own, and was over before: two clocks differ by a second or so."""
    history = meeting_a_release(called_at)
    assert violations(history, "budget") == found


def test_each_claim_is_sent_again_once_for_each_release() -> None:
    """Or a claim that is refused for ever would cost nothing."""
    history = meeting_a_release(1.01)
    history.requests["machine-0/1"] += 1
    assert violations(history, "budget") == ["5 requests instead of 4"]


def test_a_release_that_another_claim_has_ended_is_not_met() -> None:
    """The next claim is refused because it is busy, and that is no reason to send it again."""
    history = meeting_a_release(1.01)
    taken = Entry(1.005, "written", {"key": KEY, "item": item(11.0, owner="B"), "by": "machine-1/1"})
    history.entries.insert(1, taken)
    assert violations(history, "budget") == ["4 requests instead of 3"]


@pytest.mark.parametrize(
    ("failed", "error", "found"),
    [
        ("task-0-end", "ChordError", []),
        ("task-0-end", "ValueError", ["task-0 has no result"]),
        ("task-0-chain", "ChordError", ["task-0 has no result"]),
    ],
)
def test_celery_reports_a_group_that_cannot_go_on_as_the_failure_of_its_chains_last_task(
    failed: str, error: str, found: list[str]
) -> None:
    """The broker refused the message of a chain that began with the task that the group had replaced."""
    history = replaced_in_a_chain()
    history.results[f"celery-task-meta-{failed}"] = json.dumps({"status": "FAILURE", "result": {"exc_type": error}})
    assert violations(history, "nothing lost") == found


def test_a_task_that_was_not_replaced_has_a_result_of_its_own() -> None:
    """Whatever becomes of its chain."""
    history = replaced_in_a_chain()
    history.results["celery-task-meta-task-0-end"] = '{"status": "FAILURE", "result": {"exc_type": "ChordError"}}'
    history.entries = history.of("published")
    assert violations(history, "nothing lost") == ["task-0 has no result"]


@pytest.mark.parametrize(
    ("claims", "found"),
    [
        ([("A", 0.0), ("A", 0.0)], True),
        ([("A", 0.0), ("A", 9.0)], True),
        ([("A", 0.0), ("B", 5.0), ("A", 0.0)], True),
        ([("A", 0.0), ("B", 5.0), ("A", 9.0)], False),
        ([("A", 0.0), ("B", 5.0), ("A", 9.0), ("A", 9.0)], True),
    ],
    ids=["a copy", "again", "a late copy", "again after a takeover", "twice after a takeover"],
)
def test_a_request_counts_again_only_after_a_takeover_of_its_claim(
    claims: list[tuple[str, float]], found: bool
) -> None:
    """Its owner had no answer and claims anew; to the one that took the key over, a run may have begun."""
    assert bool(violations(claimed_in_turn(claims), "counted once")) is found


def violations(history: History, invariant: str) -> list[str]:
    """Return what a history violates of an invariant."""
    return [each.what for each in check(history) if each.invariant == invariant]


def item(until: float, *, owner: str | None = None) -> dict[str, Any]:
    """Return the item of a claim, or of a release at that time by the clock of its process."""
    more = {} if owner is None else {"owner": {"S": owner}}
    return {
        "status": {"S": "INPROGRESS"},
        "in_progress_expiration": {"N": str(int((START + until) * 1000))},
        "expiration": {"N": str(int(START) + 100_000)},
        "fence": {"N": "1"},
        **more,
    }


def meeting_a_release(called_at: float) -> History:
    """Return a history of a claim, sent twice, of a key that a process whose clock is ahead had released before."""
    released = Entry(1.0, "written", {"key": KEY, "item": item(1.05), "by": "machine-1/1"})
    about = {"task": "leased", "task_id": "task-0", "key": KEY, "fence": 2, "attempt": 1, "process": "machine-0/1"}
    return History(
        0,
        "leased",
        [released, Entry(called_at + 0.05, "Claimed", about)],
        [Call("claim", KEY, "A", START + called_at, ended_at=START + called_at + 0.05)],
        requests=Counter({"machine-0/1": TIME_REQUESTS + CLAIM_AND_AGAIN}),
        ended=True,
    )


def replaced_in_a_chain() -> History:
    """Return a history of a task, the first one of a chain, whose body has replaced it."""
    published = {"id": "task-0", "followers": ("task-0-chain", "task-0-end"), "ignored": False}
    entries = [Entry(0.0, "published", published), Entry(1.0, "replaced", {"id": "task-0"})]
    return History(0, "leased", entries, results={"celery-task-meta-task-0": '{"status": "RETRY"}'}, ended=True)


def claimed_in_turn(claims: list[tuple[str, float]]) -> History:
    """Return a history of claims of one key, by owner and by when each was requested, that were all granted."""
    entries = []
    for place, (owner, requested_at) in enumerate(claims):
        times = {"claimed_at": {"N": str(int((START + requested_at) * 1000))}, "fence": {"N": str(place + 1)}}
        claimed = {**item(100.0, owner=owner), **times}
        entries.append(Entry(10.0 + place, "written", {"key": KEY, "item": claimed, "by": f"machine-0/{owner}"}))
    calls = [Call("claim", KEY, owner, START + requested_at) for owner, requested_at in claims]
    return History(0, "leased", entries, calls=calls, counts={"doubled": 1}, ended=True)
