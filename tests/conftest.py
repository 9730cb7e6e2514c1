"""Servers once a session, everything else once a test: a clean environment, a wire, a table name of its own."""

import os
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from typing import Any
from uuid import uuid4

import botocore
import pytest

from tests.testbed.servers import (
    MissingServiceError,
    mariadb_server,
    ministack_server,
    postgresql_server,
    rabbitmq_server,
    redis_server,
    roto_server,
)
from tests.testbed.wire import Wire, wire_to

REGION = "eu-west-1"
FOREIGN_VARIABLES = ("AWS_", "BOTO", "CELERY_", "IDEMPOTENCY_")
FAKE_AWS = {
    "AWS_ACCESS_KEY_ID": "testing",
    "AWS_SECRET_ACCESS_KEY": "testing",
    "AWS_DEFAULT_REGION": REGION,
    "AWS_CONFIG_FILE": os.devnull,
    "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
    "AWS_EC2_METADATA_DISABLED": "true",
    "NO_PROXY": "127.0.0.1,localhost",
    "no_proxy": "127.0.0.1,localhost",
}


@contextmanager
def available() -> Iterator[None]:
    """Make a missing service a failure where the environment says ``CI=true``, a skip elsewhere."""
    try:
        yield
    except MissingServiceError as missing:
        if os.environ.get("CI", "").lower() in {"true", "1", "yes"}:
            pytest.fail(str(missing), pytrace=False)
        pytest.skip(str(missing))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_setup() -> Generator[None, object, object]:
    """Decide about a service that a fixture misses."""
    with available():
        return (yield)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call() -> Generator[None, object, object]:
    """Decide about a service that the test itself misses."""
    with available():
        return (yield)


@pytest.fixture(scope="session", autouse=True)
def clean_environment() -> Iterator[None]:
    """Take the developer's own AWS and Celery variables out of the environment, and put fake credentials in."""
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith(FOREIGN_VARIABLES)]:
            patch.delenv(name)
        for name, value in FAKE_AWS.items():
            patch.setenv(name, value)
        yield


@pytest.fixture(scope="session", autouse=True)
def no_session_initializers() -> None:
    """Take out what an import registered on all of botocore's sessions: Powertools adds its name to each request."""
    botocore._INITIALIZERS.clear()


@pytest.fixture(scope="session")
def ministack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The endpoint URL of ministack: DynamoDB and SQS."""
    with ministack_server(tmp_path_factory.mktemp("ministack")) as endpoint:
        yield endpoint


@pytest.fixture(scope="session")
def roto(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The endpoint URL of roto-aws: a DynamoDB that returns no old item with a refusal."""
    with roto_server(tmp_path_factory.mktemp("roto")) as endpoint:
        yield endpoint


@pytest.fixture(scope="session")
def redis_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of a Redis-protocol server, without a database number."""
    with redis_server(tmp_path_factory.mktemp("valkey")) as url:
        yield url


@pytest.fixture(scope="session")
def amqp_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of a RabbitMQ."""
    with rabbitmq_server(tmp_path_factory.mktemp("rabbitmq")) as url:
        yield url


@pytest.fixture(scope="session")
def postgresql() -> Iterator[dict[str, str]]:
    """The variables by which libpq finds a PostgreSQL, without a database."""
    with postgresql_server() as variables:
        yield variables


@pytest.fixture(scope="session")
def mariadb(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    """PyMySQL's arguments for a MariaDB, without a database."""
    with mariadb_server(tmp_path_factory.mktemp("mariadb")) as arguments:
        yield arguments


@pytest.fixture(params=["ministack", "roto"])
def dynamodb_endpoint(request: pytest.FixtureRequest) -> str:
    """The endpoint URL of each DynamoDB in turn."""
    return str(request.getfixturevalue(request.param))


@pytest.fixture
def wire(dynamodb_endpoint: str) -> Iterator[Wire]:
    """A counting, fault-injecting proxy in front of the DynamoDB; its own URL is `Wire.endpoint`."""
    with wire_to(dynamodb_endpoint) as proxy:
        yield proxy


@pytest.fixture
def table() -> str:
    """A table name that no other test uses; the table does not exist."""
    return f"idempotency-{uuid4().hex[:12]}"
