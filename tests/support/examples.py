"""Runs an example by the commands of its own README, against the servers of the tests."""

import argparse
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from itertools import count
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import httpx

from tests.testbed.processes import ChildProcess, free_port
from tests.testbed.waiting import wait_for

__all__ = ["RESULT_SECONDS", "Example", "OnRabbitMQ", "dynamodb_url", "outcome"]

EXAMPLES = Path(__file__).parents[2] / "examples"
#: What somebody leaves there who follows a README by hand; .gitignore has the same list.
LEFT_BEHIND = ("*.pid", "*.sqlite*", "*.txt", "__pycache__", "beat-*", "mails", "roto-data")
START_SECONDS = 60.0
COMMAND_SECONDS = 90.0
#: Within which a task has its result, also one whose worker was killed.
RESULT_SECONDS = 60.0

_curl = argparse.ArgumentParser(prog="curl")
_curl.add_argument("url")
_curl.add_argument("-H", dest="headers", action="append", default=[])
_curl.add_argument("--json")
_curl.add_argument("--data")


def dynamodb_url(endpoint: str, table: str) -> str:
    """Return the URL of a store in a stand-in, as an example's README writes it."""
    return f"dynamodb://testing:testing@{urlsplit(endpoint).netloc}/{table}"


class Example:
    """One folder of examples/, its commands run in a copy: what they leave there is no other test's.

    Args:
        name: the folder's name.
        directory: where the copy and the logs go.
        variables: what the environment says of servers and durations.
    """

    def __init__(self, name: str, directory: Path, variables: dict[str, str]) -> None:
        self.folder = directory / name
        self.environment = os.environ | {"PYTHONDONTWRITEBYTECODE": "1", "PYTHONUNBUFFERED": "1"} | variables
        self._directory = directory
        self._numbers = count(1)
        shutil.copytree(EXAMPLES / name, self.folder, ignore=shutil.ignore_patterns(*LEFT_BEHIND))
        text = (self.folder / "README.md").read_text(encoding="utf-8")
        blocks = re.findall(r"^```console\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
        steps = re.findall(r"^\$ (.*)\n((?:(?!\$ ).*\n)*)", "".join(blocks), re.MULTILINE)
        #: The README's commands and what it shows of their output, in order.
        self.steps: list[tuple[str, str]] = steps

    def line(self, beginning: str, number: int = 0) -> str:
        """Return the README's command that begins so; where there are more, the one of this number, from 0."""
        return [line for line, _ in self.steps if line.startswith(beginning)][number]

    def shown(self, beginning: str, number: int = 0) -> str:
        """Return the output that the README shows of such a command."""
        return [output for line, output in self.steps if line.startswith(beginning)][number]

    def run(self, beginning: str, number: int = 0, *, timeout_seconds: float = COMMAND_SECONDS) -> str:
        """Run a command to its end and return what it printed; it must succeed."""
        command = _command(self.line(beginning, number))
        done = subprocess.run(
            command,
            cwd=self.folder,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=timeout_seconds,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    @contextmanager
    def running(
        self, beginning: str, ready: str, instead: Mapping[str, str] | None = None, /, **variables: str
    ) -> Iterator[ChildProcess]:
        """Run a command in the background for the length of a block, from when its log says that it is ready.

        Args:
            beginning: what the README's command begins with.
            ready: a pattern of the log.
            instead: what to write for some of the command's words, such as a port.
            variables: more of this command's environment.
        """
        log = self._directory / f"{next(self._numbers)}.log"
        environment = self.environment | variables
        command = [(instead or {}).get(word, word) for word in _command(self.line(beginning))]
        process = ChildProcess(command, log, environment, self.folder)
        try:
            process.wait_until(lambda: re.search(ready, process.tail(1000)), START_SECONDS)
            yield process
        finally:
            process.kill()
            # pytest shows what is printed here beside a failure, and nowhere else.
            print(f"log of {beginning}:\n{process.tail(100)}")  # noqa: T201

    def running_worker(self, **variables: str) -> AbstractContextManager[ChildProcess]:
        """Run the README's worker, under the name of its queue: a name that no other test's worker has."""
        instead = {self.folder.name: self.environment["QUEUE"]}
        return self.running("celery -A tasks worker", r" ready\.", instead, **variables)

    @contextmanager
    def serving(self) -> Iterator[str]:
        """Run the README's API for the length of a block, on a port of its own; yield its URL."""
        port = free_port()
        with self.running("uvicorn", "Application startup complete", {"8080": str(port)}):
            yield f"http://127.0.0.1:{port}"

    def lines(self, name: str) -> list[str]:
        """Return the lines of a file that the example writes; none if it has not begun to."""
        path = self.folder / name
        return path.read_text().splitlines() if path.exists() else []

    def request(self, beginning: str, base_url: str, number: int = 0) -> httpx.Response:
        """Send the request of a ``curl`` command to another server than the README's."""
        options = _curl.parse_args(shlex.split(self.line(f"curl {beginning}", number))[1:])
        headers = dict(header.split(": ", 1) for header in options.headers)
        url = base_url + urlsplit(f"//{options.url}").path
        if options.json is not None:
            return httpx.post(url, content=options.json, headers={"Content-Type": "application/json", **headers})
        if options.data is not None:
            return httpx.post(url, data=parse_qs(options.data), headers=headers)
        return httpx.get(url, headers=headers)


def outcome(accepted: httpx.Response, collection: str) -> httpx.Response:
    """Return the answer of an example's API when a task that it has accepted has come to its end.

    Args:
        accepted: the answer to the request for it.
        collection: the URL of all of its kind, which the task's id follows.
    """
    assert accepted.status_code == 202, accepted.text
    url = f"{collection}/{accepted.json()['task_id']}"

    def look() -> list[httpx.Response]:
        answer = httpx.get(url)
        return [] if answer.status_code == 202 else [answer]

    (answer,) = wait_for(look, RESULT_SECONDS, f"{url} has no outcome")
    return answer


def _command(line: str) -> list[str]:
    """Return a command's words, run by the Python of the tests; the README's variables are the environment's."""
    program, *arguments = [word for word in shlex.split(line) if not re.match(r"[A-Z_]+=", word)]
    return [sys.executable, *(arguments if program == "python" else ["-m", program, *arguments])]


#: Makes an example of this name on RabbitMQ, its results in this database of the Redis, with more variables.
OnRabbitMQ = Callable[..., Example]
