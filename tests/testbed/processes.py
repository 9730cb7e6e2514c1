"""Child processes that never outlive the tests: each leads a process group, and dies with the test run."""

import os
import signal
import socket
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from itertools import cycle, islice
from pathlib import Path

from tests.testbed.parents import die_with_parent
from tests.testbed.preload import PreloadedCelery
from tests.testbed.waiting import wait_for

STOP_SECONDS = 10.0

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
        self._popen: subprocess.Popen[bytes] | PreloadedCelery
        words = [str(word) for word in command]
        if preloaded:
            self._popen = PreloadedCelery(words[words.index("celery") + 1 :], log, env, cwd)
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
