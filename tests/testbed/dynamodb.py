"""Two DynamoDB stand-ins: ministack (also serves SQS; returns old items) and roto-aws (strict; returns none)."""

import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPConnection, HTTPException
from pathlib import Path

from tests.support.services import unavailable
from tests.testbed.processes import ChildProcess, child, free_port, listening
from tests.testbed.waiting import wait_for

PROJECT_ROOT = Path(__file__).parents[2]
START_SECONDS = 30.0

#: Whether the tests' own stores take the short road: all of them do, or with ``IDEMPOTENT_TASKS_ROAD=stock`` none.
ROAD_VARIABLE = "IDEMPOTENT_TASKS_ROAD"
FAST = {"fast": True, "stock": False}[os.environ.get(ROAD_VARIABLE, "fast")]

MINISTACK_VARIABLE = "IDEMPOTENT_TASKS_MINISTACK"
MINISTACK_REMEDY = (
    "python3 -m venv .venv-ministack && .venv-ministack/bin/pip install 'ministack>=1.5.33'"
    f" (or set {MINISTACK_VARIABLE} to its executable)"
)


@contextmanager
def ministack_server(directory: Path) -> Iterator[str]:
    """Run ministack in a directory and yield its endpoint URL; it lives in an environment that pins its botocore."""
    port = free_port()
    env = os.environ | {"BIND_HOST": "127.0.0.1", "GATEWAY_PORT": str(port), "TMPDIR": str(directory)}
    with child([_ministack_executable()], directory / "ministack.log", env) as server:
        wait_for(lambda: _healthy(port), START_SECONDS, lambda: _did_not_start(server))
        yield f"http://127.0.0.1:{port}"


@contextmanager
def roto_server(directory: Path) -> Iterator[str]:
    """Run roto-aws, in memory, and yield its endpoint URL."""
    port = free_port()
    command = [str(_roto_executable()), "--host", "127.0.0.1", "--port", str(port), "--ephemeral"]
    with child(command, directory / "roto.log") as server:
        wait_for(lambda: listening(port), START_SECONDS, lambda: _did_not_start(server))
        yield f"http://127.0.0.1:{port}"


def _ministack_executable() -> Path:
    named = os.environ.get(MINISTACK_VARIABLE) or shutil.which("ministack")
    path = Path(named) if named else PROJECT_ROOT / ".venv-ministack" / "bin" / "ministack"
    if not path.is_file():
        unavailable("ministack (DynamoDB and SQS)", f"no executable at {path}", MINISTACK_REMEDY)
    return path


def _roto_executable() -> Path:
    path = Path(sys.executable).with_name("roto-server")
    if not path.is_file():
        unavailable("roto-aws (DynamoDB)", f"no executable at {path}", "pip install roto-aws")
    return path


def _healthy(port: int) -> bool:
    connection = HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("GET", "/_ministack/health")
        return connection.getresponse().status == 200
    except (OSError, HTTPException):
        return False
    finally:
        connection.close()


def _did_not_start(server: ChildProcess) -> str:
    return f"a server did not start (exit status {server.returncode}); its output ends with\n{server.tail()}"
