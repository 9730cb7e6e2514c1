"""The simulation's transactions: what no stand-in for DynamoDB shows, which is about time."""

from typing import Any

import pytest
from botocore.exceptions import ClientError

from idempotent_tasks.core.processes import this_process
from idempotent_tasks.testing import FakeClock
from simulation.network import DirectClient, Service
from simulation.transactions import TOKEN_SECONDS

ADD: dict[str, Any] = {
    "TableName": "tills",
    "Key": {"id": {"S": "till"}},
    "UpdateExpression": "ADD amount :one",
    "ExpressionAttributeValues": {":one": {"N": "1"}},
}
OTHER: dict[str, Any] = {"TableName": "tills", "Item": {"id": {"S": "other"}}}


class Till:
    """A counter, and transactions that add to it."""

    def __init__(self) -> None:
        self.clock = FakeClock()
        self.service = Service(self.clock.now)
        self.client = DirectClient(self.service)
        self._later: list[Any] = []

    def begin(self) -> None:
        """Begin a transaction that takes a while."""
        self.service.transactions.keeping([{"Update": ADD}], 1.0, lambda _, call: self._later.append(call), self.add)

    def end(self) -> None:
        """End it, carried out."""
        self._later.pop()()

    def add(self, token: str = "one", *others: dict[str, Any]) -> None:
        """Add 1, in a transaction with these puts."""
        self.client.transact_write_items(
            TransactItems=[{"Update": ADD}, *({"Put": each} for each in others)], ClientRequestToken=token
        )

    @property
    def amount(self) -> int:
        """What was added."""
        found = self.service.table.get_item(Key=ADD["Key"])
        return 0 if found is None else int(found["amount"]["N"])


@pytest.fixture
def till() -> Till:
    """A counter at 0."""
    return Till()


def test_a_token_is_valid_for_ten_minutes(till: Till) -> None:
    """Then it is that of a new transaction."""
    till.add()
    till.clock.advance(TOKEN_SECONDS - 1)
    till.add()
    assert till.amount == 1
    till.clock.advance(1)
    till.add()
    assert till.amount == 2


def test_two_transactions_at_one_item(till: Till) -> None:
    """The second one is cancelled; a write of it that is elsewhere was not the reason."""
    till.begin()
    with pytest.raises(ClientError) as caught:
        till.add("two", OTHER)
    assert [each["Code"] for each in caught.value.response["CancellationReasons"]] == ["TransactionConflict", "None"]
    assert till.service.table.items == {}
    till.end()
    till.add("two", OTHER)
    assert till.amount == 2


def test_a_single_write_to_an_item_of_a_transaction(till: Till) -> None:
    """It is refused, and was not carried out; a read is answered."""
    till.begin()
    with pytest.raises(ClientError, match="TransactionConflictException"):
        till.client.update_item(**ADD)
    assert "Item" not in till.client.get_item(TableName="tills", Key=ADD["Key"])
    till.client.put_item(**OTHER)
    till.end()
    assert till.amount == 1


def test_one_that_begins_while_another_has_its_items_does_not_wait(till: Till) -> None:
    """It is cancelled at once, and leaves them to the other."""
    till.begin()
    answers: list[str] = []

    def take_effect() -> None:
        with pytest.raises(ClientError, match="TransactionCanceledException"):
            till.add("two")
        answers.append("cancelled")

    till.service.transactions.keeping([{"Update": ADD}], 1.0, lambda *_: answers.append("later"), take_effect)
    assert answers == ["cancelled"]
    assert till.service.requests[this_process().name() or ""] == 1
    with pytest.raises(ClientError, match="TransactionConflictException"):
        till.client.update_item(**ADD)
