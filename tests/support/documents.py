"""Documents whose code blocks are executed, one after the other, in one folder and one namespace a document.

A Python block that begins with ``# name.py`` is written to that file; one that begins with ``>>>`` is a session whose
answers are compared; any other is run.  A ``text`` block is looked for in what was printed and logged.  A block that
cannot run is preceded by ``<!--- skip: next "reason" -->``.
"""

import configparser
import doctest
import importlib
import io
import json
import re
import tomllib
from collections.abc import Callable, Iterable, Mapping
from contextlib import redirect_stdout
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Final
from unittest import SkipTest

from celery import Celery
from markdown_it import MarkdownIt
from sybil import Document, Example, Region, Sybil
from sybil.evaluators.python import pad
from sybil.parsers.markdown.lexers import FencedCodeBlockLexer
from sybil.parsers.myst import SkipParser

from tests.support.console import Console, matches
from tests.testbed.waiting import wait_for

__all__ = ["Book", "Tally"]

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
