"""docs/discussion/scaling.md: what many workers ask of one table, and what they do where it does not answer.

Each test works rows or sentences out anew, from the code's own figures, and looks for them in the page.
"""

import random
from collections import Counter
from collections.abc import Callable
from fractions import Fraction

import pytest
import tenacity.wait

from idempotent_tasks import deferral, departed, guard, keeper, publication, reception, retries
from idempotent_tasks.checks.dynamodb import WORKER_ACTIONS
from idempotent_tasks.errors import StoreUnavailableError
from idempotent_tasks.stores.aws import OUR_CONFIG
from idempotent_tasks.testing import FakeClock
from tests.support.scaling import (
    LONG_BODY,
    PARTITION,
    SAMPLE,
    SLOTS,
    assert_said,
    number,
    renewals,
    row,
    units_by_cost_page,
)

#: Requests a second to what describes tables, by AWS.
CONTROL_PLANE = 2_500


@pytest.fixture(autouse=True)
def seed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let chance take the same course each time."""
    monkeypatch.setattr(tenacity.wait, "random", random.Random(17))


def test_the_patience_of_a_worker() -> None:
    """For how long it tries what DynamoDB refuses for now."""
    assert guard.LAST_TRY == 0.5
    lease, late = 30, round((1 - keeper.RENEW_AFTER) / retries.LEASE_PART)
    assert_said(
        [
            f"random below {retries.FIRST_PAUSE} s, then doubles up to {retries.LONGEST_PAUSE:g} s",
            f"| claim | for {guard.STORE_PATIENCE:g} s |",
            f"deferred by {deferral.FIRST_COUNTDOWN:g} to {1.25 * deferral.LONGEST_COUNTDOWN:g} s",
            f"| renewal | after each {1 / retries.LEASE_PART:g}th of the lease, {late} times",
            f"as long as the claim lives, and for {guard.STORE_PATIENCE:g} s at least",
            f"with pauses below a {1 / retries.LEASE_PART:g}th of the lease",
            f"{lease * (1 - keeper.RENEW_AFTER):g} to {lease} s with `lease={lease}`",
            "| release by the run | as long, with the same pauses |",
            f"for up to {guard.COMMIT_PATIENCE:g} s or one lease",
            "has half a second",
            f"last {Fraction(reception.LAST_PART)} of a hard time limit, or in its last {reception.LAST_SECONDS:g} s",
            f"asks each {guard.WAIT_PAUSE:g} s",
            f"in {1 + late} tries",
            f"| note | for {reception.NOTE_PATIENCE:g} s |",
            f"| reservation by a producer | for {publication.PUBLISH_PATIENCE:g} s |",
        ]
    )


def test_the_load_of_ten_thousand_slots() -> None:
    """Long bodies with a lease, and short ones with a limit."""
    first_run = units_by_cost_page()["first run"]["1 KB"]
    rates = [SLOTS / LONG_BODY, SLOTS / 1]
    renewed = [SLOTS * renewals(LONG_BODY, 30) / LONG_BODY, 0]
    assert_said(
        [
            row("tasks", "*S* ÷ *T*", *map(number, rates)),
            row("requests for runs", "2 *S* ÷ *T*", *(number(2 * rate) for rate in rates)),
            row("renewals", "about 3 *S* ÷ `lease`", *map(number, renewed)),
            row(
                "write units",
                f"{first_run} *S* ÷ *T* + renewals",
                *(number(first_run * rate + more) for rate, more in zip(rates, renewed, strict=True)),
            ),
        ]
    )


def test_the_load_of_starting_workers() -> None:
    """Five questions each, of which two are writes and two go to the control plane."""
    asked = Counter(action.startswith("Describe") for action in WORKER_ACTIONS)
    writes = len({"UpdateItem", "PutItem"} & set(WORKER_ACTIONS))
    assert_said(
        [
            f"{number(SLOTS * len(WORKER_ACTIONS))} requests",
            f"{number(SLOTS * asked[True])} of them describe the table",
            f"for {SLOTS * asked[True] / CONTROL_PLANE:g} s",
            f"{number(SLOTS * writes)} are writes",
            f"one partition busy for {SLOTS * writes / PARTITION:g} s",
            f"start fewer than {number(CONTROL_PLANE // asked[True])} workers a second",
            f"fewer than {PARTITION // writes} with a composite key",
            f"{number(CONTROL_PLANE // asked[True])} workers or more that start together, {PARTITION // writes} with",
        ]
    )


def test_the_connections_of_a_process() -> None:
    """Of the bodies, of what renews their claims, and of the parent's releases."""
    assert_said(
        [
            f"up to {OUR_CONFIG.max_pool_connections} connections",
            f"up to {keeper.MOST_THREADS} threads",
            f"up to {departed._THREADS} at once",
        ]
    )


def unavailable(clock: FakeClock, seconds: float) -> Callable[[], None]:
    """Return a call that takes so long and fails."""

    def call() -> None:
        clock.sleep(seconds)
        raise StoreUnavailableError("down")

    return call


def tries(answer_seconds: float) -> float:
    """Return how often a claim is tried, on average, where each try fails after so many seconds."""
    counted = 0
    for _ in range(SAMPLE):
        clock = FakeClock()
        fail = unavailable(clock, answer_seconds)

        def call(fail: Callable[[], None] = fail) -> None:
            nonlocal counted
            counted += 1
            fail()

        with pytest.raises(StoreUnavailableError):
            retries.persistently(call, clock=clock, seconds=guard.STORE_PATIENCE)
    return counted / SAMPLE


def test_the_load_of_an_outage() -> None:
    """How often a slot asks, and when what was deferred comes back."""
    refused, unanswered = tries(0), tries(OUR_CONFIG.read_timeout)
    longest = [min(deferral.FIRST_COUNTDOWN * 2**count, deferral.LONGEST_COUNTDOWN) for count in range(6)]
    assert_said(
        [
            f"about {number(refused)} times",
            f"about {number(unanswered)} times where no answer comes within {OUR_CONFIG.read_timeout} s",
            f"{number(round(SLOTS * (refused + 1) / guard.STORE_PATIENCE, -3))} requests a second",
            f"{', '.join(f'{each:g}' for each in longest[:-1])} and then {longest[-1]:g} s",
            "up to a quarter longer",
            f"within {1.25 * longest[-1]:g} s",
        ]
    )
