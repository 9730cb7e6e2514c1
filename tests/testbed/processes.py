"""Child processes that never outlive the run that started them: each leads a process group and dies with its parent."""

import atexit
import ctypes
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from itertools import cycle, islice
from pathlib import Path

from tests.testbed.waiting import wait_for

__all__ = [
    "PR_SET_PDEATHSIG",
    "ChildProcess",
    "child",
    "die_with_parent",
    "free_port",
    "listening",
    "running_in_group",
]

STOP_SECONDS = 10.0
PR_SET_PDEATHSIG = 1

PORTS = range(12_000, 32_000)

# The process id keeps test processes that start servers at the same moment off each other's ports.
_candidates = islice(cycle(PORTS), os.getpid() * 37 % len(PORTS), None)


class ChildProcess:
    """A command in a process group of its own, its output in a file.

    Args:
        command: the program and its arguments.
        log: the file, to which the output is appended.
        env: the whole environment.
        cwd: the folder to run it in.
        preloaded: fork it from a server that has imported its modules; only for ``python -m celery``.
    """

    def __init__(
        self, command: Sequence[str | Path], log: Path, env: Mapping[str, str], cwd: Path, *, preloaded: bool = False
    ) -> None:
        self.log = log
        self._popen: subprocess.Popen[bytes] | _PreloadedCelery
        words = [str(word) for word in command]
        if preloaded:
            self._popen = _PreloadedCelery(words[words.index("celery") + 1 :], log, env, cwd)
            return
        with log.open("ab") as output:
            self._popen = subprocess.Popen(
                words,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                cwd=cwd,
                env=dict(env),
                start_new_session=True,
                preexec_fn=die_with_parent,  # noqa: PLW1509 (it makes one system call)
            )

    @property
    def pid(self) -> int:
        """The leader's process id, which is the group's id too."""
        return self._popen.pid

    @property
    def returncode(self) -> int | None:
        """The leader's exit status, or None while it runs."""
        return self._popen.poll()

    def tail(self, lines: int = 40) -> str:
        """Return the end of the output, for a failure message."""
        text = self.log.read_text(errors="replace") if self.log.exists() else ""
        return "\n".join(text.splitlines()[-lines:])

    def wait_until(self, ready: Callable[[], object], timeout_seconds: float) -> None:
        """Return when it is ready.

        Raises:
            TimeoutError: it is not ready in time, or has exited; with the end of its output.
        """
        wait_for(
            lambda: self.returncode is not None or ready(),
            timeout_seconds,
            lambda: f"process {self.pid} is not ready; its output ends with\n{self.tail()}",
        )
        if self.returncode is not None:
            raise TimeoutError(f"process {self.pid} exited with {self.returncode}; its output ends with\n{self.tail()}")

    def kill(self) -> None:
        """SIGKILL the whole group and return when none of it is left."""
        with suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        self._popen.wait(STOP_SECONDS)
        wait_for(lambda: not running_in_group(self.pid), STOP_SECONDS, f"group {self.pid} survives SIGKILL")

    def send(self, number: signal.Signals) -> None:
        """Send the leader a signal."""
        self._popen.send_signal(number)

    def end_by(self, number: signal.Signals, timeout_seconds: float = STOP_SECONDS) -> None:
        """Send the leader a signal and return when it has exited.

        Raises:
            TimeoutError: it did not exit in time.
        """
        self.send(number)
        self.wait_for_exit(timeout_seconds)

    def wait_for_exit(self, timeout_seconds: float = STOP_SECONDS) -> int:
        """Return the leader's exit status when it has exited by itself.

        Raises:
            TimeoutError: it did not exit in time.
        """
        wait_for(
            lambda: self.returncode is not None,
            timeout_seconds,
            lambda: f"process {self.pid} does not exit; its output ends with\n{self.tail()}",
        )
        status = self.returncode
        assert status is not None
        return status

    def terminate(self, timeout_seconds: float = STOP_SECONDS) -> None:
        """SIGTERM the leader and return when it has exited by itself.

        Raises:
            TimeoutError: it did not exit in time.
        """
        self.end_by(signal.SIGTERM, timeout_seconds)


@contextmanager
def child(command: Sequence[str | Path], log: Path, env: Mapping[str, str] | None = None) -> Iterator[ChildProcess]:
    """Run a command beside its log file for the length of a block, then SIGKILL its whole group."""
    process = ChildProcess(command, log, os.environ if env is None else env, log.parent)
    try:
        yield process
    finally:
        process.kill()


def running_in_group(group: int) -> list[int]:
    """Return the ids of the group's processes that run, zombies left out: not every container's init reaps them."""
    listing = subprocess.run(["ps", "-A", "-o", "pgid=,pid=,stat="], check=True, capture_output=True, text=True)
    rows = [line.split() for line in listing.stdout.splitlines()]
    return [int(pid) for pgid, pid, stat in rows if int(pgid) == group and not stat.startswith("Z")]


def free_port() -> int:
    """Return a port of 127.0.0.1 that nothing listens on, below the range of outgoing connections."""
    for _ in range(len(PORTS)):
        candidate = next(_candidates)
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", candidate))
            except OSError:
                continue
            return candidate
    raise RuntimeError("no free port on 127.0.0.1")


def listening(port: int) -> bool:
    """Return whether something accepts connections on this port of 127.0.0.1."""
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


_libc = ctypes.CDLL(None) if sys.platform == "linux" else None


def die_with_parent() -> None:
    """Have Linux kill this process when its parent ends (``man 2 prctl``); elsewhere do nothing."""
    if _libc is not None:
        _libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def _forkserver() -> multiprocessing.context.ForkServerContext:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.testbed.preload"])
    return context


class _PreloadedCelery:
    """``python -m celery ARGUMENTS`` in a forked process; what `subprocess.Popen` offers of it."""

    def __init__(self, arguments: Sequence[str], log: Path, env: Mapping[str, str], cwd: Path) -> None:
        self._process = _forkserver().Process(target=_become_celery, args=(list(arguments), log, dict(env), cwd))
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
