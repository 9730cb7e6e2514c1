"""Examples on RabbitMQ; and how many code blocks of the documents were executed, counted at the end of a run."""

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from kombu import Connection

from tests.support.examples import Example, OnRabbitMQ, dynamodb_url

PROPERTY = "code blocks"


@pytest.fixture
def on_rabbitmq(amqp_url: str, redis_url: str, roto: str, table: str, tmp_path: Path) -> Iterator[OnRabbitMQ]:
    """Make an example of the test's, in a queue of its own, its table made."""
    with ExitStack() as stack:

        def make(name: str, database: int, **variables: str) -> Example:
            queue = f"{name}-{uuid4().hex[:12]}"
            servers = {
                "BROKER_URL": amqp_url,
                "RESULT_URL": f"{redis_url}/{database}",
                "STORE_URL": dynamodb_url(roto, table),
                "QUEUE": queue,
            }
            example = Example(name, tmp_path, servers | variables)
            stack.callback(_delete_queue, amqp_url, queue)
            example.run("celery -A tasks idempotency create-table")
            return example

        yield make


def _delete_queue(url: str, queue: str) -> None:
    with Connection(url) as connection:
        connection.default_channel.queue_delete(queue)
        connection.default_channel.exchange_delete(queue)


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Say how many code blocks were executed, also where the tests ran in several processes."""
    tallies = [
        value
        for report in terminalreporter.stats.get("passed", [])
        for name, value in report.user_properties
        if name == PROPERTY
    ]
    if tallies:
        executed, checked, skipped = map(sum, zip(*tallies, strict=True))
        terminalreporter.write_line(
            f"{executed} code blocks executed, {checked} blocks of commands checked to exist, "
            f"{skipped} not run for the reason that they give, in {len(tallies)} documents"
        )
