"""Results of every size through the guard, DynamoDB and S3: equal when replayed, and what they cost in requests."""

import random
import re
import string
from collections.abc import Iterator
from dataclasses import replace
from math import ceil
from pathlib import Path
from typing import Any
from uuid import uuid4

import boto3
import pytest

from idempotent_tasks import DynamoDBStore, S3Results
from idempotent_tasks.core.encoding import size_of
from idempotent_tasks.core.guard import Failed, Guard, Replayed, Returned
from idempotent_tasks.core.policy import Idempotency
from idempotent_tasks.core.records import Status
from tests.conftest import REGION
from tests.support.capacity import size_of as item_bytes
from tests.support.guarding import KEY, Bench, make_guard
from tests.testbed.wire import Wire, wire_to

KB = 1024
#: An item with a reference instead of data stays below this, so that it costs one unit.
ITEM_BYTES = 1024


def noise(length: int) -> str:
    """Return so many characters, which compress to three quarters."""
    return "".join(random.Random(17).choices(string.ascii_letters + string.digits + "+/", k=length))


def rows(length: int) -> list[dict[str, Any]]:
    """Return what a report is like, of about so many bytes as JSON."""
    draw = random.Random(17)
    return [
        {"id": number, "customer": f"cus_{draw.randrange(10**9)}", "amount": "12.50"} for number in range(length // 58)
    ]


#: A row: result, codec, bytes of the item, units of commit and replay, requests to S3.
PRICE_ROW = r"^\| ([^|]+) \| `([a-z0-9+]+)` \| (\d+ K?B) \| (\d+) / (\d+) \| (none|1 PUT / 1 GET) \|$"
#: The results in the table of docs/reference/results.md, in its order.
PRICED = {
    "small": "paid",
    "rows": rows(300 * KB),
    "rows in the bucket": rows(300 * KB),
    "noise": noise(300 * KB),
    "many rows": rows(5000 * KB),
    "much noise": noise(5000 * KB),
}


@pytest.fixture
def s3_wire(ministack: str) -> Iterator[Wire]:
    """A counting proxy in front of S3."""
    with wire_to(ministack) as proxy:
        yield proxy


@pytest.fixture
def results(ministack: str, s3_wire: Wire, session: boto3.Session) -> S3Results:
    """A bucket of the test's own."""
    bucket = f"results-{uuid4().hex[:12]}"
    place = {"LocationConstraint": REGION}
    session.client("s3", endpoint_url=ministack).create_bucket(Bucket=bucket, CreateBucketConfiguration=place)
    return S3Results(bucket, endpoint_url=s3_wire.endpoint, session=session)


@pytest.fixture
def guard(dynamodb: DynamoDBStore, results: S3Results) -> Guard:
    """A guard over a table and a bucket."""
    return make_guard(dynamodb, lambda _: None, policy=Idempotency(store_failures=ValueError), bucket=results)


@pytest.mark.parametrize(
    ("value", "codec"),
    [
        pytest.param("paid", "json", id="small"),
        pytest.param(rows(300 * KB), "json+zlib", id="300-KB-rows"),
        pytest.param(noise(300 * KB), "json+zlib", id="300-KB-noise"),
        pytest.param(rows(5000 * KB), "json+zlib+s3", id="5-MB-rows"),
        pytest.param(noise(5000 * KB), "json+zlib+s3", id="5-MB-noise"),
    ],
)
def test_a_result_of_any_size_is_replayed(
    *,
    dynamodb: DynamoDBStore,
    guard: Guard,
    wire: Wire,
    s3_wire: Wire,
    refusal_read: list[str],
    value: Any,
    codec: str,
) -> None:
    """The replay is equal, from whichever process; one request more each way where the bucket has it."""
    in_bucket = codec.endswith("+s3")
    bench = Bench(dynamodb)
    assert bench.deliver("one", value, guard=guard) == Returned(value)
    assert wire.operations() == ["UpdateItem", "UpdateItem"]
    assert s3_wire.operations() == ["PUT"] * in_bucket
    assert bench.deliver("two", guard=guard) == Replayed(value)
    assert wire.operations()[2:] == ["UpdateItem", *refusal_read]
    assert s3_wire.operations() == ["PUT", "GET"] * in_bucket
    record = dynamodb.get(KEY)
    assert record.codec == codec
    assert not in_bucket or size_of(record) < ITEM_BYTES / 4


@pytest.mark.parametrize("dynamodb_endpoint", ["ministack"], indirect=True)
def test_the_page_gives_what_results_cost(dynamodb: DynamoDBStore, guard: Guard, results: S3Results, raw: Any) -> None:
    """The bytes and write units of the page about results are those of real items; zlib's versions differ by little."""
    page = (Path(__file__).parents[2] / "docs" / "reference" / "results.md").read_text(encoding="utf-8")
    rows = re.findall(PRICE_ROW, page, re.MULTILINE)
    near = S3Results(results.bucket, client=results.client(), above_bytes=8192)
    tight = replace(guard, results=replace(guard.results, bucket=near))
    assert len(rows) == len(PRICED)
    for (shown, codec, size, commit, replay, requests), (name, value) in zip(rows, PRICED.items(), strict=True):
        key = f"shop.charge#{name}"
        Bench(dynamodb).deliver("one", value, guard=tight if "above_bytes" in shown else guard, key=key)
        item = raw.get_item(TableName=dynamodb.table, Key={"id": {"S": key}}, ConsistentRead=True)["Item"]
        number, unit = size.split()
        assert item_bytes(item) == pytest.approx(int(number) * (KB if unit == "KB" else 1), rel=0.1)
        assert int(commit) == int(replay) == pytest.approx(ceil(item_bytes(item) / KB), rel=0.03)
        assert item["codec"] == {"S": codec}
        assert ("+s3" in codec) is ("GET" in requests)


def test_a_large_failure_is_replayed(dynamodb: DynamoDBStore, guard: Guard, s3_wire: Wire) -> None:
    """A stored failure goes the same way."""
    bench = Bench(dynamodb)
    error = ValueError(noise(1000 * KB))
    assert bench.deliver("one", error, guard=guard) == Failed(error)
    verdict = bench.deliver("two", guard=guard)
    assert isinstance(verdict, Failed)
    assert (type(verdict.error), verdict.error.args) == (ValueError, error.args)
    assert (dynamodb.get(KEY).status, s3_wire.operations()) == (Status.FAILED, ["PUT", "GET"])
