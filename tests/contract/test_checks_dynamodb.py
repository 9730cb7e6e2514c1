"""What the checks find at the table itself: each kind provoked at a real server, and gone after its remedy."""

import json
from collections.abc import Callable
from dataclasses import replace
from fnmatch import fnmatchcase
from functools import wraps
from typing import Any

import pytest
from celery import Celery

from idempotent_tasks import DynamoDBStore, IdempotentTask, NotDone
from idempotent_tasks.checks import CheckContext, Finding, run_checks
from idempotent_tasks.checks.context import MOST_PREFIXES
from idempotent_tasks.checks.dynamodb import TABLE_FINDINGS, WORKER_ACTIONS
from tests.contract.conftest import MakeStore
from tests.support.guarding import KEY, done, grant
from tests.support.older_version import OlderWorker
from tests.support.powertools import Lambda
from tests.testbed.wire import Answer, Decider, Fault, Forward, Request, Wire, answer, refuse, shift_date

Look = Callable[..., list[Finding]]

#: Every kind, by the test that provokes it and fixes it.
PROVOKED = {
    "clock-offset": "test_a_clock_that_is_off",
    "older-workers": "test_a_worker_of_an_older_version",
    "permission-missing": "test_a_missing_permission",
    "prefix-not-allowed": "test_keys_that_a_role_may_not_touch",
    "store-refuses": "test_a_store_that_refuses",
    "store-unreachable": "test_an_unreachable_store",
    "table-key-schema": "test_another_key_schema",
    "table-missing": "test_no_table",
    "table-replicated": "test_a_table_of_several_regions",
    "table-ttl-off": "test_no_ttl",
}


@pytest.fixture
def look() -> Look:
    """Look at an app over a store, with tasks by name, each with its options, and as many prefixes as are tried."""

    def look(store: DynamoDBStore, most_prefixes: int | None = None, **tasks: dict[str, Any]) -> list[Finding]:
        app = Celery("shop", broker="amqp://localhost", set_as_current=False)
        app.conf.update(idempotency_store=store, task_time_limit=60)
        for name, options in tasks.items():
            app.task(do_nothing, name=name, base=IdempotentTask, shared=False, idempotency=options)
        context = CheckContext.of_app(app, "celery.concurrency.prefork")
        return run_checks(replace(context, most_prefixes=most_prefixes))

    return look


def do_nothing(order: Any = None) -> None:
    """Be a body."""


def ask_for_rerun(task: Any) -> Any:
    """Be a body that asks whether it is a rerun."""
    return task.idempotency.rerun


def do_nothing_that_matters(task: Any) -> None:
    """Be a body that says that it did nothing."""
    task.idempotency.nothing_done()


def decorated(body: Any) -> Any:
    """Return a body within a decorator's function."""

    @wraps(body)
    def within(*args: Any) -> Any:
        return body(*args)

    return within


def described_with(**members: Any) -> Fault:
    """Put members into the answer to DescribeTable: a fault for the wire."""

    def described(forward: Forward) -> Answer:
        reply = forward()
        body = json.loads(reply.body)
        body["Table"] |= members
        headers = tuple(pair for pair in reply.headers if pair[0].lower() != "x-amz-crc32")
        return replace(reply, body=json.dumps(body).encode(), headers=headers)

    return described


def leading_keys(*patterns: str) -> Decider:
    """Deny as IAM does requests on items whose partition key is none of the patterns (``dynamodb:LeadingKeys``)."""

    def decide(request: Request) -> Fault | None:
        key = request.body.get("Key") or request.body.get("Item")
        if key is None or any(fnmatchcase(key["id"]["S"], pattern) for pattern in patterns):
            return None
        table = f"arn:aws:dynamodb:eu-west-1:123456789012:table/{request.body['TableName']}"
        action = f"dynamodb:{request.operation}"
        return answer(
            400,
            "AccessDeniedException",
            f"User: arn:aws:sts::123456789012:assumed-role/worker/i-0abc is not authorized to perform: {action} on "
            f"resource: {table} because no identity-based policy allows the {action} action",
        )

    return decide


def tried(wire: Wire, operation: str = "UpdateItem") -> list[str]:
    """Return the partition keys of the requests of an operation, without their random ends."""
    asked = [request.body for request in wire.requests if request.operation == operation]
    return [(body.get("Key") or body["Item"])["id"]["S"].rpartition("-")[0] for body in asked]


def test_every_problem_is_provoked() -> None:
    """A kind of problem without a test here would be a guess."""
    assert set(PROVOKED) == set(TABLE_FINDINGS)
    assert set(PROVOKED.values()) <= set(globals())


def test_nothing_is_wrong_and_nothing_is_written(look: Look, dynamodb: DynamoDBStore, wire: Wire, raw: Any) -> None:
    """A table as `create_table` leaves it has no finding; looking at it leaves no item behind."""
    assert look(dynamodb) == []
    assert sorted(set(wire.operations())) == sorted(WORKER_ACTIONS)
    assert raw.scan(TableName=dynamodb.table)["Count"] == 0


def test_a_composite_table_is_looked_at_too(look: Look, make_store: MakeStore) -> None:
    """The probe's key fits a key of two attributes."""
    store = make_store(sort_key_attr="sort")
    store.create_table()
    assert look(store) == []


def test_two_workers_that_start_look_at_keys_of_their_own(look: Look, dynamodb: DynamoDBStore, wire: Wire) -> None:
    """One key would lie in one partition, which starting workers could keep busy."""
    for _ in range(2):
        look(dynamodb)
    written = [request.body["Item"]["id"]["S"] for request in wire.requests if request.operation == "PutItem"]
    assert len(set(written)) == 2
    assert [request.body["Key"]["id"]["S"] for request in wire.requests if request.operation == "UpdateItem"] == written


def test_no_table(look: Look, make_store: MakeStore) -> None:
    """A table that is not there; the remedy is the command that makes it."""
    store = make_store()
    (finding,) = look(store)
    assert (finding.code, finding.remedy) == ("table-missing", "celery -A <app> idempotency create-table")
    assert repr(store.table) in finding.what
    store.create_table()
    assert look(store) == []


def test_another_key_schema(look: Look, dynamodb: DynamoDBStore, make_store: MakeStore) -> None:
    """A table with another key; the remedy is the store's own attribute."""
    found = look(make_store(key_attr="pk"))
    assert "table-key-schema" in [each.code for each in found]
    assert look(make_store(key_attr="id")) == []


def without_ttl(raw: Any, table: str) -> None:
    """Make a table that is right but for its TTL."""
    raw.create_table(
        TableName=table,
        KeySchema=[{"AttributeName": "id", "KeyType": "HASH"}],
        AttributeDefinitions=[{"AttributeName": "id", "AttributeType": "S"}],
        BillingMode="PAY_PER_REQUEST",
    )


def test_no_ttl(look: Look, make_store: MakeStore, raw: Any) -> None:
    """A table that never forgets; the remedy is AWS's own command, here by the same call of its API."""
    store = make_store()
    without_ttl(raw, store.table)
    (finding,) = look(store)
    assert finding.code == "table-ttl-off"
    command = f"aws dynamodb update-time-to-live --table-name {store.table} --time-to-live-specification "
    assert finding.remedy == f"{command}Enabled=true,AttributeName=expiration"
    raw.update_time_to_live(
        TableName=store.table, TimeToLiveSpecification={"Enabled": True, "AttributeName": "expiration"}
    )
    assert look(store) == []


@pytest.mark.parametrize("action", WORKER_ACTIONS)
def test_a_missing_permission(look: Look, dynamodb: DynamoDBStore, wire: Wire, action: str) -> None:
    """The action that IAM denies is named, and the statement that allows it is the remedy."""
    wire.break_when(
        lambda operation, _: operation == action, answer(400, "AccessDeniedException", "User is not authorized")
    )
    (finding,) = look(dynamodb)
    assert finding.code == "permission-missing"
    assert f"dynamodb:{action}" in finding.what
    statement = json.loads(finding.remedy)
    assert statement["Action"] == f"dynamodb:{action}"
    wire.heal()
    assert look(dynamodb) == []


COUNTING: dict[str, Any] = {"shop.charge": {"unresolved_for": 7 * 86_400}}


def test_a_worker_of_an_older_version(look: Look, dynamodb: DynamoDBStore, raw: Any) -> None:
    """Its last record is named, and the tasks that rely on the count of runs; ours and Powertools' are no finding."""
    older = OlderWorker(raw, dynamodb.table, KEY)
    assert older.claim()
    grant(dynamodb, key="shop.charge#ours")
    dynamodb.commit(grant(dynamodb, key="shop.charge#done"), done(), 3600)
    Lambda(dynamodb.table, raw).deliver(lambda: "theirs")
    tasks = {**COUNTING, "shop.refund": {}}
    (finding,) = look(dynamodb, **tasks)
    assert (finding.code, finding.tasks) == ("older-workers", ("shop.charge",))
    assert finding.what.startswith(f"older@host claimed {KEY!r} at ")
    assert older.commit()
    (finding,) = look(dynamodb, **tasks)
    assert KEY in finding.what
    assert look(dynamodb, **{"shop.refund": {}}) == []
    silenced = {"unresolved_for": 60, "silenced_checks": ["older-workers"]}
    assert look(dynamodb, **{"shop.charge": silenced}) == []
    dynamodb.forget(KEY)
    assert look(dynamodb, **tasks) == []


@pytest.mark.parametrize("body", [ask_for_rerun, do_nothing_that_matters])
def test_a_body_that_relies_on_the_count(look: Look, dynamodb: DynamoDBStore, raw: Any, body: Any) -> None:
    """It is read in the body itself, also through a decorator and ``autoretry_for``."""
    assert OlderWorker(raw, dynamodb.table, KEY).claim()
    app = Celery("shop", broker="amqp://localhost", set_as_current=False)
    app.conf.update(idempotency_store=dynamodb, task_time_limit=60)
    options: dict[str, Any] = {"bind": True, "autoretry_for": (KeyError,), "shared": False}
    app.task(decorated(body), name="shop.charge", base=IdempotentTask, **options)
    (finding,) = run_checks(CheckContext.of_app(app, "celery.concurrency.prefork"))
    assert finding.code == "older-workers"


@pytest.mark.parametrize(
    "options", [{"on_rerun": "park"}, {"recover": lambda record, *args, **kwargs: NotDone(), "settle": 5}]
)
def test_a_task_that_parks_or_asks(look: Look, dynamodb: DynamoDBStore, raw: Any, options: dict[str, Any]) -> None:
    """An older worker would run its body again all the same."""
    assert OlderWorker(raw, dynamodb.table, KEY).claim()
    (finding,) = look(dynamodb, **{"shop.charge": options})
    assert finding.code == "older-workers"


def test_one_page_is_read_where_the_role_may(look: Look, dynamodb: DynamoDBStore, raw: Any, wire: Wire) -> None:
    """A role that may not scan, as a worker's, finds nothing, and a task that counts nothing asks for nothing."""
    assert OlderWorker(raw, dynamodb.table, KEY).claim()
    wire.clear()
    assert len(look(dynamodb, **COUNTING)) == 1
    assert wire.operations().count("Scan") == 1
    wire.clear()
    assert look(dynamodb, **{"shop.refund": {}}) == []
    assert "Scan" not in wire.operations()
    denied = answer(400, "AccessDeniedException", "User is not authorized")
    wire.break_when(lambda operation, _: operation == "Scan", denied)
    assert look(dynamodb, **COUNTING) == []


def test_a_role_that_is_limited_to_the_keys_of_the_app(look: Look, dynamodb: DynamoDBStore, wire: Wire) -> None:
    """The keys that are tried are keys of the tasks, so no permission is said to be missing; nothing is written."""
    wire.decide_by(leading_keys("shop.*", "acme:*"))
    tasks = {"shop.charge": {}, "shop.refund": {}, "mail.send": {"prefix": "acme:mail"}}
    assert look(dynamodb, **tasks) == []
    assert tried(wire) == ["acme:mail#probe", "shop.charge#probe", "shop.refund#probe"]


def test_keys_that_a_role_may_not_touch(look: Look, dynamodb: DynamoDBStore, wire: Wire) -> None:
    """The tasks are named, and what to add to the policy; the other permissions are tried with a key that it allows."""
    wire.decide_by(leading_keys("shop.*"))
    tasks: dict[str, Any] = {"mail.send": {}, "mail.sort": {"prefix": "acme"}, "shop.charge": {}}
    (finding,) = look(dynamodb, **tasks)
    assert (finding.code, finding.tasks) == ("prefix-not-allowed", ("mail.send", "mail.sort"))
    assert finding.what.endswith("is allowed for other keys, but not for those of tasks 'mail.send', 'mail.sort'")
    assert finding.remedy == '"dynamodb:LeadingKeys": ["mail.send#*", "acme#*"], beside those in the policy'
    silenced = {"silenced_checks": ["prefix-not-allowed"]}
    assert look(dynamodb, **{**tasks, "mail.send": silenced, "mail.sort": silenced}) == []
    assert look(dynamodb, **{"shop.charge": silenced, "z.mail": silenced}) == []
    wire.heal()
    wire.decide_by(leading_keys("shop.*", "acme#*", "mail.send#*"))
    assert look(dynamodb, **tasks) == []


def test_a_role_that_may_touch_no_key_of_the_app(look: Look, dynamodb: DynamoDBStore, wire: Wire) -> None:
    """The finding says with which key it was tried, beside the statement that allows all."""
    wire.decide_by(leading_keys("other.*"))
    found = look(dynamodb, **{"shop.charge": {}, "shop.refund": {}})
    assert [each.code for each in found] == ["permission-missing"] * 3
    assert "dynamodb:UpdateItem on table" in found[0].what
    assert "is not allowed (tried with a key that begins with 'shop.charge#')" in found[0].what


def test_only_some_prefixes_are_tried_by_a_worker(look: Look, dynamodb: DynamoDBStore, wire: Wire) -> None:
    """An app of a thousand tasks would cost a starting worker a thousand requests; each worker draws its own."""
    tasks: dict[str, Any] = {f"shop.task{number}": {} for number in range(MOST_PREFIXES + 30)}
    assert look(dynamodb, most_prefixes=MOST_PREFIXES, **tasks) == []
    first = tried(wire)
    wire.clear()
    assert look(dynamodb, most_prefixes=MOST_PREFIXES, **tasks) == []
    assert len(set(first)) == len(first) == MOST_PREFIXES
    assert set(tried(wire)) != set(first)


def test_one_key_is_enough_where_all_share_a_partition(look: Look, make_store: MakeStore, wire: Wire) -> None:
    """IAM sees the partition key only."""
    store = make_store(sort_key_attr="sort", static_pk_value="shop")
    store.create_table()
    wire.clear()
    wire.decide_by(leading_keys("shop"))
    assert look(store, **{"shop.charge": {}, "mail.send": {}}) == []
    assert wire.operations().count("UpdateItem") == 1


EUROPE = [{"RegionName": "eu-central-1", "ReplicaStatus": "ACTIVE"}, {"RegionName": "eu-west-1"}]
ARN = "arn:aws:dynamodb:eu-west-1:123456789012:table/records"


@pytest.mark.parametrize("consistency", [{}, {"MultiRegionConsistency": "EVENTUAL"}], ids=["absent", "eventual"])
def test_a_table_of_several_regions(
    look: Look, dynamodb: DynamoDBStore, wire: Wire, consistency: dict[str, str]
) -> None:
    """Two Regions can both claim: the finding names the other ones, and what may be done."""
    members = {"TableArn": ARN, "GlobalTableVersion": "2019.11.21", "Replicas": EUROPE, **consistency}
    wire.break_when(lambda operation, _: operation == "DescribeTable", described_with(**members))
    (finding,) = look(dynamodb)
    assert finding.code == "table-replicated"
    assert finding.what.endswith("is a global table with eventual consistency, replicated to eu-central-1")
    assert 'run workers in one Region only, and app.conf.idempotency_silenced_checks = ["table-replicated"]' in (
        finding.remedy
    )
    wire.heal()
    assert look(dynamodb) == []


@pytest.mark.parametrize(
    "replicas",
    [
        [],
        [{"RegionName": "eu-west-1", "ReplicaStatus": "ACTIVE"}],
        [{"RegionName": "eu-central-1", "ReplicaStatus": "DELETING"}],
        [{"RegionName": "eu-central-1", "ReplicaStatus": "CREATION_FAILED"}],
    ],
    ids=["none", "this-region", "deleted", "failed"],
)
def test_a_table_of_one_region(look: Look, dynamodb: DynamoDBStore, wire: Wire, replicas: list[Any]) -> None:
    """A description may name replicas that are none, or not for long."""
    members = {"TableArn": ARN, "Replicas": replicas}
    wire.break_when(lambda operation, _: operation == "DescribeTable", described_with(**members))
    assert look(dynamodb) == []


def test_a_table_of_several_regions_with_strong_consistency(
    look: Look, make_store: MakeStore, wire: Wire, raw: Any
) -> None:
    """It keeps the promise and can have no TTL: the remedy is a command of ours, not one that AWS refuses."""
    store = make_store()
    without_ttl(raw, store.table)
    members = {"TableArn": ARN, "Replicas": EUROPE, "MultiRegionConsistency": "STRONG"}
    wire.break_when(lambda operation, _: operation == "DescribeTable", described_with(**members))
    wire.break_when(lambda operation, _: operation.endswith("TimeToLive"), answer(400, "ValidationException", "no TTL"))
    assert not store.create_table()
    store.verify()
    (finding,) = look(store)
    assert finding.code == "table-ttl-off"
    assert finding.what.endswith(
        "is a global table with strong consistency, replicated to eu-central-1: such a table has no TTL and no "
        "transactions"
    )
    assert finding.remedy.startswith("celery -A <app> idempotency purge, every day, and ")
    assert not any("TimeToLive" in operation for operation in wire.operations())


def test_an_unreachable_store(look: Look, dynamodb: DynamoDBStore, wire: Wire) -> None:
    """Nobody answers; afterwards somebody does."""
    with wire.outage(refuse):
        (finding,) = look(dynamodb)
    assert finding.code == "store-unreachable"
    assert look(dynamodb) == []


def test_a_store_that_refuses(look: Look, dynamodb: DynamoDBStore, wire: Wire) -> None:
    """Credentials that nobody knows: the remedy is in the message."""
    wire.break_all(answer(400, "UnrecognizedClientException", "The security token is invalid"))
    (finding,) = look(dynamodb)
    assert finding.code == "store-refuses"
    assert "the credentials are not known there; fix them" in finding.what
    wire.heal()
    assert look(dynamodb) == []


@pytest.mark.parametrize(("offset", "side"), [(600, "behind"), (-600, "ahead of")])
def test_a_clock_that_is_off(look: Look, make_store: MakeStore, wire: Wire, offset: int, side: str) -> None:
    """This machine's clock is reported in seconds against DynamoDB's, and nothing is said once they agree."""
    store = make_store()
    store.create_table()
    wire.break_all(shift_date(offset))
    (finding,) = look(store)
    assert finding.code == "clock-offset"
    assert f" s {side} DynamoDB's" in finding.what
    seconds = int(finding.what.partition(" is ")[2].partition(" s ")[0])
    assert abs(seconds - abs(offset)) <= 2
    wire.heal()
    assert look(store) == []
