"""What the protocol costs, counted on the wire; and how much a commit takes."""

from typing import Any

import pytest

from idempotent_tasks import DynamoDBStore, Status, StoreError
from idempotent_tasks.core.records import Busy, Committed, Finished, Outcome, Superseded, reservation_owner
from tests.contract.conftest import MakeStore
from tests.support.guarding import KEY, done, grant, request_by
from tests.testbed.wire import Wire

RETENTION = 3600


@pytest.fixture
def warm(dynamodb: DynamoDBStore, wire: Wire) -> DynamoDBStore:
    """A store that this process has used before."""
    grant(dynamodb, key="shop.charge#other")
    wire.clear()
    return dynamodb


class TestRequestCounts:
    """Every request crosses the wire, which counts it."""

    def test_nothing_is_sent_before_the_first_call(self, make_store: MakeStore, wire: Wire) -> None:
        """Neither a store nor its form for an app opens a connection."""
        store = make_store()
        store.for_app("shop")
        repr(store)
        assert wire.operations() == []

    def test_a_first_run_costs_two(self, warm: DynamoDBStore, wire: Wire) -> None:
        """Claim and commit, one write each, and no read before a write."""
        warm.commit(grant(warm), done(), RETENTION)
        assert wire.operations() == ["UpdateItem", "UpdateItem"]

    def test_a_replay_costs_one(self, warm: DynamoDBStore, wire: Wire, refusal_read: list[str]) -> None:
        """The refusal brings the record; from a server that keeps it back, one read fetches it."""
        warm.commit(grant(warm), done(), RETENTION)
        wire.clear()
        assert isinstance(warm.claim(request_by("two")), Finished)
        assert wire.operations() == ["UpdateItem", *refusal_read]

    def test_a_busy_key_costs_one(self, warm: DynamoDBStore, wire: Wire, refusal_read: list[str]) -> None:
        """The holder's record comes with the refusal, like an outcome."""
        grant(warm)
        wire.clear()
        assert isinstance(warm.claim(request_by("two")), Busy)
        assert wire.operations() == ["UpdateItem", *refusal_read]

    def test_a_reservation_costs_one_more(self, warm: DynamoDBStore, wire: Wire, refusal_read: list[str]) -> None:
        """One write at the producer, for the key or for whose it is; the delivery claims and commits as ever."""
        reserver = request_by(reservation_owner("id-one"), task_id="id-one")
        warm.claim(reserver)
        warm.commit(grant(warm), done(), RETENTION)
        assert wire.operations() == ["UpdateItem"] * 3
        wire.clear()
        assert isinstance(warm.claim(request_by(reservation_owner("id-two"), task_id="id-two")), Finished)
        assert wire.operations() == ["UpdateItem", *refusal_read]

    def test_a_superseded_commit_costs_one(self, warm: DynamoDBStore, wire: Wire, refusal_read: list[str]) -> None:
        """The other's record comes with the refusal of the commit."""
        claim = grant(warm)
        warm.forget(KEY)
        grant(warm, "two")
        wire.clear()
        assert isinstance(warm.commit(claim, done(), RETENTION), Superseded)
        assert wire.operations() == ["UpdateItem", *refusal_read]

    def test_renew_and_release_cost_one(self, warm: DynamoDBStore, wire: Wire) -> None:
        """One write each."""
        claim = grant(warm)
        wire.clear()
        warm.renew(claim, 60, RETENTION)
        warm.release(claim, "Retry")
        assert wire.operations() == ["UpdateItem", "UpdateItem"]

    def test_what_is_lost_costs_no_more(self, warm: DynamoDBStore, wire: Wire, refusal_read: list[str]) -> None:
        """A renewal or release that is refused looks whether another try of it was carried out."""
        claim = grant(warm)
        warm.forget(KEY)
        grant(warm, "two")
        wire.clear()
        warm.renew(claim, 60, RETENTION)
        warm.release(claim, "Retry")
        assert wire.operations() == ["UpdateItem", *refusal_read] * 2

    def test_the_first_use_asks_for_the_time(self, dynamodb: DynamoDBStore, make_store: MakeStore, wire: Wire) -> None:
        """A first claim is preceded by one cheap read that shows the clock, unless an answer showed it before."""
        grant(dynamodb)
        assert wire.operations() == ["UpdateItem"]
        wire.clear()
        store = make_store()
        grant(store, "two", key="shop.charge#another")
        assert wire.operations() == ["GetItem", "UpdateItem"]
        assert not wire.requests[0].body.get("ConsistentRead")
        grant(store.for_app("bank"), "two", key="shop.charge#other")
        assert wire.operations() == ["GetItem", "UpdateItem", "UpdateItem"]

    def test_reads_that_decide_are_consistent(self, dynamodb: DynamoDBStore, wire: Wire) -> None:
        """A record is never read from a replica that lags."""
        grant(dynamodb)
        wire.clear()
        dynamodb.get(KEY)
        dynamodb.claim(request_by("two"))
        reads = [request.body for request in wire.requests if request.operation == "GetItem"]
        assert all(body["ConsistentRead"] is True for body in reads)

    def test_every_write_is_conditional(self, dynamodb: DynamoDBStore, wire: Wire) -> None:
        """No write of the protocol can hit a record that it does not mean."""
        claim = grant(dynamodb)
        dynamodb.renew(claim, 60, RETENTION)
        dynamodb.release(claim, "Retry")
        dynamodb.commit(claim, done(), RETENTION)
        record = dynamodb.get(KEY)
        dynamodb.forget(KEY)
        wire.clear()
        dynamodb.restore(record)
        grant(dynamodb, "two", key="shop.charge#other")
        writes = [request for request in wire.requests if request.operation != "GetItem"]
        assert [request.operation for request in writes] == ["PutItem", "UpdateItem"]
        assert all(request.body["ConditionExpression"] for request in writes)


class TestSize:
    """DynamoDB takes items of 400 KB, the names of the attributes included."""

    @pytest.mark.parametrize("character", ["x", "ä", "\U0001f600"], ids=["1-byte", "2-bytes", "4-bytes"])
    def test_the_limit_that_a_store_names_holds(self, make_store: MakeStore, character: str) -> None:
        """The largest data fits beside the longest key and long names of task, worker and attributes."""
        roles = (
            "owner",
            "fence",
            "attempt",
            "task",
            "task_id",
            "worker",
            "claimed_at",
            "completed_at",
            "codec",
            "error",
        )
        names: dict[str, Any] = {
            "key_attr": "k" * 255,
            "sort_key_attr": "s" * 255,
            "data_attr": "d" * 255,
            "attributes": {role: f"{role:x<255}" for role in roles},
        }
        store = make_store(**names, static_pk_value="p" * 2048)
        store.create_table()
        key = "shop.charge#".ljust(1024, "k")
        long = {name: name.ljust(512, "x") for name in ("task", "task_id", "worker")}
        claim = grant(store, key=key, validation="v" * 128, **long)
        data = character * (store.max_data_bytes // len(character.encode()))
        outcome = Outcome(status=Status.FAILED, codec="json", data=data, error="e" * 1024)
        assert store.commit(claim, outcome, RETENTION) == Committed()
        answer = store.claim(request_by("two", key=key))
        assert isinstance(answer, Finished)
        assert answer.record.data == data

    def test_binary_data(self, dynamodb: DynamoDBStore) -> None:
        """The limit counts bytes of binary data as they are, not as the wire encodes them."""
        data = b"\xff" * dynamodb.max_data_bytes
        outcome = Outcome(status=Status.COMPLETED, codec="x", data=data)
        assert dynamodb.commit(grant(dynamodb), outcome, RETENTION) == Committed()

    def test_beyond_the_limit_nothing_is_stored(self, dynamodb: DynamoDBStore) -> None:
        """DynamoDB refuses an item of more than 400 KB; the claim stays as it was."""
        claim = grant(dynamodb)
        held = dynamodb.get(KEY)
        with pytest.raises(StoreError, match="size"):
            dynamodb.commit(claim, done("x" * 400 * 1024), RETENTION)
        assert dynamodb.get(KEY) == held
