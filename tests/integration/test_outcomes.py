"""Large results and final failures with real workers: replayed by another worker, whoever was killed meanwhile."""

from collections.abc import Callable
from uuid import uuid4

import boto3
import kombu
import pytest

from idempotent_tasks import DynamoDBStore, ResultUnavailableError, Status
from tests.conftest import REGION
from tests.integration.conftest import MakeRig
from tests.support.canvases import PATIENT_SECONDS, Canvases
from tests.support.rig import Rig
from tests.testbed.brokers import Broker

BY_ORDER = {"idempotency": {"key": "order"}}
#: Compresses to more than DynamoDB takes, and still to less than the broker does.
LARGE_BYTES = 600_000
on_redis = pytest.mark.parametrize("broker", ["redis"], indirect=True)

MakeLarge = Callable[..., Rig]


@pytest.fixture
def swept(broker: Broker) -> None:
    """Skip a test whose message nobody gives back in time."""
    if broker.name == "redis" and kombu.__version__ < "5.7":
        pytest.skip("kombu before 5.7 sweeps Redis 10 s after a worker's start, then every 100 s")


@pytest.fixture
def bucket(ministack: str) -> str:
    """A bucket of the test's own."""
    name = f"results-{uuid4().hex[:12]}"
    place = {"LocationConstraint": REGION}
    boto3.client("s3", endpoint_url=ministack).create_bucket(Bucket=name, CreateBucketConfiguration=place)
    return name


@pytest.fixture
def make_large(make_guarded: MakeRig, ministack: str, bucket: str) -> MakeLarge:
    """Make a rig with a bucket, whose task `large` returns more than a record takes."""

    def make(**more: object) -> Rig:
        settings = {"idempotency_results_bucket": f"s3://{bucket}/shop?endpoint_url={ministack}"}
        return make_guarded(settings=settings, **{"tasks": {"large": BY_ORDER}, **more})

    return make


def objects(ministack: str, bucket: str) -> list[str]:
    """Return the names of the objects in a bucket."""
    listed = boto3.client("s3", endpoint_url=ministack).list_objects_v2(Bucket=bucket)
    return [each["Key"] for each in listed.get("Contents", [])]


def test_a_large_result_is_replayed_by_another_worker(make_large: MakeLarge, store: DynamoDBStore) -> None:
    """Published twice, run once; both publishers get all of it, the second from the bucket."""
    rig = make_large()
    first = rig.start_worker()
    original = rig.send("large", "ord-1", LARGE_BYTES)
    result = rig.result(original)
    assert len(result) == LARGE_BYTES
    first.kill()
    rig.start_worker()
    assert rig.result(rig.send("large", "ord-1", LARGE_BYTES)) == result
    assert rig.journal.count("effect") == 1
    assert store.get(rig.journal.wait_for("Committed")["key"]).codec == "json+zlib+s3"


@pytest.mark.usefixtures("swept")
@on_redis
def test_worker_killed_between_the_bucket_and_the_commit(
    make_large: MakeLarge, store: DynamoDBStore, ministack: str, bucket: str
) -> None:
    """The object of the dead run does no harm: the redelivery runs, commits, and its result is replayed."""
    rig = make_large(tasks={"large": {**BY_ORDER, "time_limit": 30}})
    rig.journal.shut("stored-in-bucket")
    first = rig.start_worker()
    published = rig.send("large", "ord-1", LARGE_BYTES)
    rig.journal.wait_for("at-gate", gate="stored-in-bucket")
    assert len(objects(ministack, bucket)) == 1
    assert store.get(rig.journal.wait_for("Claimed")["key"]).status is Status.INPROGRESS
    first.kill()
    rig.journal.open("stored-in-bucket")
    rig.start_worker()
    result = rig.result(published)
    assert rig.result(rig.send("large", "ord-1", LARGE_BYTES)) == result
    assert rig.journal.count("effect") == 2
    assert rig.journal.count("Committed") == 1


@on_redis
def test_without_a_bucket_the_result_backend_has_it(make_guarded: MakeRig) -> None:
    """A duplicate gets the result from there; when the backend has forgotten it, the duplicate fails by name."""
    rig = make_guarded(tasks={"large": BY_ORDER})
    rig.start_worker()
    original = rig.send("large", "ord-1", LARGE_BYTES)
    result = rig.result(original)
    assert rig.journal.wait_for("Unreplayable", id=original.id)["reason"].startswith("the result has ")
    assert rig.result(rig.send("large", "ord-1", LARGE_BYTES)) == result
    original.forget()
    with pytest.raises(ResultUnavailableError, match="the body does not run again"):
        rig.result(rig.send("large", "ord-1", LARGE_BYTES))
    assert rig.journal.count("effect") == 1


@pytest.mark.usefixtures("swept")
@on_redis
def test_a_final_failure_is_replayed_after_its_worker_was_killed(make_guarded: MakeRig, store: DynamoDBStore) -> None:
    """Killed after the failure and before its acknowledgement: the body does not run again, nor do the errbacks."""
    policy = {"key": "order", "store_failures": ["builtins:ConnectionError"]}
    rig = make_guarded(tasks={"fail": {"autoretry_for": [], "idempotency": policy}})
    make = Canvases(rig)
    rig.journal.shut("before-ack")
    first = rig.start_worker(1, visibility_seconds=PATIENT_SECONDS)
    published = rig.send("fail", "ord-1", 1, link_error=[make.guarded("errback"), make.plain("plain-errback")])
    rig.journal.wait_for("at-gate", gate="before-ack")
    first.kill()
    rig.journal.open("before-ack")
    rig.start_worker()
    rig.journal.wait_for("over", id=published.id, state="FAILURE", times=2)
    with pytest.raises(ConnectionError, match="try 0 of ord-1"):
        rig.result(rig.send("fail", "ord-1", 1))
    make.wait_until_idle()
    assert rig.journal.count("started", task="fail") == 1
    assert make.effects("errback") == make.effects("plain-errback") == [published.id]
    assert store.get(rig.journal.wait_for("Committed", id=published.id)["key"]).status is Status.FAILED


def test_only_the_last_attempt_is_final(make_guarded: MakeRig) -> None:
    """``autoretry_for`` retries a final error first; a duplicate then gets the last one."""
    policy = {"key": "order", "store_failures": ["builtins:ConnectionError"]}
    retries = {"retry_kwargs": {"countdown": 0, "max_retries": 1}, "idempotency": policy}
    rig = make_guarded(tasks={"fail": retries})
    rig.start_worker()
    for _ in range(2):
        with pytest.raises(ConnectionError, match="try 1 of ord-1"):
            rig.result(rig.send("fail", "ord-1", 5))
    assert rig.journal.count("started", task="fail") == 2
