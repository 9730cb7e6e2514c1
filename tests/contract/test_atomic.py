"""`Atomic`: a body's writes and its record take effect together, or neither does; on each stand-in for DynamoDB."""

import json
from collections.abc import Callable, Iterator
from typing import Any
from uuid import uuid4

import boto3
import pytest
from celery import Celery

from idempotent_tasks import (
    Atomic,
    AtomicWriteError,
    ConfigurationError,
    DynamoDBStore,
    Idempotency,
    IdempotentTask,
    MemoryStore,
    Record,
    ResultEncodingError,
    Status,
    StoreMisconfiguredError,
)
from idempotent_tasks.core import records
from idempotent_tasks.core.atomic import MOST_WRITES
from idempotent_tasks.core.records import Claim, Superseded, Vanished, WritesRefused
from idempotent_tasks.events import Committed, Deferred, Event
from tests.contract.conftest import MakeStore
from tests.support.canned import JSON, Asked, Canned, Said, page
from tests.support.guarding import KEY, done, grant, request_by
from tests.support.inline import InlineWorker
from tests.testbed.wire import Answer, Wire, lose_answer, refuse

RETENTION = 3600
#: A time that does not come, in whatever unit.
FAR = 9_000_000_000_000


class Till:
    """A counter in DynamoDB, and a guarded task whose effect is to add to it."""

    def __init__(self, app: Celery, worker: InlineWorker, store: DynamoDBStore, raw: Any) -> None:
        self.app = app
        self.worker = worker
        self.store = store
        self.raw = raw
        self.table = store.table
        self.runs = 0
        self.seen: list[Event] = []
        self.id = uuid4().hex

    def writes(self, *conditions: str) -> list[dict[str, Any]]:
        """Return a write that adds 1 to the counter, and one for each further condition on it."""
        key = {"id": {"S": "till"}}
        add = {
            "TableName": self.table,
            "Key": key,
            "UpdateExpression": "ADD amount :one",
            "ExpressionAttributeValues": {":one": {"N": "1"}},
        }
        checks = [
            {"TableName": self.table, "Key": {"id": {"S": f"check-{number}"}}, "ConditionExpression": each}
            for number, each in enumerate(conditions)
        ]
        return [{"Update": add}, *({"ConditionCheck": each} for each in checks)]

    def sells(self, body: Callable[[], Any], **options: Any) -> Any:
        """Make the task, whose body is counted."""

        def charge() -> Any:
            self.runs += 1
            return body()

        self.app.tasks.pop("shop.charge", None)
        return self.app.task(charge, name="shop.charge", base=IdempotentTask, shared=False, **options)

    def deliver(self) -> None:
        """Publish the task's message, and run that one message."""
        self.app.tasks["shop.charge"].apply_async(task_id=self.id)
        self.worker.run_next()

    @property
    def amount(self) -> int:
        """What was added."""
        item = self.raw.get_item(TableName=self.table, Key={"id": {"S": "till"}}, ConsistentRead=True).get("Item")
        return int(item["amount"]["N"]) if item else 0

    @property
    def result(self) -> Any:
        """The task's result, or error."""
        return self.worker.result(self.id)


@pytest.fixture
def till(make_store: MakeStore, dynamodb: DynamoDBStore, raw: Any) -> Iterator[Till]:
    """A counter at 0, behind the wire."""
    queue, store = f"queue-{uuid4().hex}", make_store()
    app = Celery("shop", broker="memory://", backend="cache+memory://", set_as_current=False)
    app.conf.update(idempotency_store=store, task_default_queue=queue)
    app.set_current()
    worker = InlineWorker(app, queue)
    till = Till(app, worker, store, raw)
    app.conf.idempotency_observers = [till.seen.append]
    yield till
    worker.close()


class TestDelivery:
    """Whole deliveries."""

    def test_once(self, till: Till, wire: Wire, refusal_read: list[str]) -> None:
        """Both take effect in the second request; a redelivery replays."""
        till.sells(lambda: Atomic("paid", till.writes()))
        till.store.now("#")
        wire.requests.clear()
        till.deliver()
        assert wire.operations() == ["UpdateItem", "TransactWriteItems"]
        wire.requests.clear()
        till.deliver()
        assert wire.operations() == ["UpdateItem", *refusal_read]
        assert (till.runs, till.amount, till.result) == (1, 1, "paid")

    def test_an_answer_that_is_lost(self, till: Till, wire: Wire) -> None:
        """The next try is refused, as the record has its outcome: that was this run's own."""
        till.sells(lambda: Atomic("paid", till.writes("attribute_not_exists(id)")))
        wire.break_nth("TransactWriteItems", 1, lose_answer)
        till.deliver()
        assert wire.operations().count("TransactWriteItems") == 2
        assert (till.runs, till.amount, till.result) == (1, 1, "paid")

    def test_a_condition_that_fails(self, till: Till) -> None:
        """Nothing was written; the task fails with DynamoDB's code for each write, and the next delivery runs."""
        till.sells(lambda: Atomic("paid", till.writes("attribute_not_exists(id)", "attribute_exists(id)")))
        till.deliver()
        error = till.result
        assert isinstance(error, AtomicWriteError)
        assert error.codes == ("None", "None", "ConditionalCheckFailed")
        assert f"ConditionCheck 3 on {till.table!r}: ConditionalCheckFailed" in str(error)
        assert (till.amount, till.store.get(f"shop.charge#{till.id}").free) == (0, True)
        till.sells(lambda: Atomic("paid", till.writes()))
        till.deliver()
        assert (till.runs, till.amount) == (2, 1)

    def test_a_refusal_after_nothing_was_done(self, till: Till) -> None:
        """The body has said so, and has not written either: its next run is no rerun."""
        reruns = []

        def charge(task: Any) -> Atomic:
            reruns.append(task.idempotency.rerun)
            task.idempotency.nothing_done()
            return Atomic("paid", till.writes("attribute_exists(id)"))

        till.app.task(charge, name="shop.charge", base=IdempotentTask, shared=False, bind=True)
        for _ in range(2):
            till.deliver()
            assert isinstance(till.result, AtomicWriteError)
        assert reruns == [False, False]

    def test_no_answer_at_all(self, till: Till, wire: Wire) -> None:
        """Whether it was carried out is not known: the key is released, and the message deferred, not reported."""
        till.sells(lambda: Atomic("paid", till.writes()), idempotency=Idempotency(lease=2), time_limit=None)
        wire.break_when(lambda operation, _: operation == "TransactWriteItems", refuse)
        till.deliver()
        assert [each.reason for each in till.seen if isinstance(each, Deferred)] == ["StoreUnavailableError"]
        assert (till.amount, till.worker.state(till.id)) == (0, "PENDING")
        wire.heal()
        till.worker.drain()
        assert (till.runs, till.amount, till.result) == (2, 1, "paid")

    def test_answers_that_are_all_lost(self, till: Till, wire: Wire) -> None:
        """Only the release shows that it was carried out; observers hear of the outcome all the same, once."""
        till.sells(lambda: Atomic("paid", till.writes()), idempotency=Idempotency(lease=2), time_limit=None)
        wire.break_when(lambda operation, _: operation == "TransactWriteItems", lose_answer)
        till.deliver()
        assert [each.replayable for each in till.seen if isinstance(each, Committed)] == [True]
        assert (till.runs, till.amount, till.result) == (1, 1, "paid")

    def test_contention_passes(self, till: Till, wire: Wire) -> None:
        """DynamoDB cancels a transaction that meets another one: it is tried again."""
        reasons = b'"CancellationReasons":[{"Code":"TransactionConflict"},{"Code":"None"}]'
        body = b'{"__type":"com.amazonaws.dynamodb.v20120810#TransactionCanceledException",' + reasons + b"}"
        cancelled = Answer(400, body, (("Content-Type", "application/x-amz-json-1.0"), ("x-amzn-RequestId", "made-up")))
        till.sells(lambda: Atomic("paid", till.writes()))
        wire.break_nth("TransactWriteItems", 1, lambda _forward: cancelled)
        till.deliver()
        assert (till.amount, till.result) == (1, "paid")

    @pytest.mark.parametrize("ignored", [False, True], ids=["wanted", "ignored"])
    def test_a_result_that_cannot_be_written(self, till: Till, *, ignored: bool) -> None:
        """It is found before anything was written; a result that nobody wants is no reason."""
        till.sells(lambda: Atomic(object(), till.writes()), ignore_result=ignored)
        till.deliver()
        assert till.amount == int(ignored)
        if not ignored:
            assert isinstance(till.result, ResultEncodingError)

    def test_a_deleted_record(self, till: Till) -> None:
        """Nothing was written, and the message is deferred."""

        def body() -> Atomic:
            if till.runs == 1:
                till.store.forget(f"shop.charge#{till.id}")
            return Atomic("paid", till.writes())

        till.sells(body)
        till.deliver()
        assert till.amount == 0
        till.worker.drain()
        assert (till.runs, till.amount, till.result) == (2, 1, "paid")

    def test_a_zombie(self, till: Till) -> None:
        """A run whose key another delivery has finished meanwhile writes nothing, and returns the other's result."""
        amounts = []

        def body() -> Atomic:
            if till.runs == 1:
                till.store.forget(f"shop.charge#{till.id}")
                till.deliver()
                amounts.append(till.amount)
                return Atomic("late", till.writes())
            return Atomic("paid", till.writes())

        till.sells(body)
        till.deliver()
        assert amounts == [1]
        assert (till.runs, till.amount, till.result) == (2, 1, "paid")

    def test_without_a_guard(self, till: Till) -> None:
        """Under the kill switch the writes are carried out all the same, without a record."""
        till.app.conf.idempotency_disabled = True
        till.sells(lambda: Atomic("paid", till.writes()))
        till.deliver()
        assert (till.amount, till.result) == (1, "paid")
        till.id = uuid4().hex
        till.sells(lambda: Atomic("paid", till.writes("attribute_exists(id)")))
        till.deliver()
        assert isinstance(till.result, AtomicWriteError)
        assert till.amount == 1

    def test_a_direct_call_is_a_function(self, till: Till) -> None:
        """It returns what the body does, for a test to look at."""
        task = till.sells(lambda: Atomic("paid", till.writes()))
        assert task().result == "paid"
        assert till.amount == 0

    def test_a_store_without_transactions(self, till: Till) -> None:
        """The task fails, and the key is free."""
        till.app.conf.idempotency_store = MemoryStore()
        till.sells(lambda: Atomic("paid", till.writes()))
        till.deliver()
        assert isinstance(till.result, ConfigurationError)
        assert "has no transactions" in str(till.result)

    @pytest.mark.parametrize("wrong", ["another Region", "its own record", "no such table", "types"])
    def test_what_cannot_be_written(self, till: Till, wrong: str) -> None:
        """It is said before anything was written, where that can be known, and nothing is ever written of it."""
        key = {"id": {"S": f"shop.charge#{till.id}"}}
        item: dict[str, Any] = {"id": {"S": "x"}}
        parameters = {
            "another Region": {"TableName": "arn:aws:dynamodb:mars-1:123456789012:table/orders", "Item": item},
            "its own record": {"TableName": till.table, "Item": key},
            "types": {"TableName": till.table, "Item": {"id": {"N": "17"}}},
            "no such table": {"TableName": "missing", "Item": item},
        }[wrong]
        # A table may come to be there, and is asked for until the claim ends; for the rest a busy machine has time.
        lease = 1 if wrong == "no such table" else 60
        till.sells(lambda: Atomic("paid", [*till.writes(), {"Put": parameters}]), idempotency=Idempotency(lease=lease))
        till.deliver()
        if wrong == "no such table":
            assert [each.reason for each in till.seen if isinstance(each, Deferred)] == ["StoreMisconfiguredError"]
        else:
            kind = AtomicWriteError if wrong == "types" else ConfigurationError
            assert isinstance(till.result, kind)
            assert "Put 2" in str(till.result)
        assert till.amount == 0
        assert till.store.get(f"shop.charge#{till.id}").free


class TestStore:
    """Single calls."""

    @pytest.fixture
    def claim(self, till: Till) -> Claim:
        """A claim of the key."""
        return grant(till.store)

    def test_it_can_be_repeated(self, till: Till, claim: Claim) -> None:
        """The second call changes nothing."""
        for _ in range(2):
            assert till.store.commit_with(claim, done(), RETENTION, till.writes()) == records.Committed()
        assert till.amount == 1
        assert till.store.get(KEY).status is Status.COMPLETED

    def test_after_a_release(self, till: Till, claim: Claim) -> None:
        """A try whose request comes so late writes nothing."""
        till.store.release(claim, "AtomicWriteError")
        assert isinstance(till.store.commit_with(claim, done(), RETENTION, till.writes()), Superseded)
        till.store.forget(KEY)
        assert till.store.commit_with(claim, done(), RETENTION, till.writes()) == Vanished()
        assert till.amount == 0

    def test_a_takeover(self, till: Till, claim: Claim) -> None:
        """Its record is returned."""
        till.store.release(claim, "by hand")
        grant(till.store, "two")
        superseded = till.store.commit_with(claim, done(), RETENTION, till.writes())
        assert isinstance(superseded, Superseded)
        assert superseded.record.owner == "two"
        assert till.amount == 0

    def test_a_refusal(self, till: Till, claim: Claim) -> None:
        """By write, without that of the record."""
        refused = till.store.commit_with(claim, done(), RETENTION, till.writes("attribute_exists(id)"))
        assert refused == WritesRefused(("None", "ConditionalCheckFailed"))
        assert till.store.get(KEY).owner == claim.owner

    def test_the_most_writes(self, till: Till, claim: Claim) -> None:
        """A whole transaction, beside the record."""
        writes = [{"Put": {"TableName": till.table, "Item": {"id": {"S": f"n-{n}"}}}} for n in range(MOST_WRITES)]
        assert till.store.commit_with(claim, done(), RETENTION, Atomic(None, writes).writes) == records.Committed()

    def test_other_layouts(self, make_store: MakeStore) -> None:
        """A composite key and other names."""
        store = make_store(sort_key_attr="sort", attributes={"owner": "holder"}, data_attr="result")
        store.create_table()
        claim = grant(store)
        put = {"TableName": store.table, "Item": {"id": {"S": "orders"}, "sort": {"S": "17"}}}
        assert store.commit_with(claim, done(), RETENTION, [{"Put": put}]) == records.Committed()
        assert store.get(KEY).data == done().data


class TestTransactionsThatAreInvalid:
    """DynamoDB takes the request for none, before it looks at conditions: no stand-in has such a table."""

    @pytest.fixture
    def commit(self, canned: Canned, session: boto3.Session) -> Callable[..., Any]:
        """Commit with a write, to a table that is described so, where transactions get this error."""

        def commit(code: str, **described: str) -> Any:
            store = DynamoDBStore("records", endpoint_url=canned.endpoint, session=session, fast=False)
            held = Record(key=KEY, status=Status.INPROGRESS, expiration=FAR, in_progress_expiration=FAR, owner="one")
            bodies = {
                "TransactWriteItems": {"__type": f"com.amazon.coral.validate#{code}", "message": "made up"},
                "DescribeTable": {"Table": {"TableName": "records", **described}},
                "GetItem": {"Item": store.schema.item(held)},
            }

            def answer(asked: Asked) -> Said:
                body = json.dumps(bodies[operation_of(asked)]).encode()
                return Said(page(body, JSON, status=400 if b"__type" in body else 200))

            canned.answer = answer
            claim = Claim(request=request_by("one"), fence=1, attempt=1, in_progress_expiration=FAR)
            put = {"Put": {"TableName": "tills", "Item": {"id": {"S": "till"}}}}
            return store.commit_with(claim, done(), RETENTION, [put])

        return commit

    def test_a_global_table_with_strong_consistency(self, commit: Callable[..., Any]) -> None:
        """It says so, and not that a write is wrong: another table helps, and nothing else."""
        with pytest.raises(StoreMisconfiguredError, match=r"'records' is a global .* which has no transactions"):
            commit("ValidationException", MultiRegionConsistency="STRONG")

    @pytest.mark.parametrize("described", [{}, {"MultiRegionConsistency": "EVENTUAL"}], ids=["one", "global"])
    def test_any_other_table(self, commit: Callable[..., Any], described: dict[str, str]) -> None:
        """Then one of the writes is wrong, and which one DynamoDB does not say."""
        assert commit("ValidationException", **described) == WritesRefused(("ValidationException",))

    def test_an_error_of_another_kind(self, commit: Callable[..., Any], canned: Canned) -> None:
        """It is not taken for one of the writes, and nobody asks for the table."""
        with pytest.raises(StoreMisconfiguredError, match="AccessDenied"):
            commit("AccessDeniedException", MultiRegionConsistency="STRONG")
        assert "DescribeTable" not in map(operation_of, canned.requests)


def operation_of(asked: Asked) -> str:
    """Return the operation of a request, such as ``GetItem``."""
    return str(asked.headers["X-Amz-Target"]).rpartition(".")[2]
