"""Our commands, each in a process forked from one that has imported what others wrote, and nothing of ours.

Such a process is as good as an interpreter of its own: a bug that one plants in our modules reaches no other.  But
Celery and boto3, whose import is most of the work of a short command, were imported once for all of them.
"""

import gc
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from runpy import run_module
from tempfile import TemporaryFile
from typing import Any, Final

from tests.testbed.processes import die_with_parent
from tests.testbed.workers import PROJECT_ROOT

__all__ = ["ForkedCommands", "forked_commands"]

#: What has to be imported by each process for itself.
OWN: Final = {"idempotent_tasks", "simulation"}


class ForkedCommands:
    """A process to fork commands from, one after the other; `forked_commands` starts and ends it.

    Args:
        server: the process.

    Raises:
        RuntimeError: it has ended before it was ready.
    """

    def __init__(self, server: "subprocess.Popen[str]") -> None:
        self._server = server
        self._next_answer()

    def run(self, module: str, *arguments: str, timeout_seconds: int) -> "subprocess.CompletedProcess[str]":
        """Run ``python -m`` with a module of ours and arguments, and return how it ended.

        One that takes longer ends by SIGALRM.

        Raises:
            RuntimeError: the process to fork from has ended.
        """
        assert self._server.stdin is not None
        print(json.dumps([timeout_seconds, module, *arguments]), file=self._server.stdin, flush=True)
        return subprocess.CompletedProcess(**self._next_answer())

    def _next_answer(self) -> dict[str, Any]:
        assert self._server.stdout is not None
        answer = self._server.stdout.readline()
        if not answer:
            raise RuntimeError(f"no process to fork from: it ended with {self._server.wait()}")
        return dict(json.loads(answer))


@contextmanager
def forked_commands(modules: Sequence[str]) -> Iterator[ForkedCommands]:
    """Have a process that has imported these modules, none of them ours, for the length of a block.

    Raises:
        RuntimeError: it cannot import one, or one has imported ours; its standard error says which.
    """
    command = [sys.executable, "-m", __name__, *modules]
    with subprocess.Popen(
        command,
        cwd=PROJECT_ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        preexec_fn=die_with_parent,  # noqa: PLW1509 (it makes one system call)
    ) as server:
        try:
            yield ForkedCommands(server)
        finally:
            server.kill()


def _serve() -> list[str]:
    """Fork a process for each command that is read, and return the command in that process; nothing at the end."""
    _answer({})
    for line in sys.stdin:
        seconds, *command = json.loads(line)
        with TemporaryFile("w+") as output, TemporaryFile("w+") as errors:
            child = os.fork()
            if not child:
                _become_command(output.fileno(), errors.fileno(), seconds)
                return command
            returncode = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
            answer: dict[str, Any] = {"args": command, "returncode": returncode}
            for name, file in (("stdout", output), ("stderr", errors)):
                file.seek(0)
                answer[name] = file.read()
        _answer(answer)
    return []


def _answer(values: dict[str, Any]) -> None:
    print(json.dumps(values), flush=True)  # noqa: T201 - to who asked


def _become_command(output: int, errors: int, seconds: int) -> None:
    die_with_parent()
    signal.alarm(seconds)
    nothing = os.open(os.devnull, os.O_RDONLY)
    for here, there in ((nothing, 0), (output, 1), (errors, 2)):
        os.dup2(here, there)


if __name__ == "__main__":
    for name in sys.argv[1:]:
        import_module(name)
    early = [name for name in sys.modules if name.partition(".")[0] in OWN]
    assert not early, f"imported already: {early}"
    # What is never collected need not be copied for each process, to look whether it can be.
    gc.collect()
    gc.freeze()
    words = _serve()
    if words:
        sys.argv = words
        run_module(words[0], run_name="__main__", alter_sys=True)
