"""Real ``celery worker`` processes, each a process group that can be killed or stopped as a whole or child by child."""

import json
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any, Final, Self

from tests.testbed.processes import ChildProcess, running_in_group

__all__ = ["PROJECT_ROOT", "CeleryWorker", "WorkerConfig", "cache_service_descriptions"]

PROJECT_ROOT: Final = Path(__file__).parents[2]
START_SECONDS: Final = 60.0
#: The environment variable that carries a `WorkerConfig` to a worker, as JSON.
VARIABLE: Final = "IDEMPOTENT_TASKS_TESTBED_WORKER"
#: Each makes a worker start by an interpreter of its own; the first is there for nothing else.
FRESH_VARIABLES: Final = {"IDEMPOTENT_TASKS_FRESH_WORKERS", "REMAP_SIGTERM"}


@dataclass(frozen=True, kw_only=True)
class WorkerConfig:
    """What a worker process must know: the base of dataclasses whose values travel in its environment."""

    def environment(self) -> dict[str, str]:
        """Return the variable that carries this value."""
        return {VARIABLE: json.dumps(asdict(self))}

    @classmethod
    def of_this_process(cls) -> Self:
        """Return the value that this process was started with."""
        return cls(**json.loads(os.environ[VARIABLE]))


class CeleryWorker:
    """One worker; with the ``prefork`` pool it has child processes, which are in its process group.

    Args:
        app: the module that ``celery -A`` loads.
        name: the worker's node name, which also names its log.
        queue: what it consumes.
        folder: where its log goes.
        environment: its whole environment.
        options: more of ``celery worker``.
        pool: the kind of pool.
        concurrency: how many processes or threads the pool has.
        loglevel: from which level on it logs.
        preloaded: fork it from a server that has imported what it needs, where its pool and environment allow that.
    """

    def __init__(
        self,
        app: str,
        name: str,
        queue: str,
        folder: Path,
        environment: dict[str, str],
        *options: str,
        pool: str = "prefork",
        concurrency: int = 2,
        loglevel: str = "INFO",
        preloaded: bool = False,
    ) -> None:
        self.name = name
        command = [sys.executable, "-m", "celery", "-A", app, "worker", "--pool", pool]
        command += ["--concurrency", str(concurrency), "--hostname", name, "--queues", queue]
        command += ["--loglevel", loglevel, "--without-gossip", "--without-mingle", "--without-heartbeat", *options]
        # gevent and eventlet replace what other modules import, and must come before them; the variables are read by
        # what was imported already.
        preloaded = preloaded and pool in ("prefork", "solo", "threads") and not FRESH_VARIABLES & set(os.environ)
        self.process = ChildProcess(command, folder / f"{name}.log", environment, PROJECT_ROOT, preloaded=preloaded)

    def wait_until_ready(self, ready: Callable[[], object]) -> None:
        """Return when it is ready.

        Raises:
            TimeoutError: it is not, or has exited; with the end of its log.
        """
        self.process.wait_until(ready, START_SECONDS)

    def kill(self) -> None:
        """SIGKILL the parent and every child of its pool at once."""
        self.process.kill()

    def signal_all(self, number: signal.Signals) -> None:
        """Send the parent and every child of its pool a signal, if they are still there."""
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, number)

    def signal_child(self, pid: int, number: signal.Signals) -> bool:
        """Send one child of the pool a signal, and return whether it was there."""
        with suppress(ProcessLookupError):
            if pid in self.children():
                os.kill(pid, number)
                return True
        return False

    def kill_child(self, pid: int) -> None:
        """SIGKILL one child of the pool, which must be there; a body writes its own id into the journal."""
        assert self.signal_child(pid, signal.SIGKILL), f"{pid} is no child of {self.name}: {self.children()}"

    @contextmanager
    def frozen_child(self, pid: int) -> Iterator[None]:
        """Let one child of the pool stand still, all its threads included, for the length of a block."""
        assert self.signal_child(pid, signal.SIGSTOP), f"{pid} is no child of {self.name}: {self.children()}"
        try:
            yield
        finally:
            self.signal_child(pid, signal.SIGCONT)

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """Let the parent and every child of its pool stand still for the length of a block."""
        self.signal_all(signal.SIGSTOP)
        try:
            yield
        finally:
            self.signal_all(signal.SIGCONT)

    def children(self) -> list[int]:
        """Return the ids of the pool's processes."""
        return [pid for pid in running_in_group(self.process.pid) if pid != self.process.pid]

    def log(self) -> str:
        """Return everything the worker logged."""
        return self.process.log.read_text(errors="replace")


def cache_service_descriptions() -> None:
    """Have boto3 read the descriptions of its services once, for this process and all that are forked from it.

    It reads more than 1 MB of JSON for each session otherwise, and looks for it in the folders of all services: every
    third sample found the workers of the tests at the reading.
    """
    import boto3
    from botocore.loaders import JSONFileLoader, Loader

    read, look = JSONFileLoader.load_file, Loader.list_available_services
    read_once: Callable[[str], Any] = cache(lambda path: read(JSONFileLoader(), path))
    # All of the tests look into the same folders: botocore's own.
    look_once: Callable[[str], list[str]] = cache(lambda kind: look(Loader(), type_name=kind))
    JSONFileLoader.load_file = lambda _, path: read_once(path)
    Loader.list_available_services = lambda _, type_name: look_once(type_name)
    for service in ("dynamodb", "sqs"):
        boto3.Session(aws_access_key_id="none", aws_secret_access_key="none", region_name="eu-west-1").client(service)
