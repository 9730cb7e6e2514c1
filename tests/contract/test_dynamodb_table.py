"""The table: made by one call that may be repeated, by many at once, and checked before a worker starts."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import pytest
from botocore.exceptions import ClientError

from idempotent_tasks import DynamoDBStore, StoreMisconfiguredError, StoreUnavailableError
from idempotent_tasks.core.records import Busy
from tests.contract.conftest import MakeStore, MovableClock
from tests.support.guarding import grant, request_by
from tests.testbed.wire import Answer, Fault, Forward, Wire, answer, lose_answer

KMS_KEY = "arn:aws:kms:eu-west-1:123456789012:key/11111111-2222-3333-4444-555555555555"
#: Both calls that must find a wrong table.
CHECKS: dict[str, Callable[[DynamoDBStore], object]] = {
    "create_table": DynamoDBStore.create_table,
    "verify": DynamoDBStore.verify,
}

each_check = pytest.mark.parametrize("check", CHECKS.values(), ids=CHECKS)


def make_table(raw: Any, table: str, kind: str = "S", **keys: str) -> None:
    """Make a table past the library: attribute name to ``HASH`` or ``RANGE``, all of one type."""
    raw.create_table(
        TableName=table,
        KeySchema=[{"AttributeName": name, "KeyType": role} for name, role in keys.items()],
        AttributeDefinitions=[{"AttributeName": name, "AttributeType": kind} for name in keys],
        BillingMode="PAY_PER_REQUEST",
    )


def still_being_made(forward: Forward) -> Answer | None:
    """Answer a DescribeTable as AWS does for some seconds after CreateTable: a fault for the wire."""
    reply = forward()
    headers = tuple(pair for pair in reply.headers if pair[0].lower() != "x-amz-crc32")
    return replace(reply, body=reply.body.replace(b'"ACTIVE"', b'"CREATING"'), headers=headers)


def then_fail(message: str) -> Fault:
    """Let the server apply the request, then answer with a ValidationException: somebody else was faster."""
    refused = answer(400, "ValidationException", message)

    def fault(forward: Forward) -> Answer | None:
        forward()
        return refused(forward)

    return fault


class TestProtection:
    """What `create_table` gives a table beside its schema, when it is new or when it is there already."""

    @pytest.mark.parametrize("is_new", [True, False], ids=["new", "there"])
    def test_what_is_asked_for(self, make_store: MakeStore, raw: Any, wire: Wire, is_new: bool) -> None:
        """DynamoDB refuses to delete the table, and encrypts it with the key; asking again changes nothing."""
        store = make_store()
        if not is_new:
            store.create_table()
        wire.clear()
        store.create_table(deletion_protection=True, kms_key=KMS_KEY)
        assert wire.operations().count("UpdateTable") == (0 if is_new else 2)
        wire.clear()
        store.create_table(deletion_protection=True, kms_key=KMS_KEY)
        assert set(wire.operations()) == {"DescribeTable", "DescribeTimeToLive"}
        described = raw.describe_table(TableName=store.table)["Table"]
        assert described["SSEDescription"]["KMSMasterKeyArn"] == KMS_KEY
        with pytest.raises(ClientError, match="protect"):
            raw.delete_table(TableName=store.table)

    def test_what_is_not_asked_for(self, make_store: MakeStore, raw: Any) -> None:
        """A new table has neither; a table that has them keeps them."""
        store = make_store()
        store.create_table()
        assert not raw.describe_table(TableName=store.table)["Table"].get("DeletionProtectionEnabled")
        store.create_table(deletion_protection=True)
        store.create_table()
        assert raw.describe_table(TableName=store.table)["Table"]["DeletionProtectionEnabled"] is True


class TestCreateTable:
    """`create_table` on a new table and on one that is there."""

    def test_a_new_table(self, make_store: MakeStore, raw: Any) -> None:
        """One string key, on-demand billing, TTL on ``expiration``, ready for a claim."""
        store = make_store()
        store.create_table()
        store.verify()
        described = raw.describe_table(TableName=store.table)["Table"]
        assert described["KeySchema"] == [{"AttributeName": "id", "KeyType": "HASH"}]
        assert described["AttributeDefinitions"] == [{"AttributeName": "id", "AttributeType": "S"}]
        assert described["BillingModeSummary"]["BillingMode"] == "PAY_PER_REQUEST"
        ttl = raw.describe_time_to_live(TableName=store.table)["TimeToLiveDescription"]
        assert ttl == {"TimeToLiveStatus": "ENABLED", "AttributeName": "expiration"}
        grant(store)

    def test_twice(self, dynamodb: DynamoDBStore, wire: Wire) -> None:
        """The second call finds all in order: it writes nothing and the records stay."""
        grant(dynamodb)
        wire.clear()
        dynamodb.create_table()
        assert not {"CreateTable", "UpdateTimeToLive"} & set(wire.operations())
        assert isinstance(dynamodb.claim(request_by("two")), Busy)

    def test_a_table_without_ttl_is_completed(self, make_store: MakeStore, raw: Any) -> None:
        """A table that somebody made by hand gets what it lacks."""
        store = make_store()
        make_table(raw, store.table, id="HASH")
        store.create_table()
        store.verify()

    def test_by_many_at_once(self, make_store: MakeStore) -> None:
        """Eight workers that start together make one table, and none of them fails."""
        together = threading.Barrier(8)

        def create(_: int) -> None:
            store = make_store()
            together.wait(30)
            store.create_table()
            store.verify()

        with ThreadPoolExecutor(8) as pool:
            assert list(pool.map(create, range(8))) == [None] * 8

    def test_another_creator_makes_the_table_first(self, make_store: MakeStore, wire: Wire) -> None:
        """Between look and creation somebody else made the table: that is what was wanted."""
        store = make_store()
        make_store().create_table()
        wire.clear()
        wire.break_nth("DescribeTable", 1, answer(400, "ResourceNotFoundException"))
        store.create_table()
        assert wire.operations().count("CreateTable") == 1

    def test_another_creator_turns_ttl_on_first(self, make_store: MakeStore, wire: Wire, raw: Any) -> None:
        """AWS refuses to enable an enabled TTL: that is what was wanted, too."""
        store = make_store()
        make_table(raw, store.table, id="HASH")
        wire.break_nth("UpdateTimeToLive", 1, then_fail("TimeToLive is already enabled"))
        store.create_table()
        store.verify()

    def test_it_waits_for_a_table_that_somebody_else_makes(
        self, make_store: MakeStore, wire: Wire, raw: Any, clock: MovableClock
    ) -> None:
        """A table that is found while AWS still makes it takes no TTL yet: it is awaited first."""
        store = make_store(clock=clock)
        make_table(raw, store.table, id="HASH")
        wire.break_nth("DescribeTable", 1, still_being_made)
        wire.break_nth("DescribeTable", 2, still_being_made)
        store.create_table()
        assert wire.operations()[:4] == ["DescribeTable"] * 3 + ["DescribeTimeToLive"]

    def test_a_table_that_is_never_ready(self, make_store: MakeStore, wire: Wire, clock: MovableClock) -> None:
        """After a minute the call gives up, and says that it may be repeated."""
        store = make_store(clock=clock)
        wire.break_when(lambda operation, nth: operation == "DescribeTable" and nth > 1, still_being_made)
        with pytest.raises(StoreUnavailableError, match="call create_table"):
            store.create_table()
        assert clock.offset_seconds >= 60

    @pytest.mark.parametrize("operation", ["CreateTable", "UpdateTimeToLive"])
    def test_a_lost_answer(self, make_store: MakeStore, wire: Wire, operation: str) -> None:
        """After an answer that was lost the call is repeated and finds its own work."""
        store = make_store()
        wire.break_nth(operation, 1, lose_answer)
        with pytest.raises(StoreUnavailableError):
            store.create_table()
        store.create_table()
        store.verify()

    def test_without_the_permission(self, make_store: MakeStore, wire: Wire) -> None:
        """The missing action is named as a policy names it."""
        wire.break_nth("UpdateTimeToLive", 1, answer(400, "AccessDeniedException"))
        with pytest.raises(StoreMisconfiguredError, match=r"dynamodb:UpdateTimeToLive.*allow the action"):
            make_store().create_table()


class TestWrongTable:
    """A table that cannot hold this store's records."""

    def test_no_table(self, make_store: MakeStore) -> None:
        """A check and a claim say what is missing and how to make it."""
        store = make_store()
        for call in (store.verify, lambda: store.claim(request_by())):
            with pytest.raises(StoreMisconfiguredError, match="create-table") as caught:
                call()
            assert store.table in str(caught.value)

    @each_check
    @pytest.mark.parametrize(
        ("kind", "keys"),
        [("S", {"pk": "HASH"}), ("N", {"id": "HASH"}), ("S", {"id": "HASH", "sk": "RANGE"})],
        ids=["other-name", "number", "composite"],
    )
    def test_another_key(
        self,
        make_store: MakeStore,
        raw: Any,
        check: Callable[[DynamoDBStore], None],
        kind: str,
        keys: dict[str, str],
    ) -> None:
        """The error shows the key that the table has, the one that is needed, and the options."""
        store = make_store()
        make_table(raw, store.table, kind, **keys)
        with pytest.raises(StoreMisconfiguredError) as caught:
            check(store)
        for name in (store.table, f"'{next(iter(keys))}', '{kind}'", "'id', 'S'", "key_attr", "sort_key_attr"):
            assert name in str(caught.value)

    @each_check
    def test_a_simple_key_where_a_composite_one_is_needed(
        self, make_store: MakeStore, raw: Any, check: Callable[[DynamoDBStore], None]
    ) -> None:
        """A store with a sort key needs a table with one."""
        store = make_store(sort_key_attr="sk")
        make_table(raw, store.table, id="HASH")
        with pytest.raises(StoreMisconfiguredError, match="'RANGE', 'sk', 'S'"):
            check(store)

    def test_another_key_at_a_claim(self, make_store: MakeStore, raw: Any) -> None:
        """Where nobody checked, the first request finds it."""
        store = make_store()
        make_table(raw, store.table, pk="HASH")
        with pytest.raises(StoreMisconfiguredError, match="key schema") as caught:
            store.claim(request_by())
        assert store.table in str(caught.value)

    def test_no_ttl(self, make_store: MakeStore, raw: Any) -> None:
        """Without TTL the table would grow indefinitely."""
        store = make_store()
        make_table(raw, store.table, id="HASH")
        with pytest.raises(StoreMisconfiguredError, match=r"no TTL.*'expiration'.*create_table"):
            store.verify()

    @each_check
    def test_ttl_on_another_attribute(
        self, make_store: MakeStore, dynamodb: DynamoDBStore, check: Callable[[DynamoDBStore], None]
    ) -> None:
        """A table has one TTL attribute: another store's is not changed, but named."""
        with pytest.raises(StoreMisconfiguredError, match=r"'expiration'.*'ttl'"):
            check(make_store(expiry_attr="ttl"))
        dynamodb.verify()
