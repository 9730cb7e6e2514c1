"""RabbitMQ: the one that ``AMQP_URL`` names or that runs on the default port, else one of our own."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from kombu import Connection

from tests.support.services import unavailable
from tests.testbed.processes import child, free_port, listening
from tests.testbed.waiting import wait_for

DEFAULT_URL = "amqp://guest:guest@127.0.0.1:5672//"
DEBIAN_EXECUTABLE = "/usr/lib/rabbitmq/bin/rabbitmq-server"
START_SECONDS = 90.0
REMEDY = "sudo apt-get install --no-install-recommends rabbitmq-server (or docker compose up -d rabbitmq)"


@contextmanager
def rabbitmq_server(directory: Path) -> Iterator[str]:
    """Yield the URL of a broker that answers."""
    url = os.environ.get("AMQP_URL", DEFAULT_URL)
    if _answers(url):
        yield url
        return
    if "AMQP_URL" in os.environ:
        unavailable("RabbitMQ", "nothing answers at AMQP_URL", REMEDY)
    # Debian's wrapper on PATH changes the user, so the server itself is preferred.
    executable = shutil.which(DEBIAN_EXECUTABLE) or shutil.which("rabbitmq-server")
    epmd = shutil.which("epmd")
    if executable is None or epmd is None:
        unavailable("RabbitMQ", f"nothing answers at {DEFAULT_URL} and no rabbitmq-server is installed", REMEDY)
    with _own_server(executable, epmd, directory) as own_url:
        yield own_url


@contextmanager
def _own_server(executable: str, epmd: str, directory: Path) -> Iterator[str]:
    port, distribution_port, epmd_port = free_port(), free_port(), free_port()
    env = os.environ | _environment(directory, port, distribution_port, epmd_port)
    url = f"amqp://guest:guest@127.0.0.1:{port}//"
    # Erlang's port mapper would be started as a daemon that outlives the server; it finds this one instead.
    with child([epmd], directory / "epmd.log", env):
        wait_for(lambda: listening(epmd_port), START_SECONDS, "epmd did not start")
        with child([executable], directory / "rabbitmq.log", env) as server:
            wait_for(lambda: _answers(url), START_SECONDS, lambda: f"RabbitMQ did not start:\n{server.tail()}")
            yield url


def _environment(directory: Path, port: int, distribution_port: int, epmd_port: int) -> dict[str, str]:
    plugins = directory / "enabled_plugins"
    plugins.write_text("[].\n")
    configuration = directory / "rabbitmq.conf"
    configuration.write_text("loopback_users.guest = true\n")
    return {
        "HOME": str(directory),
        "ERL_EPMD_ADDRESS": "127.0.0.1",
        "ERL_EPMD_PORT": str(epmd_port),
        "RABBITMQ_CONFIG_FILE": str(configuration),
        "RABBITMQ_DIST_PORT": str(distribution_port),
        "RABBITMQ_ENABLED_PLUGINS_FILE": str(plugins),
        "RABBITMQ_LOG_BASE": str(directory),
        "RABBITMQ_MNESIA_BASE": str(directory / "mnesia"),
        "RABBITMQ_NODENAME": f"tests-{port}@localhost",
        "RABBITMQ_NODE_IP_ADDRESS": "127.0.0.1",
        "RABBITMQ_NODE_PORT": str(port),
        "RABBITMQ_PID_FILE": str(directory / "rabbitmq.pid"),
    }


def _answers(url: str) -> bool:
    try:
        with Connection(url, connect_timeout=2) as connection:
            connection.connect()
    except OSError:
        return False
    return True
