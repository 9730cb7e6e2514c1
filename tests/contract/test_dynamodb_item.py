"""Items in the table: names and types as Powertools for AWS Lambda writes them, each name open to choice."""

from typing import Any

import pytest

from idempotent_tasks import ConfigurationError, DynamoDBStore, Record, Status
from idempotent_tasks.core.records import Busy, Committed, Finished, Outcome, Released, Renewed, Vanished
from tests.contract.conftest import MakeStore
from tests.support.guarding import KEY, done, grant, request_by

RETENTION = 3600

#: Reserved words, dots, dashes and spaces, which an expression cannot hold as they are.
NAMES: dict[str, Any] = {
    "key_attr": "table",
    "status_attr": "state",
    "expiry_attr": "ttl",
    "in_progress_expiry_attr": "lease.until",
    "data_attr": "result-1",
    "validation_key_attr": "payload hash",
    "attributes": {
        "owner": "values",
        "fence": "number",
        "attempt": "count",
        "generation": "series",
        "task": "name",
        "task_id": "#id",
        "worker": "host",
        "claimed_at": "from",
        "completed_at": "to",
        "codec": "format",
        "error": ":e",
    },
}


def walk_through(store: DynamoDBStore) -> Record:
    """Go through every call and answer of the protocol once, and return the record at the end."""
    claim = grant(store, validation="a")
    assert isinstance(store.claim(request_by("two")), Busy)
    assert isinstance(store.renew(claim, 60, RETENTION), Renewed)
    assert store.release(claim, "Retry") == Released()
    claim = grant(store, "two", validation="a")
    assert store.commit(claim, done(), RETENTION) == Committed()
    record = store.get(KEY)
    assert store.claim(request_by("three")) == Finished(record)
    store.forget(KEY)
    assert store.commit(claim, done(), RETENTION) == Vanished()
    store.restore(record)
    assert store.get(KEY) == record
    return record


def items_of(raw: Any, table: str) -> list[dict[str, Any]]:
    """Return every item of the table as it is on the wire."""
    return list(raw.scan(TableName=table, ConsistentRead=True)["Items"])


class TestNames:
    """Default and other names."""

    def test_a_claim_as_an_item(self, dynamodb: DynamoDBStore, raw: Any) -> None:
        """The attributes of a record in progress and their DynamoDB types."""
        grant(dynamodb, validation="a")
        [item] = items_of(raw, dynamodb.table)
        assert {name: next(iter(value)) for name, value in item.items()} == {
            "id": "S",
            "status": "S",
            "expiration": "N",
            "in_progress_expiration": "N",
            "validation": "S",
            "owner": "S",
            "fence": "N",
            "attempt": "N",
            "runs": "N",
            "generation": "N",
            "unresolved_since": "N",
            "counted_fence": "N",
            "previous_owner": "S",
            "previous_task_id": "S",
            "previous_claimed_at": "N",
            "task": "S",
            "task_id": "S",
            "worker": "S",
            "claimed_at": "N",
            "deferred": "M",
        }
        assert (item["id"], item["status"]) == ({"S": KEY}, {"S": "INPROGRESS"})

    @pytest.mark.parametrize(
        ("data", "stored"),
        [('"done"', {"S": '"done"'}), (b"\x00", {"B": b"\x00"}), (None, None)],
        ids=["S", "B", "none"],
    )
    def test_an_outcome_as_an_item(
        self, dynamodb: DynamoDBStore, raw: Any, data: str | bytes | None, stored: dict[str, Any] | None
    ) -> None:
        """Text is stored as text, bytes as binary, nothing as nothing; a failure has its own status."""
        failure = Outcome(status=Status.FAILED, codec="json", data=data, error="ValueError")
        dynamodb.commit(grant(dynamodb), failure, RETENTION)
        [item] = items_of(raw, dynamodb.table)
        assert item.get("data") == stored
        assert (item["status"], item["codec"], item["error"]) == ({"S": "FAILED"}, {"S": "json"}, {"S": "ValueError"})
        assert next(iter(item["completed_at"])) == "N"

    def test_other_names(self, make_store: MakeStore, raw: Any) -> None:
        """Every attribute can be renamed, to whatever DynamoDB takes, and no default name is left."""
        store = make_store(**NAMES)
        store.create_table()
        walk_through(store)
        [item] = items_of(raw, store.table)
        renamed = {name for key, name in NAMES.items() if key != "attributes"} | set(NAMES["attributes"].values())
        assert set(item) == renamed - {":e"}

    def test_ttl_follows_the_name(self, make_store: MakeStore, raw: Any) -> None:
        """The table's TTL watches the renamed attribute."""
        store = make_store(expiry_attr="ttl")
        store.create_table()
        assert raw.describe_time_to_live(TableName=store.table)["TimeToLiveDescription"]["AttributeName"] == "ttl"

    @pytest.mark.parametrize(
        ("given", "named"),
        [
            ({"key_attr": "id", "sort_key_attr": "id"}, "key_attr and sort_key_attr must differ, both are 'id'"),
            ({"key_attr": "status"}, "status"),
            ({"sort_key_attr": "owner"}, "owner"),
            ({"status_attr": "x", "data_attr": "x"}, "x"),
            ({"attributes": {"fence": "expiration"}}, "expiration"),
            ({"attributes": {"colour": "x"}}, "colour"),
            ({"data_attr": ""}, "empty"),
        ],
        ids=["both-keys", "key", "sort-key", "two", "bookkeeping", "unknown", "empty"],
    )
    def test_names_that_clash(self, given: dict[str, Any], named: str) -> None:
        """Two roles in one attribute, or a role that does not exist, are refused where the store is made."""
        with pytest.raises(ConfigurationError, match=named):
            DynamoDBStore("table", **given)


class TestCompositeKeys:
    """A table with a partition key and a sort key."""

    def test_the_whole_protocol(self, make_store: MakeStore, raw: Any) -> None:
        """The record's key is in the sort key; the partition holds the static value."""
        store = make_store(key_attr="pk", sort_key_attr="sk", static_pk_value="everything")
        store.create_table()
        assert walk_through(store).key == KEY
        [item] = items_of(raw, store.table)
        assert (item["pk"], item["sk"]) == ({"S": "everything"}, {"S": KEY})
        assert "id" not in item

    def test_beside_other_names(self, make_store: MakeStore) -> None:
        """Composite keys and other names go together."""
        store = make_store(**NAMES, sort_key_attr="index", static_pk_value="everything")
        store.create_table()
        walk_through(store)

    def test_the_partition_is_named_after_the_app(self, make_store: MakeStore, raw: Any) -> None:
        """Without a static value each app has a partition of its own, in which its keys meet no other's."""
        store = make_store(key_attr="pk", sort_key_attr="sk")
        store.create_table()
        shop, bank = store.for_app("shop"), store.for_app("bank")
        grant(shop, "one")
        grant(bank, "two")
        owners = {item["pk"]["S"]: item["owner"]["S"] for item in items_of(raw, store.table)}
        assert owners == {"idempotency#shop": "one", "idempotency#bank": "two"}
        assert isinstance(store.for_app("shop").claim(request_by("three")), Busy)

    def test_a_given_partition_stays(self, make_store: MakeStore) -> None:
        """A static value that somebody chose is not replaced by the app's name."""
        store = make_store(key_attr="pk", sort_key_attr="sk", static_pk_value="shared")
        store.create_table()
        grant(store.for_app("shop"), "one")
        assert isinstance(store.for_app("bank").claim(request_by("two")), Busy)

    def test_without_a_sort_key_the_app_is_of_no_importance(self, dynamodb: DynamoDBStore) -> None:
        """The partition key holds the record's key itself."""
        grant(dynamodb.for_app("shop"), "one")
        assert isinstance(dynamodb.for_app("bank").claim(request_by("two")), Busy)
