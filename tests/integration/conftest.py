"""A broker of each kind in turn, and rigs on it: a queue, a journal and workers of the test's own."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
import redis

from idempotent_tasks import DynamoDBStore
from tests.conftest import REGION
from tests.support.app import AppConfig
from tests.support.rig import Rig
from tests.testbed import brokers
from tests.testbed.brokers import Broker
from tests.testbed.servers import FAST, MissingServiceError
from tests.testbed.tcp import Tcp, tcp_to
from tests.testbed.workers import cache_service_descriptions

MakeRig = Callable[..., Rig]

cache_service_descriptions()


@pytest.fixture
def prefix() -> str:
    """A name for queues and keys that no other test uses."""
    return f"test-{uuid4().hex[:12]}"


@pytest.fixture
def key_prefix(redis_url: str, prefix: str) -> Iterator[str]:
    """A prefix of Redis keys; the keys are deleted after the test."""
    yield f"{prefix}."
    for database in (0, 1):
        with redis.Redis.from_url(f"{redis_url}/{database}") as client:
            for key in client.scan_iter(f"{prefix}.*"):
                client.delete(key)


@pytest.fixture(params=["redis", "rabbitmq", "sqs"])
def broker(request: pytest.FixtureRequest, key_prefix: str) -> Broker:
    """Each broker in turn."""
    if request.param == "redis":
        return brokers.redis(request.getfixturevalue("redis_url"), key_prefix)
    if request.param == "rabbitmq":
        return brokers.rabbitmq(request.getfixturevalue("amqp_url"))
    return brokers.sqs(request.getfixturevalue("ministack"))


@pytest.fixture
def tcp(broker: Broker) -> Iterator[Tcp]:
    """A proxy in front of the broker, for workers that shall lose their connections."""
    with tcp_to(broker.url) as proxy:
        yield proxy


@pytest.fixture
def make_rig(broker: Broker, redis_url: str, prefix: str, key_prefix: str, tmp_path: Path) -> Iterator[MakeRig]:
    """Make the test's rig of plain Celery tasks, with more settings or task options where the test names them."""
    with ExitStack() as stack:

        def make(
            visibility_seconds: int = brokers.VISIBILITY_SECONDS,
            transport: dict[str, Any] | None = None,
            queue_name: str = prefix,
            **more: Any,
        ) -> Rig:
            adjusted = broker.with_visibility(visibility_seconds)
            config = AppConfig(
                broker_url=adjusted.url,
                transport_options={**adjusted.transport_options, **(transport or {})},
                result_backend=f"{redis_url}/1",
                result_prefix=key_prefix,
                queue=queue_name,
                directory=str(tmp_path),
                **more,
            )
            return stack.enter_context(Rig(config))

        yield make


@pytest.fixture
def make_guarded(make_rig: MakeRig, ministack: str, table: str) -> MakeRig:
    """Make the test's rig of `IdempotentTask`s, with a table of its own behind the ``endpoint``."""

    def make(endpoint: str = ministack, settings: dict[str, Any] | None = None, **more: Any) -> Rig:
        DynamoDBStore(table, region=REGION, endpoint_url=endpoint).create_table()
        library = {
            "idempotency_store": f"dynamodb://{REGION}/{table}?endpoint_url={endpoint}&fast={str(FAST).lower()}",
            "idempotency_observers": ["tests.support.app:observe"],
        }
        return make_rig(base="idempotent_tasks:IdempotentTask", settings={**library, **(settings or {})}, **more)

    return make


@pytest.fixture
def database_url(tmp_path: Path) -> str:
    """The URL of a result backend in a database: SQLite, in a file of the test's own."""
    if find_spec("sqlalchemy") is None:
        raise MissingServiceError("a database for results", "SQLAlchemy is not installed", "pip install sqlalchemy")
    return f"db+sqlite:///{tmp_path}/results.sqlite"


@pytest.fixture
def store(ministack: str, table: str) -> DynamoDBStore:
    """The store behind `make_guarded`, to look into."""
    return DynamoDBStore(table, region=REGION, endpoint_url=ministack)
