"""Commands against stores that do not answer: each says so within 5 s of being asked, and how to get one that does."""

import socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from types import SimpleNamespace

import pytest
from botocore.config import Config
from celery import Celery
from click.testing import CliRunner

from idempotent_tasks import DynamoDBStore, Idempotency, IdempotentTask
from idempotent_tasks.cli import idempotency
from tests.testbed.processes import free_port

WITHIN_SECONDS = 5.0
#: Connections that a listening socket of Linux queues although its backlog is 0, and more: the next one hangs.
BACKLOG = 4

COMMANDS = (
    ["list"],
    ["list", "--json", "--status", "running"],
    ["show", "shop.charge#17"],
    ["show", "id-17", "--scan"],
    ["show", "--task", "shop.charge", "--arg", "order_id=17"],
    ["release", "shop.charge#17", "--yes"],
    ["forget", "shop.charge#17", "--yes"],
    ["purge", "--status", "failed", "--before", "1d", "--yes"],
    ["watch", "--once"],
    ["create-table"],
    ["create-table", "--deletion-protection"],
)


def charge(order_id: int) -> None:
    """A task body."""


def closed(_: ExitStack) -> int:
    """Return a port where nothing listens."""
    return free_port()


def silent(stack: ExitStack) -> int:
    """Return a port where connections are accepted, by the system, and nothing is ever said."""
    listener = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
    return int(listener.getsockname()[1])


def black_hole(stack: ExitStack) -> int:
    """Return a port that answers no connection: its queue is full, so that Linux drops each further one."""
    listener = stack.enter_context(socket.socket())
    listener.bind(("127.0.0.1", 0))
    listener.listen(0)
    for _ in range(BACKLOG):
        waiting = stack.enter_context(socket.socket())
        waiting.setblocking(False)
        waiting.connect_ex(listener.getsockname())
    return int(listener.getsockname()[1])


@pytest.fixture(params=[closed, silent, black_hole], ids=lambda kind: kind.__name__)
def port(request: pytest.FixtureRequest) -> Iterator[int]:
    """A port of this machine behind which no store answers."""
    kind: Callable[[ExitStack], int] = request.param
    with ExitStack() as stack:
        yield kind(stack)


@pytest.fixture
def app(port: int) -> Celery:
    """An app whose store does not answer, nor does its broker."""
    app = Celery("shop", broker=f"redis://127.0.0.1:{port}/0", set_as_current=False)
    app.conf.idempotency_store = f"dynamodb://local:local@127.0.0.1:{port}/shop"
    policy = Idempotency(key="order_id")
    app.task(charge, name="shop.charge", base=IdempotentTask, shared=False, idempotency=policy)
    return app


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_a_command_says_soon_that_nothing_answers(
    app: Celery, port: int, words: list[str], record_property: Callable[[str, object], None]
) -> None:
    """It ends with 3, and names the table, the place, and what to start."""
    begun = time.monotonic()
    result = CliRunner().invoke(idempotency, words, obj=SimpleNamespace(app=app))
    took = time.monotonic() - begun
    record_property("seconds", round(took, 2))
    assert result.exit_code == 3, result.output
    assert "table 'shop' at http://127.0.0.1:" in result.stderr
    assert "got no answer" in result.stderr
    assert f"python -m idempotent_tasks dynamodb --table shop --port {port}" in result.stderr
    assert took < WITHIN_SECONDS


def test_the_check_says_so_too(app: Celery, port: int, record_property: Callable[[str, object], None]) -> None:
    """For the check it is a finding, with the same remedy."""
    begun = time.monotonic()
    result = CliRunner().invoke(idempotency, ["check"], obj=SimpleNamespace(app=app))
    took = time.monotonic() - begun
    record_property("seconds", round(took, 2))
    assert result.exit_code == 1, result.output
    assert "store-unreachable: dynamodb:DescribeTable on table 'shop'" in result.stdout
    assert f"python -m idempotent_tasks dynamodb --table shop --port {port}" in result.stdout
    assert took < WITHIN_SECONDS


def test_whatever_the_time_outs_of_the_workers(port: int, record_property: Callable[[str, object], None]) -> None:
    """A store whose client is given a minute has no more than a few seconds in a command."""
    app = Celery("shop", broker="memory://", set_as_current=False)
    config = Config(connect_timeout=60, read_timeout=60)
    app.conf.idempotency_store = DynamoDBStore(
        "shop", endpoint_url=f"http://127.0.0.1:{port}", region="us-east-1", config=config
    )
    for words in ["list"], ["show", "shop.charge#17"]:
        begun = time.monotonic()
        assert CliRunner().invoke(idempotency, words, obj=SimpleNamespace(app=app)).exit_code == 3
        took = time.monotonic() - begun
        record_property(words[0], round(took, 2))
        assert took < WITHIN_SECONDS
