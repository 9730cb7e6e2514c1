"""The rule of a claim, as plain values: who may claim, and what the others are told."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from idempotent_tasks.core.records import (
    Busy,
    Claim,
    Finished,
    Granted,
    Mismatch,
    Record,
    Status,
    answer_refusal,
    claimable,
    expiration_seconds,
    release_time,
    was_released,
)
from tests.support.guarding import KEY, request_by

NOW = 1_700_000_000.0


def record(**given_fields: Any) -> Record:
    """Return a record in progress, held by ``one`` for 30 s more and kept for an hour."""
    fields = {
        "key": KEY,
        "status": Status.INPROGRESS,
        "expiration": int(NOW) + 3600,
        "in_progress_expiration": int((NOW + 30) * 1000),
        "owner": "one",
        "fence": 7,
        "attempt": 1,
    }
    return Record(**{**fields, **given_fields})


@pytest.mark.parametrize(
    ("held", "granted"),
    [
        pytest.param(None, True, id="absent"),
        pytest.param(record(), False, id="held"),
        pytest.param(record(in_progress_expiration=int(NOW * 1000)), False, id="held-to-this-millisecond"),
        pytest.param(record(in_progress_expiration=int(NOW * 1000) - 1), True, id="claim-expired"),
        pytest.param(record(in_progress_expiration=0), True, id="released"),
        pytest.param(record(in_progress_expiration=None), False, id="foreign-without-expiry"),
        pytest.param(record(expiration=int(NOW)), False, id="kept-to-this-second"),
        pytest.param(record(expiration=int(NOW) - 1), True, id="record-expired"),
        pytest.param(record(status=Status.COMPLETED, in_progress_expiration=0), False, id="completed"),
        pytest.param(record(status=Status.COMPLETED, expiration=int(NOW) - 1), True, id="completed-and-expired"),
        pytest.param(record(status=Status.FAILED, in_progress_expiration=0), False, id="failed"),
    ],
)
def test_who_may_claim(held: Record | None, granted: bool) -> None:
    """A key is free where nothing holds it, or what held it has expired; an outcome is nobody's to claim."""
    assert claimable(held, request_by("two"), NOW) is granted


@pytest.mark.parametrize(
    ("stored", "offered", "granted"),
    [("a", "a", True), ("a", "b", False), (None, "b", True), ("a", None, True), (None, None, True)],
    ids=repr,
)
def test_a_takeover_needs_the_same_payload(stored: str | None, offered: str | None, granted: bool) -> None:
    """An expired claim is taken over with its payload or without knowledge of one, never with another."""
    held = record(in_progress_expiration=0, validation=stored)
    assert claimable(held, request_by("two", validation=offered), NOW) is granted


def test_an_expired_record_takes_any_payload() -> None:
    """After its retention a key starts again."""
    held = record(expiration=int(NOW) - 1, validation="a")
    assert claimable(held, request_by("two", validation="b"), NOW)


def test_a_refusal_with_ones_own_token_is_a_grant() -> None:
    """The first try of this request landed and its answer was lost: the claim is the one it made."""
    request = request_by("one")
    answer = answer_refusal(record(fence=9, attempt=2), request)
    assert answer == Granted(Claim(request=request, fence=9, attempt=2, in_progress_expiration=int((NOW + 30) * 1000)))


def test_ones_own_token_on_an_outcome_is_no_grant() -> None:
    """A finished key is finished for its own runner too."""
    finished = record(status=Status.COMPLETED)
    assert answer_refusal(finished, request_by("one")) == Finished(finished)


@pytest.mark.parametrize(
    ("fence", "claimed_at", "wanted"),
    [
        pytest.param(7, int(NOW * 1000) - 5, int(NOW * 1000), id="seen"),
        pytest.param(7, int(NOW * 1000) + 5, int(NOW * 1000) + 5, id="clock-set-back"),
        pytest.param(0, 0, int(NOW * 1000) + 1000, id="unseen"),
        pytest.param(0, int(NOW * 1000) + 5, int(NOW * 1000) + 1005, id="another-process"),
    ],
)
def test_no_request_for_a_claim_is_younger_than_its_release(fence: int, claimed_at: int, wanted: int) -> None:
    """A request that is on its way is refused by the time, also where the clock of whoever sent it was a bit ahead."""
    claim = Claim(
        request=request_by("one"),
        fence=fence,
        attempt=1,
        in_progress_expiration=int(NOW + 30) * 1000,
        claimed_at=claimed_at,
    )
    assert release_time(claim, NOW) == wanted


@pytest.mark.parametrize(
    ("changed", "free"),
    [
        pytest.param({}, False, id="held"),
        pytest.param({"owner": None}, True, id="released"),
        pytest.param({"in_progress_expiration": 0}, True, id="released-by-an-older-version"),
        pytest.param({"owner": None, "fence": 0}, False, id="held-under-powertools"),
        pytest.param({"owner": None, "fence": 0, "in_progress_expiration": None}, False, id="without-a-time"),
        pytest.param({"owner": None, "status": Status.COMPLETED}, False, id="finished"),
    ],
)
def test_what_is_free(changed: dict[str, Any], free: bool) -> None:
    """A release leaves no owner; a function under Powertools writes neither an owner nor a fence."""
    held = record(**changed)
    assert held.free is free
    assert claimable(held, request_by("two"), NOW) is free


def test_a_release_is_recognised_by_a_fence_that_was_seen() -> None:
    """Not where neither the record nor the claim has one."""
    claim = Claim(request=request_by(), fence=7, attempt=1, in_progress_expiration=0)
    assert was_released(record(in_progress_expiration=0, owner=None), claim)
    assert not was_released(record(in_progress_expiration=0, owner=None, fence=0), Claim.unseen(claim.request))


def test_a_running_holder_is_named() -> None:
    """A busy key says until when, and by whom."""
    held = record()
    assert answer_refusal(held, request_by("two")) == Busy(NOW + 30, held)


def test_a_claim_is_never_busy_beyond_its_record() -> None:
    """A holder with an expiry after the record's own, or with none, is waited for until the record expires."""
    soon = int(NOW) + 10
    assert record(expiration=soon).held_until == soon
    assert record(expiration=soon, in_progress_expiration=None).held_until == soon


@pytest.mark.parametrize("status", [Status.INPROGRESS, Status.COMPLETED, Status.FAILED])
def test_another_payload_is_a_mismatch_whatever_the_status(status: Status) -> None:
    """Two payloads under one key never meet silently."""
    held = record(status=status, validation="a")
    assert answer_refusal(held, request_by("two", validation="b")) == Mismatch("a", "b")


@pytest.mark.parametrize("status", [Status.COMPLETED, Status.FAILED])
def test_an_outcome_is_finished(status: Status) -> None:
    """Who meets an outcome is given its record."""
    held = record(status=status, validation="a")
    assert answer_refusal(held, request_by("two", validation="a")) == Finished(held)


def test_expired_is_computed_when_read() -> None:
    """The status of a record follows the clock, also where its item was not deleted yet."""
    held = record(status=Status.COMPLETED, expiration=int(NOW))
    assert held.status_at(NOW) is Status.COMPLETED
    assert held.status_at(NOW + 1) is Status.EXPIRED


@given(st.floats(0.001, 10**8), st.floats(0, 10**8))
def test_a_record_outlives_its_claim_and_its_retention(retention: float, lease: float) -> None:
    """The item is never deleted under a live claim, nor before its retention has passed."""
    claim_ends = int((NOW + lease) * 1000)
    expiration = expiration_seconds(retention, claim_ends, NOW)
    assert expiration > claim_ends / 1000
    assert expiration >= NOW + retention


def test_a_claim_speaks_for_its_request() -> None:
    """A claim names its key and token, and its expiry in seconds."""
    claim = Claim(request=request_by("one"), fence=1, attempt=1, in_progress_expiration=1_500)
    assert (claim.key, claim.owner, claim.expires_at) == (KEY, "one", 1.5)
