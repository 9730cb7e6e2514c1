"""One table, two libraries: `IdempotentTask` and the real Powertools for AWS Lambda (Python), in both directions."""

from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest

from idempotent_tasks import DynamoDBStore, Record, Status
from idempotent_tasks.records import Claim, Granted, Lost, Superseded, Vanished
from tests.contract.conftest import MakeStore
from tests.support.guarding import done, wish
from tests.support.powertools import ORDER, PREFIX, Body, Lambda, Side, Tasks
from tests.support.wire import Wire, shift_date

#: The md5 of the JSON texts ``"ord-17"`` and ``5``.
KEY = f"{PREFIX}#0e4e303644b9b79f5a0443ae68c7b230"
AMOUNT = "e4da3b7fbbce2345d7772b0674a318d5"
LONG_AGO_SECONDS = -600
RETENTION = 3600

directions = pytest.mark.parametrize("ours_first", [True, False], ids=["ours-then-theirs", "theirs-then-ours"])
validations = pytest.mark.parametrize("validated", [False, True], ids=["plain", "validated"])
OTHER_ORDER = {"id": ORDER["id"], "amount": 6}

MakeLambda = Callable[..., Lambda]


@pytest.fixture
def make_lambda(dynamodb: DynamoDBStore, raw: Any) -> MakeLambda:
    """Makes functions under Powertools over the test's table."""
    return lambda **given: Lambda(dynamodb.table, raw, **given)


@pytest.fixture
def sides(dynamodb: DynamoDBStore, make_lambda: MakeLambda, ours_first: bool, validated: bool) -> tuple[Side, Side]:
    """The one that comes first and the other."""
    ours = Tasks(dynamodb, **({"validate": "order.amount"} if validated else {}))
    theirs = make_lambda(**({"payload_validation_jmespath": "amount"} if validated else {}))
    return (ours, theirs) if ours_first else (theirs, ours)


def never() -> Any:
    """Be a body that must not run."""
    pytest.fail("the body ran although the key was taken")


@directions
@validations
def test_what_one_completed_the_other_replays(sides: tuple[Side, Side], validated: bool) -> None:
    """The result of either is the result of both, and a changed payload is refused by either."""
    first, second = sides
    result = {"paid": 12, "note": "£ \U0001f600", "list": [1, None, 2.5, True]}
    assert first.deliver(lambda: result) == result
    assert second.deliver(never) == result
    assert first.deliver(never) == result
    if validated:
        with pytest.raises(second.mismatch):
            second.deliver(never, OTHER_ORDER)


@directions
@validations
def test_what_one_runs_blocks_the_other(sides: tuple[Side, Side], validated: bool) -> None:
    """While either runs the key, the other's body does not; afterwards it gets the result."""
    first, second = sides

    def meanwhile() -> str:
        with pytest.raises(second.busy):
            second.deliver(never)
        if validated:
            with pytest.raises(second.mismatch):
                second.deliver(never, OTHER_ORDER)
        return "first"

    assert first.deliver(meanwhile) == "first"
    assert second.deliver(never) == "first"


@validations
def test_our_claim_that_expired_is_taken_over_by_theirs(
    dynamodb: DynamoDBStore, wire: Wire, make_lambda: MakeLambda, validated: bool
) -> None:
    """Powertools takes our dead worker's key; where it was alive after all, its late outcome is discarded."""
    wire.break_all(shift_date(LONG_AGO_SECONDS))
    ours = Tasks(dynamodb, **({"validate": "order.amount"} if validated else {}))
    theirs = make_lambda(**({"payload_validation_jmespath": "amount"} if validated else {}))
    assert ours.deliver(lambda: f"late after {theirs.deliver(lambda: 'theirs')}") == "theirs"
    assert ours.deliver(never) == theirs.deliver(never) == "theirs"


@validations
def test_their_claim_that_expired_is_taken_over_by_ours(
    dynamodb: DynamoDBStore, make_lambda: MakeLambda, validated: bool
) -> None:
    """A function that ran into its time-out leaves its record; the task takes the key over and commits."""
    ours = Tasks(dynamodb, **({"validate": "order.amount"} if validated else {}))
    options = {"payload_validation_jmespath": "amount"} if validated else {}

    def time_out() -> None:
        raise SystemExit

    with pytest.raises(SystemExit):
        make_lambda(remaining_milliseconds=-5_000, **options).deliver(time_out)
    assert ours.deliver(lambda: "ours") == "ours"
    assert make_lambda(**options).deliver(never) == "ours"


def item(store: DynamoDBStore, raw: Any) -> dict[str, Any]:
    """Return the item under the key as it lies in the table."""
    found: dict[str, Any] = raw.get_item(TableName=store.table, Key={"id": {"S": KEY}}, ConsistentRead=True)["Item"]
    return found


@directions
@pytest.mark.parametrize("validated", [True], ids=["validated"])
def test_the_item_is_the_same(dynamodb: DynamoDBStore, raw: Any, sides: tuple[Side, Side], ours_first: bool) -> None:
    """Key, status, data and validation are byte for byte those of Powertools; the times have its units."""
    written: list[dict[str, Any]] = []

    def body() -> Any:
        written.append(item(dynamodb, raw))
        return {"b": None, "a": "é"}

    sides[0].deliver(body)
    written.append(item(dynamodb, raw))
    now = dynamodb.clock.now()
    for each, status in zip(written, ["INPROGRESS", "COMPLETED"], strict=True):
        assert (each["id"], each["status"], each["validation"]) == ({"S": KEY}, {"S": status}, {"S": AMOUNT})
        assert now < int(each["expiration"]["N"]) <= now + RETENTION + 5
        assert now < int(each["in_progress_expiration"]["N"]) / 1000 < now + 120
    assert "data" not in written[0]
    assert written[1]["data"] == {"S": '{"a": "\\u00e9", "b": null}'}
    assert ("owner" in written[0]) is ours_first


@pytest.mark.parametrize("value", [None, 0, "", [], {}, False, 0.0], ids=repr)
def test_falsy_results_of_either_replay_in_ours(dynamodb: DynamoDBStore, make_lambda: MakeLambda, value: Any) -> None:
    """What Powertools stored for them is what it returned; Powertools itself replays each as None."""
    ours = Tasks(dynamodb)
    make_lambda().deliver(lambda: value)
    replayed = ours.deliver(never)
    assert (replayed, type(replayed)) == (value, type(value))
    own = {"id": "ord-18"}
    ours.deliver(lambda: value, own)
    replayed = ours.deliver(never, own)
    assert (replayed, type(replayed)) == (value, type(value))


@directions
@pytest.mark.parametrize("validated", [False], ids=["plain"])
def test_a_body_that_raised_leaves_the_key_free(sides: tuple[Side, Side]) -> None:
    """Ours releases the record, theirs deletes it: the other runs at once."""

    def declined() -> None:
        raise KeyError("declined")

    first, second = sides
    with pytest.raises(KeyError):
        first.deliver(declined)
    assert second.deliver(lambda: "second") == "second"
    assert first.deliver(never) == "second"


def test_an_outcome_of_theirs_that_expired_counts_as_absent(
    make_store: MakeStore, wire: Wire, make_lambda: MakeLambda
) -> None:
    """DynamoDB deletes it later than that."""
    wire.break_all(shift_date(-LONG_AGO_SECONDS))
    make_lambda(expires_after_seconds=60).deliver(lambda: "theirs")
    assert Tasks(make_store()).deliver(lambda: "ours") == "ours"


def test_an_outcome_of_ours_that_expired_counts_as_absent(
    dynamodb: DynamoDBStore, wire: Wire, make_lambda: MakeLambda
) -> None:
    """So it does there."""
    wire.break_all(shift_date(LONG_AGO_SECONDS))
    Tasks(dynamodb, expires=60).deliver(lambda: "ours")
    assert make_lambda().deliver(lambda: "theirs") == "theirs"


def test_a_claim_of_theirs_without_a_time_out_blocks(dynamodb: DynamoDBStore, make_lambda: MakeLambda) -> None:
    """Without a Lambda context Powertools writes no time-out: the key is theirs until the record expires."""
    ours = Tasks(dynamodb)

    def meanwhile() -> str:
        with pytest.raises(ours.busy) as caught:
            ours.deliver(never)
        assert caught.value.until == dynamodb.get(KEY).expiration
        return "theirs"

    theirs = make_lambda(remaining_milliseconds=None)
    with pytest.warns(UserWarning, match="remaining time"):
        assert theirs.deliver(meanwhile) == "theirs"


def test_fences_grow_across_their_runs(dynamodb: DynamoDBStore, make_lambda: MakeLambda) -> None:
    """Powertools' claim wipes the fence with the rest of the item; the next one of ours is larger all the same."""
    theirs = make_lambda(remaining_milliseconds=-5_000)
    fences: list[int] = []

    def time_out() -> None:
        fences.append(dynamodb.get(KEY).fence)
        raise SystemExit

    for run in ("one", "two", "three"):
        answer = dynamodb.claim(wish(run, key=KEY, lease_seconds=-1))
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
    answer = dynamodb.claim(wish(key=KEY, lease_seconds=-1))
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


def claim_of_the_dead(dynamodb: DynamoDBStore, make_lambda: MakeLambda, late: Body) -> Claim:
    """Return our claim of a key whose function was given up for dead, and then ended all the same."""
    claims: list[Claim] = []

    def outlived() -> Any:
        answer = dynamodb.claim(wish(key=KEY))
        assert isinstance(answer, Granted)
        claims.append(answer.claim)
        return late()

    with suppress(KeyError):
        make_lambda(remaining_milliseconds=-5_000).deliver(outlived)
    return claims[0]


def test_their_late_outcome_before_our_commit_is_the_outcome(dynamodb: DynamoDBStore, make_lambda: MakeLambda) -> None:
    """It lies under our own owner token: our commit must not take it for its own."""
    claim = claim_of_the_dead(dynamodb, make_lambda, lambda: "theirs, late")
    record = dynamodb.get(KEY)
    assert (record.status, record.owner, record.data) == (Status.COMPLETED, claim.owner, '"theirs, late"')
    assert dynamodb.commit(claim, done(), RETENTION) == Superseded(record)
    assert dynamodb.get(KEY) == record


def test_their_late_failure_under_our_claim_loses_nothing(dynamodb: DynamoDBStore, make_lambda: MakeLambda) -> None:
    """It deletes our claim: the commit finds nothing, and the guard then puts the record back."""

    def fail_late() -> None:
        raise KeyError("late")

    claim = claim_of_the_dead(dynamodb, make_lambda, fail_late)
    assert dynamodb.commit(claim, done(), RETENTION) == Vanished()


def test_another_hash_function(dynamodb: DynamoDBStore, make_lambda: MakeLambda) -> None:
    """Where md5 is forbidden, both are told another one."""
    ours = Tasks(dynamodb, powertools="sha256", validate="order.amount")
    theirs = make_lambda(hash_function="sha256", payload_validation_jmespath="amount")
    assert ours.deliver(lambda: 1) == theirs.deliver(never) == 1


def test_an_explicit_key_is_what_the_expression_selects(dynamodb: DynamoDBStore, make_lambda: MakeLambda) -> None:
    """A call that brings its key finds the record of the order with that id."""
    ours = Tasks(dynamodb)
    make_lambda().deliver(lambda: "theirs")
    assert ours.task.apply(kwargs={"order": {}}, idempotency_key=ORDER["id"]).get() == "theirs"


def test_a_result_that_was_not_stored_is_none_to_them(dynamodb: DynamoDBStore, make_lambda: MakeLambda) -> None:
    """A result too large for an item is marked as such, which Powertools has no word for: it replays None."""
    large = "x" * 400_000
    ours = Tasks(dynamodb)
    assert ours.deliver(lambda: large) == large
    assert make_lambda().deliver(never) is None
