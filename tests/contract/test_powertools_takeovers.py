"""A key that changes hands between a task and a function under Powertools: what a late one can still do."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from idempotent_tasks import DynamoDBStore, Record, Status
from idempotent_tasks.core.records import Claim, Granted, Lost, Superseded
from tests.contract.conftest import MakeLambda
from tests.support.guarding import done, request_by
from tests.support.powertools import KEY, OTHER_ORDER, Tasks, never

RETENTION = 3600
BOUND_SECONDS = 30.0


def test_fences_grow_across_their_runs(dynamodb: DynamoDBStore, make_lambda: MakeLambda) -> None:
    """Powertools' claim wipes the fence with the rest of the item; the next one of ours is larger all the same."""
    theirs = make_lambda(remaining_milliseconds=-5_000)
    fences: list[int] = []

    def time_out() -> None:
        fences.append(dynamodb.get(KEY).fence)
        raise SystemExit

    for run in ("one", "two", "three"):
        answer = dynamodb.claim(request_by(run, key=KEY, lease_seconds=-1))
        assert isinstance(answer, Granted)
        assert answer.claim.attempt == 1
        fences.append(answer.claim.fence)
        with pytest.raises(SystemExit):
            theirs.deliver(time_out)
    own, wiped = fences[::2], fences[1::2]
    assert wiped == [0, 0, 0]
    assert own[0] < own[1] < own[2]


def test_their_takeover_supersedes_every_write_of_ours(dynamodb: DynamoDBStore, make_lambda: MakeLambda) -> None:
    """While they run, and afterwards, our late commit, release and renewal change nothing."""
    answer = dynamodb.claim(request_by(key=KEY, lease_seconds=-1))
    assert isinstance(answer, Granted)
    claim = answer.claim

    def refused() -> Record:
        record = dynamodb.get(KEY)
        assert dynamodb.commit(claim, done(), RETENTION) == Superseded(record)
        assert dynamodb.release(claim, "Retry") == Lost()
        assert dynamodb.renew(claim, 60, RETENTION) == Lost()
        assert dynamodb.get(KEY) == record
        return record

    during: list[Record] = []
    make_lambda().deliver(lambda: during.append(refused()))
    after = refused()
    assert (during[0].status, during[0].owner) == (Status.INPROGRESS, None)
    assert (after.status, after.data) == (Status.COMPLETED, "null")


def test_their_late_outcome_wins_over_ours(dynamodb: DynamoDBStore, make_lambda: MakeLambda) -> None:
    """The limit: Powertools' last write is unconditional, and overwrites what we committed after a takeover."""
    ours = Tasks(dynamodb)

    def given_up_for_dead() -> str:
        assert ours.deliver(lambda: "ours") == "ours"
        return "theirs, late"

    make_lambda(remaining_milliseconds=-5_000).deliver(given_up_for_dead)
    assert ours.deliver(never) == make_lambda().deliver(never) == "theirs, late"


def test_their_late_outcome_under_our_owner_token_is_theirs(dynamodb: DynamoDBStore, make_lambda: MakeLambda) -> None:
    """It leaves our token where it was: our commit must not take it for its own."""
    claims: list[Claim] = []

    def given_up_for_dead() -> str:
        answer = dynamodb.claim(request_by(key=KEY))
        assert isinstance(answer, Granted)
        claims.append(answer.claim)
        return "theirs, late"

    make_lambda(remaining_milliseconds=-5_000).deliver(given_up_for_dead)
    record = dynamodb.get(KEY)
    assert (record.status, record.owner, record.data) == (Status.COMPLETED, claims[0].owner, '"theirs, late"')
    assert dynamodb.commit(claims[0], done(), RETENTION) == Superseded(record)
    assert dynamodb.get(KEY) == record


@pytest.mark.parametrize("fails", [False, True], ids=["returns", "fails"])
def test_a_function_that_ends_late_while_our_body_runs(
    dynamodb: DynamoDBStore, make_lambda: MakeLambda, *, fails: bool
) -> None:
    """Its outcome becomes ours, because replays get it; its failure deletes our claim, and our commit restores it."""
    ours, theirs = Tasks(dynamodb), make_lambda(remaining_milliseconds=-5_000)
    begun, go_on = threading.Event(), threading.Event()

    def end_late() -> str:
        begun.set()
        assert go_on.wait(BOUND_SECONDS)
        if fails:
            raise KeyError("late")
        return "theirs, late"

    with ThreadPoolExecutor(1) as pool:
        function = pool.submit(theirs.deliver, end_late)
        assert begun.wait(BOUND_SECONDS)

        def outrun() -> str:
            go_on.set()
            assert (function.exception(BOUND_SECONDS) is not None) is fails
            return "ours"

        outcome = "ours" if fails else "theirs, late"
        assert ours.deliver(outrun) == outcome
    assert ours.deliver(never) == make_lambda().deliver(never) == outcome


def test_only_ours_validates_a_takeover(dynamodb: DynamoDBStore, make_lambda: MakeLambda) -> None:
    """A dead function's key goes to a changed payload there, and not here."""
    theirs = make_lambda(remaining_milliseconds=-5_000, payload_validation_jmespath="amount")
    ours = Tasks(dynamodb, validate="order.amount")

    def time_out() -> None:
        raise SystemExit

    for _ in range(2):
        with pytest.raises(SystemExit):
            theirs.deliver(time_out)
        with pytest.raises(ours.mismatch):
            ours.deliver(never, OTHER_ORDER)
    assert theirs.deliver(lambda: "theirs", OTHER_ORDER) == "theirs"
