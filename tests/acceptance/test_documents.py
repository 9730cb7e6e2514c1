"""Every code block of every document does what it shows, on servers of its own that stand in for those it names."""

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from celery import _state
from celery.app import builtins
from kombu import Connection

from tests.support.documents import Book
from tests.support.receipts import new_database
from tests.testbed.processes import free_port
from tests.testbed.servers import redis_server, roto_server

ROOT = Path(__file__).parents[2]
PROPERTY = "code blocks"
#: Those of the examples are executed with their applications, by test_examples_*.py.
PLACES = ("*.md", "benchmarks/*.md", "docs/**/*.md")
DOCUMENTS = [
    path
    for place in PLACES
    for path in sorted(ROOT.glob(place))
    if "_build" not in path.parts and "```" in path.read_text(encoding="utf-8")
]
#: The queue of the examples on RabbitMQ, which may be a server with other queues.
QUEUE = "shop-orders"
#: The database of the page about Django.
DATABASE = "website"
#: That of the page about SQLAlchemy.
DATABASE_URL = "postgresql+psycopg://localhost/shop"
#: What stands in for DynamoDB, on a port that may be taken here.
STAND_IN = "python -m idempotent_tasks dynamodb"


@pytest.fixture
def replacements(
    path: Path, request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[dict[str, str]]:
    """What stands for the servers that the document names; all but RabbitMQ are its own."""
    text = path.read_text(encoding="utf-8")
    monkeypatch.delenv("REDIS_URL", raising=False)
    servers = tmp_path / "servers"
    servers.mkdir()
    with ExitStack() as stack:
        found = {QUEUE: f"{QUEUE}-{uuid4().hex[:8]}"}
        found["localhost:6379"] = stack.enter_context(redis_server(servers)).removeprefix("redis://")
        if STAND_IN in text:  # the document's own command starts it
            port = free_port()
            found |= {STAND_IN: f"{STAND_IN} --port {port}", "localhost:8000": f"localhost:{port}"}
        else:
            dynamodb = stack.enter_context(roto_server(servers))
            found["localhost:8000"] = dynamodb.removeprefix("http://")
            monkeypatch.setenv("AWS_ENDPOINT_URL_DYNAMODB", dynamodb)
            monkeypatch.setenv("AWS_ENDPOINT_URL_SQS", dynamodb)
        if "amqp://" in text:
            url = request.getfixturevalue("amqp_url")
            found["amqp://guest:guest@localhost:5672//"] = url
            stack.callback(_delete_queue, url, found[QUEUE])
        if DATABASE_URL in text:
            at = request.getfixturevalue("postgresql")
            found[DATABASE_URL] = stack.enter_context(new_database("postgresql", at, tmp_path)).url
        if "django.db.backends.postgresql" in text:
            server: dict[str, str] = request.getfixturevalue("postgresql")
            for name, value in server.items():
                monkeypatch.setenv(name, value)
            found[f'"NAME": "{DATABASE}"'] = f'"NAME": "{stack.enter_context(_database(server))}"'
        yield found


@contextmanager
def _database(server: dict[str, str]) -> Iterator[str]:
    """Have an empty database on a PostgreSQL for the length of a block, and that of Django's tests gone after it."""
    psycopg: Any = import_module("psycopg")  # only where there is a PostgreSQL
    host, port, user = server.values()
    name = f"{DATABASE}_{uuid4().hex[:12]}"
    with psycopg.connect(host=host, port=port, user=user, dbname="postgres", autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}")
        try:
            yield name
        finally:
            for each in (name, f"test_{name}"):
                connection.execute(f"DROP DATABASE IF EXISTS {each} WITH (FORCE)")


def _delete_queue(url: str, name: str) -> None:
    with Connection(url) as connection:
        connection.default_channel.queue_delete(name)


@pytest.fixture
def book(path: Path, replacements: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Book]:
    """The document, in a folder that Python imports from."""
    folder = tmp_path / "reader"
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(folder)
    book = Book(path, folder, replacements, os.environ)
    modules, app = set(sys.modules), _state.get_current_app()
    # Celery adds the tasks of each app to every app that is finalised later, also to another document's.
    own = {each for each in _state._on_app_finalizers if each.__module__ == builtins.__name__}
    monkeypatch.setattr(_state, "_on_app_finalizers", own)
    try:
        yield book
    finally:
        book.close()
        _state._set_current_app(app)
        for name in set(sys.modules) - modules:
            if str(folder) in str(getattr(sys.modules[name], "__file__", "")):
                del sys.modules[name]


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_every_code_block_does_what_it_shows(book: Book, record_property: Callable[[str, object], None]) -> None:
    """Python runs, commands run or are parsed by what they call, data parse; nothing is left out without a reason."""
    book.execute()
    tally = book.tally
    record_property(PROPERTY, [tally.executed, tally.checked, len(tally.skipped)])
