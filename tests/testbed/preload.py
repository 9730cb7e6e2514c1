"""Celery workers forked from a server that has imported what they need: the same processes for a third of the work."""

import atexit
import multiprocessing
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from multiprocessing.context import ForkServerContext
from pathlib import Path

from tests.testbed.parents import die_with_parent

__all__ = ["PreloadedCelery"]

#: What every worker imports, most of it only as it starts.
MODULES = (
    "billiard.popen_fork",
    "billiard.sharedctypes",
    "boto3",
    "botocore.session",
    "celery.__main__",
    "celery.app.control",
    "celery.app.events",
    "celery.app.log",
    "celery.app.trace",
    "celery.apps.worker",
    "celery.backends.redis",
    "celery.bin.celery",
    "celery.concurrency.prefork",
    "celery.events.receiver",
    "celery.loaders.app",
    "celery.utils.debug",
    "celery.utils.static",
    "celery.worker.autoscale",
    "celery.worker.components",
    "celery.worker.consumer",
    "celery.worker.strategy",
    # Of use where billiard finds it: its processes ask by it to die with their parent.
    "cffi.cparser",
    "encodings.idna",
    "idempotent_tasks",
    "kombu.mixins",
    "kombu.pidbox",
    "kombu.transport.pyamqp",
    "kombu.transport.redis",
    "tests.testbed.descriptions",
    "urllib3",
    # The last, for all of them.
    "tests.testbed.frozen",
)


def _server() -> ForkServerContext:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(MODULES))
    return context


class PreloadedCelery:
    """``python -m celery ARGUMENTS`` in a forked process; what `subprocess.Popen` offers of it."""

    def __init__(self, arguments: Sequence[str], log: Path, env: Mapping[str, str], cwd: Path) -> None:
        self._process = _server().Process(target=_become_celery, args=(list(arguments), log, dict(env), cwd))
        self._process.start()

    @property
    def pid(self) -> int:
        """The process id, which is the id of its group too."""
        pid = self._process.pid
        assert pid is not None
        return pid

    def poll(self) -> int | None:
        """Return the exit status, negative for a signal, or None while it runs."""
        return self._process.exitcode

    def wait(self, timeout: float) -> None:
        """Return when it has exited.

        Raises:
            TimeoutError: it did not in so many seconds.
        """
        self._process.join(timeout)
        if self._process.exitcode is None:
            raise TimeoutError(f"process {self.pid} runs on after {timeout:g} s")

    def send_signal(self, number: int) -> None:
        """Send it a signal, if it runs."""
        if self.poll() is None:
            os.kill(self.pid, number)


def _become_celery(arguments: list[str], log: Path, env: dict[str, str], cwd: Path) -> None:
    os.setsid()
    die_with_parent()
    os.environ.clear()
    os.environ.update(env)
    os.chdir(cwd)
    output = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    nothing = os.open(os.devnull, os.O_RDONLY)
    for here, there in ((nothing, 0), (output, 1), (output, 2)):
        os.dup2(here, there)
    sys.path.insert(0, str(cwd))
    sys.argv = ["celery", *arguments]
    multiprocessing.current_process().name = "MainProcess"
    signal.signal(signal.SIGINT, signal.default_int_handler)

    from celery.__main__ import main

    try:
        main()
    finally:
        # multiprocessing leaves through os._exit(), which no interpreter that was started by itself does.
        atexit._run_exitfuncs()
