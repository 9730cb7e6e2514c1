"""One table, two libraries: `IdempotentTask` and the real Powertools for AWS Lambda (Python), in both directions."""

from typing import Any

import pytest

from idempotent_tasks import DynamoDBStore
from tests.contract.conftest import MakeLambda, MakeStore
from tests.support.powertools import AMOUNT, KEY, ORDER, OTHER_ORDER, Lambda, Side, Tasks, never
from tests.testbed.wire import Wire, shift_date

LONG_AGO_SECONDS = -600
RETENTION = 3600
UNRESOLVED = 14 * 86_400

directions = pytest.mark.parametrize("ours_first", [True, False], ids=["ours-then-theirs", "theirs-then-ours"])
validations = pytest.mark.parametrize("validated", [False, True], ids=["plain", "validated"])


@pytest.fixture
def sides(dynamodb: DynamoDBStore, make_lambda: MakeLambda, ours_first: bool, validated: bool) -> tuple[Side, Side]:
    """The one that comes first and the other."""
    ours = Tasks(dynamodb, **({"validate": "order.amount"} if validated else {}))
    theirs = make_lambda(**({"payload_validation_jmespath": "amount"} if validated else {}))
    return (ours, theirs) if ours_first else (theirs, ours)


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
    """Return the item under the key as it is stored in the table."""
    found: dict[str, Any] = raw.get_item(TableName=store.table, Key={"id": {"S": KEY}}, ConsistentRead=True)["Item"]
    return found


@directions
@pytest.mark.parametrize("validated", [True], ids=["validated"])
def test_the_item_is_the_same(dynamodb: DynamoDBStore, raw: Any, sides: tuple[Side, Side], ours_first: bool) -> None:
    """Key, status, data and validation are byte for byte those of Powertools; the times have its units.

    What has no outcome is kept for longer here.
    """
    written: list[dict[str, Any]] = []

    def body() -> Any:
        written.append(item(dynamodb, raw))
        return {"b": None, "a": "é"}

    sides[0].deliver(body)
    written.append(item(dynamodb, raw))
    now = dynamodb.clock.now()
    for each, status in zip(written, ["INPROGRESS", "COMPLETED"], strict=True):
        assert (each["id"], each["status"], each["validation"]) == ({"S": KEY}, {"S": status}, {"S": AMOUNT})
        kept = UNRESOLVED if ours_first and status == "INPROGRESS" else RETENTION
        assert now + kept - 5 < int(each["expiration"]["N"]) <= now + kept + 5
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


def test_another_hash_function(dynamodb: DynamoDBStore, make_lambda: MakeLambda) -> None:
    """Where md5 is forbidden, both are told another one."""
    ours = Tasks(dynamodb, powertools="sha256", validate="order.amount")
    theirs = make_lambda(hash_function="sha256", payload_validation_jmespath="amount")
    assert ours.deliver(lambda: 1) == theirs.deliver(never) == 1


def test_another_layout(make_store: MakeStore, raw: Any) -> None:
    """A composite key, and attribute names of one's own, are given to both under the same names."""
    key = {"key_attr": "pk", "sort_key_attr": "sk", "static_pk_value": "shop"}
    names = {"status_attr": "state", "expiry_attr": "ttl", "in_progress_expiry_attr": "busy_until", "data_attr": "out"}
    store = make_store(**key, **names, validation_key_attr="digest")
    store.create_table()
    ours = Tasks(store, validate="order.amount")
    layer = {**key, **names, "validation_key_attr": "digest"}
    theirs = Lambda(store.table, raw, layer=layer, payload_validation_jmespath="amount")
    assert theirs.deliver(lambda: ours_is_busy(ours)) == ours.deliver(never) == "theirs"
    second = {"id": "ord-18", "amount": 5}
    assert ours.deliver(lambda: "ours", second) == theirs.deliver(never, second) == "ours"


def ours_is_busy(ours: Side) -> str:
    """Be a body of theirs that lets ours look in."""
    with pytest.raises(ours.busy):
        ours.deliver(never)
    return "theirs"


def test_an_explicit_key_is_what_the_expression_selects(dynamodb: DynamoDBStore, make_lambda: MakeLambda) -> None:
    """A call that brings its key finds the record of the order with that id."""
    ours = Tasks(dynamodb)
    make_lambda().deliver(lambda: "theirs")
    assert ours.task.apply(kwargs={"order": {}}, idempotency_key=ORDER["id"]).get() == "theirs"


def test_a_long_result_is_plain_text_to_them_too(dynamodb: DynamoDBStore, make_lambda: MakeLambda) -> None:
    """Whatever else a long result could be stored as, Powertools reads nothing but text in the item."""
    long = {"lines": ["tea, 2.50"] * 20_000}
    ours = Tasks(dynamodb)
    assert ours.deliver(lambda: long) == make_lambda().deliver(never) == long


def test_a_result_that_was_not_stored_is_none_to_them(dynamodb: DynamoDBStore, make_lambda: MakeLambda) -> None:
    """A result too large for an item is marked as such, which Powertools has no word for: it replays None."""
    large = "x" * 400_000
    ours = Tasks(dynamodb)
    assert ours.deliver(lambda: large) == large
    assert make_lambda().deliver(never) is None
