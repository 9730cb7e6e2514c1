"""The pages on Powertools, on tests and on threads do what they show."""

import doctest
import io
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

DOCS = Path(__file__).parents[2] / "docs"
BLOCKS = re.compile(r"^```(python|console)\n(.*?)^```", re.DOTALL | re.MULTILINE)
FILE = re.compile(r"# (\w+\.py)\n")
COMMAND = re.compile(r"\$ python (.*)\n(?:.*\n)*(\d+ passed)")


@pytest.fixture
def dynamodb_everywhere(roto: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let boto3 find a DynamoDB of the tests in every region."""
    monkeypatch.setenv("AWS_ENDPOINT_URL_DYNAMODB", roto)


@pytest.mark.usefixtures("dynamodb_everywhere")
@pytest.mark.parametrize(("page", "blocks"), [("powertools.md", 4), ("testing.md", 5), ("threads.md", 2)])
def test_every_block_does_what_it_shows(page: str, blocks: int, tmp_path: Path) -> None:
    """Files are written and tested by the commands that follow, sessions compared, the rest is run."""
    namespace: dict[str, Any] = {"__name__": "shop"}
    found = BLOCKS.findall((DOCS / page).read_text())
    assert len(found) == blocks
    for language, source in found:
        named = FILE.match(source)
        if named:
            (tmp_path / named[1]).write_text(source)
        elif language == "console":
            run(source, tmp_path)
        elif source.startswith(">>>"):
            compare(source, namespace, page)
        else:
            exec(compile(source, page, "exec"), namespace)


def run(source: str, folder: Path) -> None:
    """Run the command of a block; it must end as the block shows."""
    shown = COMMAND.match(source)
    assert shown is not None
    command = [sys.executable, *shown[1].split(), "-p", "no:cacheprovider"]
    done = subprocess.run(command, cwd=folder, env=os.environ, capture_output=True, text=True, check=False)
    assert shown[2] in done.stdout, done.stdout + done.stderr


def compare(source: str, namespace: dict[str, Any], page: str) -> None:
    """Run a session and compare what it prints."""
    session = doctest.DocTestParser().get_doctest(source, namespace, page, page, 0)
    report = io.StringIO()
    doctest.DocTestRunner(verbose=False).run(session, out=report.write, clear_globs=False)
    assert not report.getvalue(), report.getvalue()
