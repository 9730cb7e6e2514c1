"""What a worker says when it starts: in its log, with time and level, wherever that goes, whatever the pool."""

import os
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.testbed.processes import ChildProcess, child
from tests.testbed.waiting import wait_for

START_SECONDS = 60.0
#: Time, level and process, as ``worker_log_format`` has them by default.
LINE = r"^\[\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3}: (\w+)/MainProcess\] (.*)$"

#: kombu's transport in memory is a finding, and so needs no broker, no store and no table.
PROJECT = """\
import logging
import os
from celery import Celery, signals
from idempotent_tasks import IdempotentTask

app = Celery("shop", broker="memory://", backend="cache+memory://")
app.conf.update(idempotency_store="memory://", broker_connection_retry_on_startup=True)
{more}

@app.task(base=IdempotentTask)
def charge(order_id): ...
"""

Start = Callable[..., ChildProcess]


@pytest.fixture
def log(tmp_path: Path) -> Path:
    """The worker's log file."""
    return tmp_path / "worker.log"


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Start ``celery worker`` on a project with more settings and options; what it prints is beside its log file."""
    with ExitStack() as stack:

        def start(*options: str, more: str = "", **environment: str) -> ChildProcess:
            (tmp_path / "proj.py").write_text(PROJECT.format(more=more))
            command = [sys.executable, "-m", "celery", "-A", "proj", "worker", "-c", "1", "-l", "INFO", *options]
            env = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1", **environment}
            return stack.enter_context(child(command, tmp_path / "printed.txt", env))

        yield start


def lines(log: Path) -> list[tuple[str, str]]:
    """Return level and message of each line of a log that has both."""
    return re.findall(LINE, log.read_text(), re.MULTILINE) if log.exists() else []


def wait_until_ready(log: Path, worker: ChildProcess) -> list[tuple[str, str]]:
    """Return the lines up to the one that says that the worker is ready."""

    def up_to_ready() -> list[tuple[str, str]]:
        found = lines(log)
        ready = [number for number, (_, message) in enumerate(found) if message.endswith(" ready.")]
        return found[: ready[0]] if ready else []

    return wait_for(up_to_ready, START_SECONDS, lambda: f"not ready:\n{worker.tail()}")


@pytest.mark.parametrize("pool", ["solo", "threads"])
@pytest.mark.parametrize("hijack", [True, False])
def test_findings_are_in_the_log_file(start: Start, log: Path, pool: str, hijack: bool) -> None:
    """Each is one WARNING before the first message, also where Celery leaves the root logger alone."""
    worker = start("-P", pool, "-f", str(log), more=f"app.conf.worker_hijack_root_logger = {hijack}")
    said = wait_until_ready(log, worker)
    assert [level for level, message in said if "transport-never-redelivers: " in message] == ["WARNING"]
    assert "transport-never-redelivers" not in worker.tail(1000)


def test_findings_of_a_prefork_worker_are_in_the_log_file(start: Start, log: Path) -> None:
    """They are the parent's, once, whatever number of children it has."""
    more = (
        'app.conf.idempotency_store = "dynamodb://127.0.0.1:1/keys"\n'
        '@app.task(idempotency={"key": "order_id"})\n'
        "def refund(order_id): ...\n"
    )
    worker = start("-P", "prefork", "-f", str(log), more=more)
    said = wait_until_ready(log, worker)
    for code in ("transport-never-redelivers", "store-unreachable", "time-limit-missing", "task-not-guarded"):
        assert [level for level, message in said if f"{code}: " in message] == ["WARNING"]


def test_a_key_without_effect_is_in_the_log_file(start: Start, log: Path) -> None:
    """The worker says it once, when it receives the first such message."""
    more = (
        "@app.task(ignore_result=True)\n"
        "def refund(number): logging.getLogger('proj').warning('refund %s', number)\n"
        "@signals.worker_ready.connect(weak=False)\n"
        "def send(**_):\n"
        "    for number in range(3):\n"
        "        refund.apply_async((number,), headers={'idempotency_key': 'k'})\n"
    )
    worker = start("-P", "solo", "-f", str(log), more=more)
    wait_for(lambda: any("refund 2" in message for _, message in lines(log)), START_SECONDS, worker.tail)
    said = [level for level, message in lines(log) if "task 'proj.refund' is not guarded, so the" in message]
    assert said == ["WARNING"]


def test_findings_are_on_the_terminal_with_time_and_level(start: Start, tmp_path: Path) -> None:
    """Without a log file they are lines like all others."""
    worker = start("-P", "solo")
    said = wait_until_ready(tmp_path / "printed.txt", worker)
    assert [level for level, message in said if "transport-never-redelivers: " in message] == ["WARNING"]


def test_findings_are_in_a_log_of_the_users_own(start: Start, tmp_path: Path) -> None:
    """A program that sets logging up by itself (``celery.signals.setup_logging``) has them there."""
    own = tmp_path / "own.log"
    more = (
        "@signals.setup_logging.connect(weak=False)\n"
        "def set_up(**_):\n"
        f"    logging.basicConfig(filename={str(own)!r}, level='INFO', format='OWN %(levelname)s %(message)s')\n"
    )
    worker = start("-P", "solo", more=more)
    wait_for(lambda: own.exists() and " ready." in own.read_text(), START_SECONDS, worker.tail)
    before = own.read_text().partition(" ready.")[0]
    assert before.count("OWN WARNING transport-never-redelivers: ") == 1


def test_the_kill_switch_is_in_the_log_file(start: Start, log: Path) -> None:
    """It is loud where people look."""
    worker = start("-P", "solo", "-f", str(log), IDEMPOTENCY_DISABLED="1")
    said = wait_until_ready(log, worker)
    assert [level for level, message in said if "idempotency is DISABLED" in message] == ["WARNING"]


@pytest.mark.parametrize(
    ("pool", "more", "why"),
    [
        ("prefork", "", "a memory:// store cannot guard a prefork worker"),
        ("solo", 'app.conf.idempotency_on_busy = "queue"', "on_busy='queue'"),
        ("threads", 'app.conf.idempotency_checks = "error"', "the checks found transport-never-redelivers"),
    ],
    ids=["store", "setting", "finding"],
)
def test_a_refusal_is_in_the_log_file(start: Start, log: Path, pool: str, more: str, why: str) -> None:
    """The worker ends before its first message, with an exit status and a line on the terminal that says why."""
    pidfile = log.with_suffix(".pid")
    worker = start("-P", pool, "-f", str(log), "--pidfile", str(pidfile), more=more)
    assert worker.wait_for_exit(START_SECONDS) == 1
    assert "idempotent_tasks: " in worker.tail()
    assert why in worker.tail()
    said = lines(log)
    assert [level for level, message in said if "the worker does not start" in message and why in message] == [
        "CRITICAL"
    ]
    assert not any(message.endswith(" ready.") for _, message in said)
    assert not pidfile.exists()
