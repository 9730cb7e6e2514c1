"""The second checker: which calls of the store some order explains, and that it agrees with the first."""

from dataclasses import replace
from typing import Any

import pytest

from idempotent_tasks.core.records import (
    Busy,
    Claim,
    ClaimRequest,
    Committed,
    Granted,
    KeptSteps,
    Lost,
    Mismatch,
    Parked,
    Record,
    Released,
    Status,
    Step,
    Superseded,
    WritesRefused,
)
from simulation.agreement import judge
from simulation.calls import Call
from simulation.linear import is_linearizable
from simulation.scheduler import START

LEASE_SECONDS = 10.0


def test_both_checkers_find_nothing_in_the_shipped_code() -> None:
    """What one of them finds and the other does not would be a fault of one of them."""
    worlds = {"small": range(150), "small-steps": range(150), "reruns": range(40), "atomic": range(40)}
    for world, seeds in worlds.items():
        agreement = judge(world, seeds)
        assert (agreement.first, agreement.second) == ([], [])
        assert agreement.calls > 1_000


def test_a_grant_beside_a_living_claim_has_no_explanation() -> None:
    """The second owner must wait for the first one's expiry."""
    assert not is_linearizable([granted("A", 0.0, fence=1), granted("B", 5.0, fence=2)])
    assert is_linearizable([granted("A", 0.0, fence=1), granted("B", 11.0, fence=2)])


def test_a_grant_after_a_release_is_explained() -> None:
    """Also where the release has no answer, but not where it says that it released nothing."""
    first, last = granted("A", 0.0, fence=1), granted("B", 5.0, fence=2)
    released = Call("release", "k", "A", START + 2.0, fence=1, ended_at=START + 3.0, answer=Released())
    assert is_linearizable([first, released, last])
    assert is_linearizable([first, replace(released, answer=None), last])
    assert not is_linearizable([first, replace(released, answer=Lost()), last])


def test_steps_are_kept_by_the_owner_and_brought_by_later_claims() -> None:
    """A later claim brings what was said to be kept, and what an unanswered call has kept; nobody else keeps any."""
    first, kept = granted("A", 0.0, fence=1), KeptSteps(here={"charge": Step(inputs="", codec="json")})
    keep = Call("keep_step", "k", "A", START + 2.0, data="charge", ended_at=START + 3.0, answer=kept)
    silent, lost = replace(keep, answer=None), replace(keep, answer=Lost())
    without = granted("B", 12.0, fence=2)
    bringing = replace(without, answer=Granted(replace(without.answer.claim, steps=kept)))
    assert is_linearizable([first, keep, bringing])
    assert not is_linearizable([first, keep, without])
    assert is_linearizable([first, silent, bringing])
    assert is_linearizable([first, silent, without])
    assert not is_linearizable([first, bringing])
    assert not is_linearizable([first, lost])
    late = replace(keep, called_at=START + 13.0, ended_at=START + 14.0)
    assert not is_linearizable([first, without, late])
    assert is_linearizable([first, without, replace(late, answer=Lost())])


def test_a_fence_that_does_not_grow_has_no_explanation() -> None:
    """Even where the claim before it is over."""
    assert not is_linearizable([granted("A", 0.0, fence=1), granted("B", 20.0, fence=1)])


def test_a_claim_without_an_answer_may_take_effect_later_or_never() -> None:
    """It explains that another owner is busy, and need not be in anybody's way."""
    silent = replace(granted("A", 0.0, fence=1), answer=None)
    assert is_linearizable([silent, granted("B", 1.0, fence=1)])
    assert is_linearizable([silent, granted("B", 12.0, fence=2)])
    assert is_linearizable([silent, busy("B", 5.0, holder="A")])
    assert not is_linearizable([busy("B", 5.0, holder="A")])


@pytest.mark.parametrize(("committer", "is_explained"), [("A", True), ("B", False)])
def test_only_the_owner_commits(committer: str, is_explained: bool) -> None:
    """Whoever else is told that his outcome was stored was told a lie."""
    commit = Call("commit", "k", committer, START + 2.0, data="1", ended_at=START + 3.0, answer=Committed())
    assert is_linearizable([granted("A", 0.0, fence=1), commit]) is is_explained


def test_writes_are_refused_only_while_their_key_is_held_and_has_no_outcome() -> None:
    """Else an earlier try was carried out, or somebody else has the key."""
    first = granted("A", 0.0, fence=1)
    refused = Call("commit_with", "k", "A", START + 3.0, data="1", ended_at=START + 4.0, answer=WritesRefused(()))
    assert is_linearizable([first, refused])
    stored = replace(refused, called_at=START + 1.5, ended_at=START + 2.0, answer=Committed())
    assert not is_linearizable([first, stored, refused])
    assert is_linearizable([first, replace(stored, answer=None), replace(refused, answer=Committed())])
    record = Record(key="k", status=Status.INPROGRESS, expiration=0, owner="B")
    assert not is_linearizable([first, replace(refused, answer=Superseded(record))])


def test_a_second_copy_of_a_claim_request_may_take_effect_later() -> None:
    """But only where requests are doubled."""
    first = granted("A", 0.0, fence=1)
    calls = [first, Call("release", "k", "A", START + 1.0, fence=1, ended_at=START + 2.0, answer=Released())]
    calls.append(busy("B", 5.0, holder="A"))
    assert not is_linearizable(calls)
    assert is_linearizable(calls, doubled=True)


def test_a_key_that_settles_is_busy_and_then_granted() -> None:
    """Not before, however the run has ended."""
    first = granted("A", 0.0, fence=1)
    released = Call("release", "k", "A", START + 1.0, 8.0, fence=1, ended_at=START + 2.0, answer=Released())
    assert is_linearizable([first, released, busy("B", 5.0, holder=None), granted("B", 10.0, fence=2)])
    assert not is_linearizable([first, released, granted("B", 4.0, fence=2)])
    assert not is_linearizable([first, replace(released, lease_seconds=0.0), busy("B", 7.0, holder=None)])


def test_a_payload_differs_only_from_that_of_a_run() -> None:
    """Of one that has the key, or has its outcome."""
    first, other = granted("A", 0.0, fence=1), _claim("B", 2.0, Mismatch("p", "q"))
    assert is_linearizable([first, other])
    assert not is_linearizable([other])


def test_a_parked_key_is_granted_to_nobody() -> None:
    """Only its holder parks it."""
    first = granted("A", 0.0, fence=1)
    record = Record(key="k", status=Status.INPROGRESS, expiration=0, owner="parked after A")
    parked = Call("park", "k", "A", START + 1.5, ended_at=START + 2.0, answer=Parked(record))
    told = _claim("B", 20.0, Parked(record))
    assert is_linearizable([first, parked, told])
    assert is_linearizable([first, replace(parked, answer=None), told])
    assert not is_linearizable([first, told])
    assert not is_linearizable([first, parked, granted("B", 20.0, fence=2)])
    assert not is_linearizable([first, replace(parked, owner="B"), told])
    assert not is_linearizable([first, replace(parked, answer=Lost())])


def granted(owner: str, at: float, *, fence: int) -> Call:
    """Return a claim that is granted within a second."""
    request = ClaimRequest(key="k", owner=owner, lease_seconds=LEASE_SECONDS, retention_seconds=3600)
    expires_ms = int((START + at + LEASE_SECONDS) * 1000)
    claim = Claim(request=request, fence=fence, attempt=1, in_progress_expiration=expires_ms)
    return _claim(owner, at, Granted(claim))


def busy(owner: str, at: float, *, holder: str | None) -> Call:
    """Return a claim that is refused because another owner has the key, or it settles."""
    record = Record(key="k", status=Status.INPROGRESS, expiration=0, owner=holder)
    return _claim(owner, at, Busy(START + at + LEASE_SECONDS, record))


def _claim(owner: str, at: float, answer: Any) -> Call:
    return Call("claim", "k", owner, START + at, LEASE_SECONDS, ended_at=START + at + 1.0, answer=answer)
