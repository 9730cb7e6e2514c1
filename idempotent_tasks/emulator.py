"""A DynamoDB for development and the demo: ``roto-server`` of the package roto-aws, in memory, as a child process."""

import errno
import os
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from types import FrameType
from typing import Final

import click

from idempotent_tasks.core.clock import SystemClock
from idempotent_tasks.errors import IdempotencyError
from idempotent_tasks.stores.dynamodb import DynamoDBStore
from idempotent_tasks.stores.dynamodb.store import local_url

__all__ = ["EmulatorError", "running", "serve", "unwinding_on_signals"]

_START_SECONDS: Final = 10.0
_END_SECONDS: Final = 5.0
_POLL_SECONDS: Final = 0.02
#: Characters of the server's log that an error quotes, from its end.
_LOG_CHARACTERS: Final = 500
#: Addresses that mean every interface of a machine, and are none to connect to.
_WILDCARDS: Final = ("0.0.0.0", "::")  # noqa: S104 - compared with, not listened on


class EmulatorError(click.ClickException):
    """The emulator cannot run: it is not installed, its port is taken, or it ended by itself."""

    exit_code = 2


def serve(*, host: str, port: int, table: str) -> None:
    """Run the emulator with a table until SIGINT, SIGTERM or SIGHUP, and print the settings for it.

    Raises:
        ConfigurationError: the table's name cannot be one.
        EmulatorError: it is not installed, its port is taken, its table cannot be created, or it ended by itself.
        SystemExit: a signal has ended it, with status 0.
    """
    url = local_url(table, host="localhost" if host in (*_WILDCARDS, "127.0.0.1", "::1") else host, port=port)
    store = DynamoDBStore.from_url(url)
    with unwinding_on_signals(status=0), TemporaryDirectory(prefix="idempotent-tasks-dynamodb-") as folder:
        log = Path(folder) / "server.log"
        with running(host, port, log) as server:
            try:
                store.create_table()
            except IdempotencyError as error:
                raise EmulatorError(f"the table cannot be created: {error}") from error
            click.echo(
                f"A DynamoDB stand-in for development listens on {host}:{port}, with the table {table!r}.\n"
                "It keeps everything in memory: all records are gone when it ends (Ctrl-C).\n\n"
                f'Celery:  app.conf.idempotency_store = "{url}"\n'
                f'Django:  CELERY_IDEMPOTENCY_STORE = "{url}"\n\n'
                "The credentials in the URL are made up: it takes any."
            )
            ended = server.wait()
        raise EmulatorError(f"the stand-in ended by itself, with status {ended}: {_end_of(log)}")


@contextmanager
def running(host: str, port: int, log: Path, *, own_session: bool = False) -> Iterator[subprocess.Popen[bytes]]:
    """Run the emulator for the length of a block, which begins when it listens.

    Args:
        host, port: where it listens.
        log: the file for its output.
        own_session: whether to keep signals of the terminal, such as Ctrl-C, from it.

    Raises:
        EmulatorError: it is not installed, its port is taken, or it did not start in time.
    """
    command = [_executable(), "--host", host, "--port", str(port), "--ephemeral"]
    _check_free(host, port)
    with log.open("wb") as output:
        try:
            server = subprocess.Popen(  # noqa: S603 - our own command line
                command,
                cwd=log.parent,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=own_session,
            )
        except OSError as error:
            raise EmulatorError(f"{command[0]} cannot be run here: {error.strerror}") from error
    try:
        _await_listening(server, host, port, log)
        yield server
    finally:
        server.terminate()
        try:
            server.wait(_END_SECONDS)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()


@contextmanager
def unwinding_on_signals(status: int | None = None) -> Iterator[None]:
    """Raise `SystemExit` on SIGINT, SIGTERM and SIGHUP, so that every context manager is left.

    Args:
        status: of the exit; 128 plus the signal's number by default.
    """

    def leave(number: int, _frame: FrameType | None) -> None:
        sys.exit(128 + number if status is None else status)

    before = {number: signal.signal(number, leave) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _executable() -> str:
    places = [str(Path(sys.executable).parent), sysconfig.get_path("scripts"), os.environ.get("PATH", "")]
    found = shutil.which("roto-server", path=os.pathsep.join(places))
    if found is None:
        msg = (
            "roto-server, which stands in for DynamoDB, is not installed; install it with: pip install roto-aws "
            "(it is in the extras dev and demo of idempotent-tasks)"
        )
        raise EmulatorError(msg)
    return found


def _check_free(host: str, port: int) -> None:
    try:
        socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET).close()
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            msg = (
                f"port {port} of {host} is taken: by a stand-in that runs already, by another one such as DynamoDB "
                f"Local, or by a web server such as Django's; end that, or choose another port: --port {port + 1}"
            )
            raise EmulatorError(msg) from error
        raise EmulatorError(f"cannot listen on port {port} of {host!r}: {error.strerror}") from error


def _await_listening(server: subprocess.Popen[bytes], host: str, port: int, log: Path) -> None:
    clock = SystemClock()
    give_up_at = clock.monotonic() + _START_SECONDS
    address = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104 - connected to
    while clock.monotonic() < give_up_at:
        if server.poll() is not None:
            raise EmulatorError(f"roto-server ended with status {server.returncode}: {_end_of(log)}")
        try:
            socket.create_connection((address, port), timeout=1).close()
        except OSError:
            clock.sleep(_POLL_SECONDS)
        else:
            return
    raise EmulatorError(f"roto-server does not listen on port {port} after {_START_SECONDS:g} s: {_end_of(log)}")


def _end_of(log: Path) -> str:
    """Return the end of the server's output, for a message."""
    return log.read_text(errors="replace").strip()[-_LOG_CHARACTERS:] or "it said nothing"
