"""Transactions of the simulation's tables, by chance: answers and items are those of each stand-in for DynamoDB."""

import random
from collections.abc import Iterator
from typing import Any, Final

import pytest
from botocore.exceptions import ClientError

from idempotent_tasks import DynamoDBStore
from idempotent_tasks.testing import FakeClock
from simulation.network import DirectClient, Service

SEQUENCES: Final = 5
STEPS: Final = 40
NAMES: Final = ("a", "b", "c", "d")
#: With what each needs; None for a write without a condition.
CONDITIONS: Final[tuple[tuple[str | None, dict[str, Any]], ...]] = (
    (None, {}),
    (None, {}),
    ("attribute_exists(id)", {}),
    ("attribute_not_exists(id)", {}),
    ("attribute_not_exists(id) OR amount < :most", {":most": {"N": "5"}}),
    ("holder = :me AND amount <> :most", {":me": {"S": "me"}, ":most": {"N": "1"}}),
)
UPDATES: Final[tuple[tuple[str, dict[str, Any]], ...]] = (
    ("ADD amount :some", {":some": {"N": "2"}}),
    ("ADD amount :some SET holder = :new", {":some": {"N": "-1"}, ":new": {"S": "me"}}),
    ("SET amount = if_not_exists(amount, :zero) + :some", {":zero": {"N": "0"}, ":some": {"N": "3"}}),
    ("ADD tags :tags REMOVE holder", {":tags": {"SS": ["x", "y"]}}),
)


def write(rng: random.Random, table: str, name: str) -> dict[str, Any]:
    """Return one write of an item."""
    kind = rng.choice(("Put", "Update", "Update", "Delete", "ConditionCheck"))
    condition, values = rng.choice(CONDITIONS[2 if kind == "ConditionCheck" else 0 :])
    parameters: dict[str, Any] = {"TableName": table}
    if kind == "Put":
        parameters["Item"] = {"id": {"S": name}, "amount": {"N": str(rng.randrange(7))}, "holder": {"S": "me"}}
    else:
        parameters["Key"] = {"id": {"S": name}}
    if kind == "Update":
        parameters["UpdateExpression"], more = rng.choice(UPDATES)
        values = values | more
    if condition is not None:
        parameters["ConditionExpression"] = condition
        parameters["ReturnValuesOnConditionCheckFailure"] = rng.choice(("ALL_OLD", "NONE"))
    if values:
        parameters["ExpressionAttributeValues"] = values
    return {kind: parameters}


def transactions(rng: random.Random, table: str, *, again: bool) -> Iterator[dict[str, Any]]:
    """Yield transactions; some of them, if ``again``, once more, and some tokens with other writes."""
    sent: list[dict[str, Any]] = []
    for _ in range(STEPS):
        names = rng.sample(NAMES, rng.randint(1, len(NAMES)))
        writes = [write(rng, table, name) for name in names]
        if rng.random() < 0.05:
            writes.append(write(rng, table, names[0]))
        request = {"TransactItems": writes, "ClientRequestToken": f"{rng.getrandbits(128):032x}"}
        if again and sent and rng.random() < 0.2:
            request = rng.choice(sent) | ({} if rng.random() < 0.7 else {"TransactItems": writes})
        sent.append(request)
        yield request


def answer(client: Any, request: dict[str, Any]) -> Any:
    """Return what a client says of a transaction: whether it was done, or why not, with the items that are shown."""
    try:
        client.transact_write_items(**request)
    except ClientError as error:
        reasons = error.response.get("CancellationReasons", ())
        return error.response["Error"]["Code"], [(each["Code"], each.get("Item")) for each in reasons]
    return "done"


def items(client: Any, table: str) -> dict[str, Any]:
    """Return all items, by name."""
    read = {name: client.get_item(TableName=table, Key={"id": {"S": name}}, ConsistentRead=True) for name in NAMES}
    return {name: comparable(each["Item"]) for name, each in read.items() if "Item" in each}


def comparable(item: dict[str, Any]) -> dict[str, Any]:
    """Return an item whose sets have an order."""
    return {name: {"SS": sorted(each["SS"])} if "SS" in each else each for name, each in item.items()}


@pytest.fixture
def is_roto(request: pytest.FixtureRequest) -> bool:
    """Whether the server is the one that knows no tokens."""
    return bool(request.node.callspec.params["dynamodb_endpoint"] == "roto")


@pytest.mark.parametrize("seed", range(SEQUENCES))
def test_they_are_alike(dynamodb: DynamoDBStore, raw: Any, seed: int, *, is_roto: bool) -> None:
    """Whatever came before."""
    simulated = DirectClient(Service(FakeClock().now))
    for request in transactions(random.Random(seed), dynamodb.table, again=not is_roto):
        said, simulated_said = answer(raw, request), answer(simulated, request)
        assert said == simulated_said, request
        assert items(raw, dynamodb.table) == items(simulated, dynamodb.table), request
