"""``python -m idempotent_tasks dynamodb`` as a user starts it, with an empty home and without AWS variables."""

import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from click.testing import CliRunner

from idempotent_tasks import DynamoDBStore
from idempotent_tasks.__main__ import main
from idempotent_tasks.core.records import Granted
from tests.support.guarding import request_by
from tests.testbed.processes import ChildProcess, free_port, listening

START_SECONDS = 40.0
URL = re.compile(r'app\.conf\.idempotency_store = "(\S+)"')


def environment(home: Path) -> dict[str, str]:
    """Return the environment of somebody who has just installed the library."""
    kept = ("PATH", "PYTHONPATH", "LANG", "COVERAGE_PROCESS_START", "COVERAGE_PROCESS_CONFIG")
    return {"HOME": str(home), "TMPDIR": str(home), **{name: os.environ[name] for name in kept if name in os.environ}}


@contextmanager
def started(home: Path, *options: str) -> Iterator[ChildProcess]:
    """Run the command for the length of a block, from when it has said what to put into the settings."""
    command = [sys.executable, "-m", "idempotent_tasks", "dynamodb", *options]
    process = ChildProcess(command, home.parent / "output.txt", environment(home), home)
    try:
        process.wait_until(lambda: "takes any" in process.tail(), START_SECONDS)
        yield process
    finally:
        process.kill()


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """An empty home."""
    home = tmp_path / "home"
    home.mkdir()
    return home


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_from_the_first_line_to_the_end(home: Path, number: signal.Signals) -> None:
    """The URL that it prints works as it is; a signal ends it with 0, and leaves no process and no file."""
    port = free_port()
    with started(home, "--port", str(port), "--table", "orders") as process:
        (url,) = URL.findall(process.tail())
        assert url == f"dynamodb://local:local@localhost:{port}/orders"
        assert isinstance(DynamoDBStore.from_url(url).claim(request_by()), Granted)
        DynamoDBStore.from_url(url).verify()
        process.end_by(number)
        assert process.returncode == 0, process.tail()
        assert not listening(port)
        assert list(home.iterdir()) == []


def test_the_defaults(monkeypatch: pytest.MonkeyPatch) -> None:
    """The table and the port are those of the documents."""
    given: dict[str, object] = {}
    monkeypatch.setattr("idempotent_tasks.__main__.serve", lambda **options: given.update(options))
    assert CliRunner().invoke(main, ["dynamodb"]).exit_code == 0
    assert given == {"host": "127.0.0.1", "port": 8000, "table": "celery-idempotency"}


def test_a_port_that_is_taken(home: Path) -> None:
    """The second one says so, and which port to try, and ends with 2."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        result = CliRunner().invoke(main, ["dynamodb", "--port", str(port)])
    assert result.exit_code == 2
    assert f"port {port} of 127.0.0.1 is taken" in result.output
    assert f"--port {port + 1}" in result.output


def test_an_address_of_another_machine() -> None:
    """An address that cannot be listened on is named."""
    result = CliRunner().invoke(main, ["dynamodb", "--host", "192.0.2.1", "--port", str(free_port())])
    assert result.exit_code == 2
    assert "cannot listen on port" in result.output
    assert "'192.0.2.1'" in result.output


def test_without_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    """What to install is said."""
    monkeypatch.setattr("shutil.which", lambda *_, **__: None)
    result = CliRunner().invoke(main, ["dynamodb"])
    assert result.exit_code == 2
    assert "pip install roto-aws" in result.output


def test_a_table_name_that_cannot_be() -> None:
    """It is refused before anything is started."""
    result = CliRunner().invoke(main, ["dynamodb", "--table", "my table"])
    assert result.exit_code == 2
    assert "'my table' is no name of a DynamoDB table" in result.output


def test_a_server_that_ends_by_itself(home: Path) -> None:
    """The command ends with it, with 2, and says so."""
    with started(home, "--port", str(free_port())) as process:
        children = subprocess.run(["pgrep", "-P", str(process.pid)], capture_output=True, text=True, check=True)
        os.kill(int(children.stdout), signal.SIGKILL)
        assert process.wait_for_exit() == 2
        assert "ended by itself, with status -9" in process.tail()


def test_a_server_that_never_listens(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What ends at once instead of listening is quoted."""
    fake = home / "roto-server"
    fake.write_text("#!/bin/sh\necho no disk here >&2\nexit 7\n")
    fake.chmod(0o755)
    monkeypatch.setattr("shutil.which", lambda *_, **__: str(fake))
    result = CliRunner().invoke(main, ["dynamodb", "--port", str(free_port())])
    assert result.exit_code == 2
    assert "ended with status 7: no disk here" in result.output


def test_a_server_of_another_platform(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What this machine cannot run is no traceback."""
    fake = home / "roto-server"
    fake.write_bytes(b"\x7fELF of another machine")
    fake.chmod(0o755)
    monkeypatch.setattr("shutil.which", lambda *_, **__: str(fake))
    result = CliRunner().invoke(main, ["dynamodb", "--port", str(free_port())])
    assert result.exit_code == 2
    assert "cannot be run here" in result.output


@pytest.mark.parametrize(
    ("script", "said"),
    [
        ("exec sleep 60", "does not listen on port"),
        ("trap '' TERM; while :; do sleep 60 & wait; done", "does not listen on port"),
    ],
    ids=["deaf", "stubborn"],
)
def test_a_server_that_hangs(home: Path, monkeypatch: pytest.MonkeyPatch, script: str, said: str) -> None:
    """It is not waited for longer than it may take to start, nor to end: then it is killed."""
    fake = home / "roto-server"
    fake.write_text(f"#!/bin/bash\n{script}\n")
    fake.chmod(0o755)
    monkeypatch.setattr("shutil.which", lambda *_, **__: str(fake))
    monkeypatch.setattr("idempotent_tasks.emulator._START_SECONDS", 0.5)
    monkeypatch.setattr("idempotent_tasks.emulator._END_SECONDS", 0.5)
    result = CliRunner().invoke(main, ["dynamodb", "--port", str(free_port())])
    assert result.exit_code == 2
    assert said in result.output


def test_a_table_that_cannot_be_created(monkeypatch: pytest.MonkeyPatch) -> None:
    """Here boto3 is told to use a profile that does not exist: the command ends, and says so."""
    monkeypatch.setenv("AWS_PROFILE", "nobody")
    result = CliRunner().invoke(main, ["dynamodb", "--port", str(free_port())])
    assert result.exit_code == 2
    assert "the table cannot be created" in result.output
    assert "nobody" in result.output
