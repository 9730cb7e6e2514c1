"""Steps in DynamoDB: items as they lie in the table, lost answers, late runs, sizes, other writers of the record."""

import random
import string
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any
from uuid import uuid4

import boto3
import pytest
from celery import Celery

from idempotent_tasks import (
    DynamoDBStore,
    IdempotentTask,
    RecordNotFoundError,
    ResultEncodingError,
    ResultUnavailableError,
    S3Results,
    StoreUnavailableError,
)
from idempotent_tasks.core.records import (
    MOST_STEPS,
    Busy,
    Claim,
    Committed,
    KeptSteps,
    Lost,
    Step,
    step_id,
    step_item_keys,
)
from tests.conftest import REGION
from tests.contract.conftest import MakeLambda, MakeStore, MovableClock
from tests.support.capacity import size_of
from tests.support.guarding import KEY, done, grant, request_by
from tests.support.inline import InlineWorker
from tests.support.older_version import OlderWorker
from tests.support.powertools import KEY as SHARED_KEY
from tests.testbed.wire import Answer, Fault, Forward, Request, Wire, lose_answer, refuse

KB = 1024
RETENTION = 3600
#: Seconds: of a claim that is over at once.
OVER = -1
SMALL = Step(inputs="4f1c", codec="json", data='"paid"')
LARGE = Step(inputs="8ea6", codec="json+zlib", data=b"\x00\xff" * 3000)
#: What is renamed, to what an expression cannot hold as it is.
NAMES: dict[str, Any] = {
    "expiry_attr": "ttl",
    "data_attr": "result-1",
    "attributes": {
        "fence": "number",
        "codec": "format",
        "steps": "values",
        "steps_elsewhere": "#others",
        "step": "name",
        "inputs": "from",
    },
}
only_ministack = pytest.mark.parametrize("dynamodb_endpoint", ["ministack"], indirect=True)


def noise(length: int) -> str:
    """Return so many characters, which compress to three quarters."""
    return "".join(random.Random(17).choices(string.ascii_letters + string.digits + "+/", k=length))


def keep(store: DynamoDBStore, claim: Claim, name: str, step: Step, kept: KeptSteps | None = None) -> KeptSteps:
    """Keep a step, which must be kept."""
    answer = store.keep_step(claim, name, step, claim.steps if kept is None else kept)
    assert isinstance(answer, KeptSteps), answer
    return answer


def items_of(raw: Any, table: str, key: str = "id") -> dict[str, Any]:
    """Return every item of the table as it is on the wire, by its key."""
    return {item[key]["S"]: item for item in raw.scan(TableName=table, ConsistentRead=True)["Items"]}


class TestItems:
    """What lies in the table."""

    def test_in_the_record(self, dynamodb: DynamoDBStore, raw: Any) -> None:
        """A map by name; each step has the digest of its arguments, its codec, and data or an error."""
        claim = grant(dynamodb)
        kept = keep(dynamodb, claim, "charge 17", SMALL)
        kept = keep(dynamodb, claim, "zipped", Step(inputs="i", codec="json+zlib", data=b"\x00"), kept)
        keep(dynamodb, claim, "odd", Step(inputs="i", codec="none", error="too large"), kept)
        [item] = items_of(raw, dynamodb.table).values()
        assert item["steps"] == {
            "M": {
                "charge 17": {"M": {"inputs": {"S": "4f1c"}, "codec": {"S": "json"}, "data": {"S": '"paid"'}}},
                "zipped": {"M": {"inputs": {"S": "i"}, "codec": {"S": "json+zlib"}, "data": {"B": b"\x00"}}},
                "odd": {"M": {"inputs": {"S": "i"}, "codec": {"S": "none"}, "error": {"S": "too large"}}},
            }
        }
        assert "steps_elsewhere" not in item
        assert "step" not in item

    def test_beside_the_record(self, dynamodb: DynamoDBStore, raw: Any) -> None:
        """An item of its own, which TTL deletes; the record names it by the digest of its name."""
        claim = grant(dynamodb)
        keep(dynamodb, claim, "report", LARGE)
        items = items_of(raw, dynamodb.table)
        assert items.keys() == {KEY, f"{KEY}#{claim.generation}#845e91831319e89c"}
        assert items[KEY]["steps_elsewhere"] == {"SS": [step_id("report")]}
        assert "steps" not in items[KEY]
        step = items[f"{KEY}#{claim.generation}#{step_id('report')}"]
        expiration = int(step.pop("expiration")["N"])
        assert abs(expiration - claim.claimed_at / 1000 - RETENTION) < 60
        assert step == {
            "id": {"S": f"{KEY}#{claim.generation}#{step_id('report')}"},
            "step": {"S": "report"},
            "fence": {"N": str(claim.fence)},
            "inputs": {"S": "8ea6"},
            "codec": {"S": "json+zlib"},
            "data": {"B": LARGE.data},
        }

    def test_until_the_outcome(self, dynamodb: DynamoDBStore, raw: Any) -> None:
        """It removes both attributes; the items are left to TTL, and no later generation reads them."""
        claim = grant(dynamodb)
        kept = keep(dynamodb, claim, "charge", SMALL)
        keep(dynamodb, claim, "report", LARGE, kept)
        dynamodb.commit(claim, done(), RETENTION)
        items = items_of(raw, dynamodb.table)
        assert len(items) == 2
        assert not {"steps", "steps_elsewhere"} & items[KEY].keys()

    def test_other_names(self, make_store: MakeStore, raw: Any) -> None:
        """Each attribute can be renamed; the names inside the map of steps are fixed."""
        store = make_store(**NAMES)
        store.create_table()
        claim = grant(store)
        kept = keep(store, claim, "charge", SMALL)
        kept = keep(store, claim, "refund", SMALL, kept)
        keep(store, claim, "report", LARGE, kept)
        two = grant(store, "two", lease_seconds=30) if store.release(claim, "Retry") else claim
        assert two.steps.here == {"charge": SMALL, "refund": SMALL}
        assert store.kept_step(two, "report") == LARGE
        items = items_of(raw, store.table)
        ((step_key, step),) = ((key, item) for key, item in items.items() if key != KEY)
        assert step_key == f"{KEY}#{claim.generation}#{step_id('report')}"
        assert step.keys() == {"id", "name", "number", "ttl", "from", "format", "result-1"}
        assert {"values", "#others"} <= items[KEY].keys()
        assert items[KEY]["values"]["M"]["charge"]["M"].keys() == {"inputs", "codec", "data"}

    def test_composite_keys(self, make_store: MakeStore, raw: Any) -> None:
        """A step's item lies in the record's partition."""
        store = make_store(key_attr="pk", sort_key_attr="sk", static_pk_value="shop")
        store.create_table()
        claim = grant(store)
        keep(store, claim, "report", LARGE)
        store.release(claim, "Retry")
        assert store.kept_step(grant(store, "two"), "report") == LARGE
        items = items_of(raw, store.table, "sk")
        assert items.keys() == {KEY, f"{KEY}#{claim.generation}#{step_id('report')}"}
        assert {item["pk"]["S"] for item in items.values()} == {"shop"}

    @pytest.mark.parametrize("attribute", ["steps", "steps_elsewhere"])
    def test_what_somebody_else_wrote(self, dynamodb: DynamoDBStore, raw: Any, attribute: str) -> None:
        """An attribute of another type names itself."""
        grant(dynamodb)
        raw.update_item(
            TableName=dynamodb.table,
            Key={"id": {"S": KEY}},
            UpdateExpression="SET #name = :odd",
            ExpressionAttributeNames={"#name": attribute},
            ExpressionAttributeValues={":odd": {"N": "1"}},
        )
        with pytest.raises(Exception, match=f"attribute '{attribute}'"):
            dynamodb.get(KEY)


#: A step, what the record has before it, the operation that fails, and which of these it is.
PLACES = {
    "first in the record": ("charge", SMALL, False, "UpdateItem"),
    "later in the record": ("refund", SMALL, True, "UpdateItem"),
    "its own item": ("report", LARGE, True, "PutItem"),
    "named by the record": ("report", LARGE, True, "UpdateItem"),
}


class TestFaults:
    """Requests and answers that are lost on their way."""

    @pytest.mark.parametrize("fault", [refuse, lose_answer], ids=["request", "answer"])
    @pytest.mark.parametrize("place", PLACES)
    def test_a_call_is_repeated(self, dynamodb: DynamoDBStore, wire: Wire, place: str, fault: Fault) -> None:
        """The step is kept once, with what it was, whichever of its requests was lost and how."""
        name, step, has_others, operation = PLACES[place]
        claim = grant(dynamodb)
        before = keep(dynamodb, claim, "others", SMALL) if has_others else claim.steps
        wire.clear()
        wire.break_nth(operation, 1, fault)
        with pytest.raises(StoreUnavailableError):
            dynamodb.keep_step(claim, name, step, before)
        kept = keep(dynamodb, claim, name, step, before)
        assert kept == before.including(name, step)
        assert dynamodb.get(KEY).steps == kept
        if step is LARGE:
            assert dynamodb.kept_step(claim, name) == LARGE
            assert wire.operations().count("PutItem") == 2

    @pytest.mark.parametrize("fault", [refuse, lose_answer], ids=["request", "answer"])
    def test_a_claim_is_repeated(self, dynamodb: DynamoDBStore, wire: Wire, fault: Fault) -> None:
        """It brings the steps, whichever of its tries was granted."""
        kept = keep(dynamodb, grant(dynamodb, lease_seconds=OVER), "charge", SMALL)
        wire.clear()
        wire.break_nth("UpdateItem", 1, fault)
        with pytest.raises(StoreUnavailableError):
            dynamodb.claim(request_by("two"))
        assert grant(dynamodb, "two").steps == kept

    def test_steps_that_the_caller_did_not_know_of(self, dynamodb: DynamoDBStore) -> None:
        """Of another thread of the body: both are kept, whoever was first."""
        claim = grant(dynamodb)
        one = keep(dynamodb, claim, "one", SMALL)
        two = keep(dynamodb, claim, "two", SMALL, KeptSteps())
        assert two == dynamodb.get(KEY).steps == one.including("two", SMALL)

    def test_what_was_kept_first_stays(self, dynamodb: DynamoDBStore) -> None:
        """The answer to its write was lost, and the result of the next try has another address in the bucket."""
        claim = grant(dynamodb)
        others = keep(dynamodb, claim, "others", SMALL)
        first = keep(dynamodb, claim, "charge", replace(SMALL, data="s3://one"), others)
        again = keep(dynamodb, claim, "charge", replace(SMALL, data="s3://two"), others)
        assert again == first == dynamodb.get(KEY).steps

    def test_a_record_that_changes_each_time(self, dynamodb: DynamoDBStore, wire: Wire, raw: Any) -> None:
        """It is not tried indefinitely: the store is unavailable for now, and names task and key."""
        claim, other = grant(dynamodb), DynamoDBStore(dynamodb.table, client=raw)
        keep(dynamodb, claim, "others", SMALL)

        def change_first(request: Request) -> Fault | None:
            def fault(forward: Forward) -> Answer:
                if "attribute_not_exists(#steps)" in request.body["ConditionExpression"]:
                    keep(other, claim, "others", SMALL, KeptSteps())
                else:
                    raw.update_item(TableName=dynamodb.table, Key={"id": {"S": KEY}}, UpdateExpression="REMOVE steps")
                return forward()

            return fault if request.operation == "UpdateItem" else None

        wire.clear()
        wire.decide_by(change_first)
        with pytest.raises(StoreUnavailableError, match="3 tries") as caught:
            dynamodb.keep_step(claim, "charge", SMALL, KeptSteps(here={"others": SMALL}))
        assert (caught.value.task, caught.value.key) == ("shop.charge", KEY)


class TestLateRuns:
    """A run whose key has a later one, and what it can still write."""

    OTHER = Step(inputs="late", codec="json+zlib", data=b"late" * 2000)

    @pytest.mark.parametrize("operation", ["PutItem", "UpdateItem"])
    def test_overtaken_in_a_step(self, dynamodb: DynamoDBStore, wire: Wire, raw: Any, operation: str) -> None:
        """Before or after its own item, by a run that keeps the same step: that one's is found, whoever was first."""
        late = grant(dynamodb, lease_seconds=OVER)
        other = DynamoDBStore(dynamodb.table, client=raw)
        successors: list[Claim] = []

        def overtake(forward: Forward) -> Answer:
            successors.append(grant(other, "two"))
            keep(other, successors[0], "report", LARGE)
            return forward()

        wire.clear()
        wire.break_nth(operation, 1, overtake)
        assert dynamodb.keep_step(late, "report", self.OTHER, late.steps) == Lost()
        assert dynamodb.kept_step(successors[0], "report") == LARGE
        assert dynamodb.keep_step(late, "report", self.OTHER, late.steps) == Lost()
        assert dynamodb.kept_step(successors[0], "report") == LARGE

    def test_its_item_is_overwritten(self, dynamodb: DynamoDBStore) -> None:
        """Of a late run that has written an item which no record names: the next run's step is its own."""
        late = grant(dynamodb, lease_seconds=OVER)
        claim = grant(dynamodb, "two")
        assert dynamodb.keep_step(late, "report", self.OTHER, late.steps) == Lost()
        assert grant(dynamodb, "two").steps == KeptSteps()
        keep(dynamodb, claim, "report", LARGE)
        assert dynamodb.kept_step(claim, "report") == LARGE


class TestHowLong:
    """For how long an item beside the record is kept."""

    @pytest.fixture
    def store(self, make_store: MakeStore, dynamodb: DynamoDBStore, wire: Wire, clock: MovableClock) -> DynamoDBStore:
        """A store whose clock, and DynamoDB's with it, moves as the test says."""
        wire.break_all(clock.shift)
        return make_store(clock=clock)

    def test_a_read_prolongs_it(self, store: DynamoDBStore, clock: MovableClock, wire: Wire, raw: Any) -> None:
        """Where half of its time is over: runs of the key may go on for longer than the item was to be kept."""
        claim = grant(store, unresolved_seconds=10_000)
        keep(store, claim, "report", LARGE)
        key = step_item_keys(store.get(KEY))[step_id("report")]
        first = int(items_of(raw, store.table)[key]["expiration"]["N"])
        for advance, operations, later in ((4_900, ["GetItem"], 0), (200, ["GetItem", "UpdateItem"], 5_100)):
            clock.advance(advance)
            wire.requests.clear()
            assert store.kept_step(claim, "report") == LARGE
            assert wire.operations() == operations
            assert abs(int(items_of(raw, store.table)[key]["expiration"]["N"]) - first - later) < 30

    def test_what_is_deleted_meanwhile(self, store: DynamoDBStore, clock: MovableClock, wire: Wire, raw: Any) -> None:
        """It was found, and no item is made of it."""
        claim = grant(store)
        keep(store, claim, "report", LARGE)
        key = step_item_keys(store.get(KEY))[step_id("report")]
        clock.advance(RETENTION * 3 // 4)

        def delete_first(forward: Forward) -> Answer | None:
            raw.delete_item(TableName=store.table, Key={"id": {"S": key}})
            return clock.shift(forward)

        wire.clear()
        wire.break_nth("UpdateItem", 1, delete_first)
        wire.break_all(clock.shift)
        assert store.kept_step(claim, "report") == LARGE
        assert items_of(raw, store.table).keys() == {KEY}

    def test_an_item_that_is_gone(self, dynamodb: DynamoDBStore, raw: Any) -> None:
        """Whoever has deleted it: it is not found, and task and key are named."""
        claim = grant(dynamodb)
        keep(dynamodb, claim, "report", LARGE)
        key = step_item_keys(dynamodb.get(KEY))[step_id("report")]
        raw.delete_item(TableName=dynamodb.table, Key={"id": {"S": key}})
        with pytest.raises(RecordNotFoundError) as caught:
            dynamodb.kept_step(claim, "report")
        assert (caught.value.task, caught.value.key) == ("shop.charge", KEY)


class TestOtherWriters:
    """Versions that know no steps, and Powertools, on the same key."""

    def set_expired(self, store: DynamoDBStore, raw: Any) -> None:
        """Let the record be past its time, as if nobody had deleted it since."""
        raw.update_item(
            TableName=store.table,
            Key={"id": {"S": KEY}},
            UpdateExpression="SET expiration = :past",
            ExpressionAttributeValues={":past": {"N": "1"}},
        )

    def test_an_outcome_that_leaves_them(
        self, dynamodb: DynamoDBStore, raw: Any, wire: Wire, refusal_read: list[str]
    ) -> None:
        """Of a version that counts runs, and keeps what it does not know: the next generation has none."""
        claim = grant(dynamodb)
        kept = keep(dynamodb, claim, "charge", SMALL)
        keep(dynamodb, claim, "report", LARGE, kept)
        left = {name: items_of(raw, dynamodb.table)[KEY][name] for name in ("steps", "steps_elsewhere")}
        dynamodb.commit(claim, done(), RETENTION)
        for name, value in left.items():
            raw.update_item(
                TableName=dynamodb.table,
                Key={"id": {"S": KEY}},
                UpdateExpression="SET #name = :value",
                ExpressionAttributeNames={"#name": name},
                ExpressionAttributeValues={":value": value},
            )
            self.set_expired(dynamodb, raw)
            wire.clear()
            claim = grant(dynamodb, "two")
            assert wire.operations() == ["UpdateItem", *refusal_read, "UpdateItem"]
            assert (claim.steps, claim.runs) == (KeptSteps(), 1)
            assert name not in items_of(raw, dynamodb.table)[KEY]
            dynamodb.commit(claim, done(), RETENTION)

    @pytest.mark.parametrize("ends", ["crash", "outcome", "next claim"])
    def test_an_older_version(self, dynamodb: DynamoDBStore, raw: Any, ends: str) -> None:
        """Its run has done the body without steps, and a claim of its own after an outcome may keep older ones."""
        keep(dynamodb, grant(dynamodb, lease_seconds=OVER), "charge", SMALL)
        older = OlderWorker(raw, dynamodb.table, KEY)
        assert older.claim(OVER)
        if ends != "crash":
            assert older.commit()
            self.set_expired(dynamodb, raw)
        if ends == "next claim":
            assert older.claim(OVER)
        assert grant(dynamodb, "two").steps == dynamodb.get(KEY).steps == KeptSteps()

    def test_an_older_version_leaves_a_claim_alone(self, dynamodb: DynamoDBStore, raw: Any) -> None:
        """A record with steps is one in progress."""
        claim = grant(dynamodb)
        keep(dynamodb, claim, "charge", SMALL)
        assert not OlderWorker(raw, dynamodb.table, KEY).claim()
        assert dynamodb.commit(claim, done(), RETENTION) == Committed()

    def test_powertools(self, dynamodb: DynamoDBStore, make_lambda: MakeLambda) -> None:
        """It sees a record in progress; where it takes that over, it writes a record of its own, without steps."""
        theirs = make_lambda(remaining_milliseconds=-5_000)
        claim = grant(dynamodb, key=SHARED_KEY)
        kept = keep(dynamodb, claim, "charge", SMALL)
        keep(dynamodb, claim, "report", LARGE, kept)
        with pytest.raises(theirs.busy):
            theirs.deliver(lambda: "theirs")
        dynamodb.renew(claim, OVER, RETENTION)

        def time_out() -> None:
            raise SystemExit

        with pytest.raises(SystemExit):
            theirs.deliver(time_out)
        assert dynamodb.keep_step(claim, "late", SMALL, kept) == Lost()
        two = grant(dynamodb, "two", key=SHARED_KEY)
        assert two.steps == KeptSteps()
        assert isinstance(dynamodb.claim(request_by("three", key=SHARED_KEY)), Busy)


@only_ministack
def test_as_many_steps_as_there_may_be(dynamodb: DynamoDBStore, raw: Any) -> None:
    """500 of 2 KB: the record stays small, and each is found; an outcome of the largest size has room."""
    claim = grant(dynamodb)
    kept = claim.steps
    steps = {
        f"charge {number}": Step(inputs=str(number), codec="json", data="x" * 2 * KB) for number in range(MOST_STEPS)
    }
    for name, step in steps.items():
        kept = keep(dynamodb, claim, name, step, kept)
    item = raw.get_item(TableName=dynamodb.table, Key={"id": {"S": KEY}}, ConsistentRead=True)["Item"]
    assert (len(kept), len(kept.here)) == (MOST_STEPS, 1)
    assert 8 * KB < size_of(item) < 12 * KB
    dynamodb.release(claim, "Retry")
    two = grant(dynamodb, "two")
    assert two.steps == kept
    assert all(two.steps.here.get(name) or dynamodb.kept_step(two, name) == step for name, step in steps.items())
    assert dynamodb.commit(two, done("x" * dynamodb.max_data_bytes), RETENTION) == Committed()


class Shop:
    """A guarded task whose body the test gives, delivered in this thread."""

    def __init__(self, app: Celery, worker: InlineWorker) -> None:
        self.app = app
        self.worker = worker
        self.id = uuid4().hex
        #: The steps whose functions ran, in order.
        self.ran: list[str] = []

    def sells(self, body: Callable[["Shop", Any], Any], **options: Any) -> None:
        """Make the task."""

        def charge(task: Any) -> Any:
            return body(self, task.idempotency.step)

        self.app.tasks.pop("shop.charge", None)
        self.app.task(charge, bind=True, name="shop.charge", base=IdempotentTask, shared=False, **options)

    def does(self, name: str, result: Any) -> Callable[[], Any]:
        """Return a step's function, whose run is noted."""

        def effect() -> Any:
            self.ran.append(name)
            return result

        return effect

    def deliver(self) -> Any:
        """Publish the task's message, run that one message, and return the task's result, or error."""
        self.app.tasks["shop.charge"].apply_async(task_id=self.id)
        self.worker.run_next()
        return self.worker.result(self.id)


@pytest.fixture
def shop(make_store: MakeStore, dynamodb: DynamoDBStore, wire: Wire) -> Iterator[Shop]:
    """A shop behind the wire, whose store has been used before."""
    queue, store = f"queue-{uuid4().hex}", make_store()
    app = Celery("shop", broker="memory://", backend="cache+memory://", set_as_current=False)
    app.conf.update(idempotency_store=store, task_default_queue=queue)
    app.set_current()
    worker = InlineWorker(app, queue)
    store.now("#")
    wire.clear()
    yield Shop(app, worker)
    worker.close()


@pytest.fixture
def bucket(ministack: str, session: boto3.Session) -> S3Results:
    """A bucket of the test's own."""
    name = f"results-{uuid4().hex[:12]}"
    place = {"LocationConstraint": REGION}
    session.client("s3", endpoint_url=ministack).create_bucket(Bucket=name, CreateBucketConfiguration=place)
    return S3Results(name, endpoint_url=ministack, session=session)


#: For each place of three steps: their result, and the requests of each, by a run that does them, and by a rerun.
REQUESTS = {
    "in the record": ("paid", ["UpdateItem"], []),
    "beside it": (noise(8 * KB), ["PutItem", "UpdateItem"], ["GetItem"]),
}


class TestDelivery:
    """Whole deliveries."""

    @pytest.mark.parametrize("place", REQUESTS)
    def test_requests(self, shop: Shop, wire: Wire, place: str) -> None:
        """A step in the record costs one, and none in a rerun; one beside it two, and a read in a rerun."""
        result, first, again = REQUESTS[place]
        fails = iter([True, False])

        def body(shop: Shop, step: Any) -> Any:
            results = [step(name, shop.does(name, result)) for name in "abc"]
            if next(fails):
                raise TimeoutError
            return len(results[2])

        shop.sells(body)
        assert isinstance(shop.deliver(), TimeoutError)
        assert wire.operations() == ["UpdateItem", *first * 3, "UpdateItem"]
        wire.clear()
        assert shop.deliver() == len(result)
        assert wire.operations() == ["UpdateItem", *again * 3, "UpdateItem"]
        assert shop.ran == ["a", "b", "c"]

    def test_a_large_result(self, shop: Shop) -> None:
        """Of 300 KB: it lies in the step's item, and is found equal."""
        report, fails = noise(300 * KB), iter([True, False])

        def body(shop: Shop, step: Any) -> Any:
            assert step("report", shop.does("report", report)) == report
            if next(fails):
                raise TimeoutError
            return "sent"

        shop.sells(body)
        assert isinstance(shop.deliver(), TimeoutError)
        assert shop.deliver() == "sent"
        assert shop.ran == ["report"]

    def test_a_result_that_is_too_large(self, shop: Shop) -> None:
        """Its effect is done, and not done again; each run is told that there is no result."""
        seen: list[Exception] = []

        def body(shop: Shop, step: Any) -> Any:
            try:
                step("report", shop.does("report", noise(700 * KB)))
            except (ResultEncodingError, ResultUnavailableError) as error:
                seen.append(error)
            raise TimeoutError

        shop.sells(body)
        shop.deliver()
        shop.deliver()
        assert [type(each) for each in seen] == [ResultEncodingError, ResultUnavailableError]
        assert all("the store takes 389120" in str(each) for each in seen)
        assert shop.ran == ["report"]

    def test_a_result_in_the_bucket(self, shop: Shop, bucket: S3Results) -> None:
        """One that is too large for an item lies there, and is found equal."""
        report, fails = noise(5000 * KB), iter([True, False])

        def body(shop: Shop, step: Any) -> Any:
            assert step("report", shop.does("report", report)) == report
            if next(fails):
                raise TimeoutError
            return "sent"

        shop.app.conf.idempotency_results_bucket = bucket
        shop.sells(body)
        assert isinstance(shop.deliver(), TimeoutError)
        assert shop.deliver() == "sent"
        assert shop.ran == ["report"]

    def test_an_item_that_is_gone(self, shop: Shop, raw: Any) -> None:
        """The effect was done, so it is not done again: the run is told that its result is gone."""

        def body(shop: Shop, step: Any) -> Any:
            step("report", shop.does("report", noise(8 * KB)))
            raise TimeoutError

        shop.sells(body)
        shop.deliver()
        table = shop.app.conf.idempotency_store.table
        (key,) = (key for key, item in items_of(raw, table).items() if "step" in item)
        raw.delete_item(TableName=table, Key={"id": {"S": key}})
        error = shop.deliver()
        assert isinstance(error, ResultUnavailableError)
        assert "step 'report' was done by an earlier run, and its item was deleted or has expired" in str(error)
        assert shop.ran == ["report"]
