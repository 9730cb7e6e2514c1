"""A document whose code does something else than it shows fails its test."""

import os
from collections.abc import Callable
from pathlib import Path

import click
import pytest

from tests.support.documents import Book, Tally

Read = Callable[[str], Tally]


@pytest.fixture
def read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Read:
    """Executes a document of this text."""
    folder = tmp_path / "reader"
    folder.mkdir()
    monkeypatch.syspath_prepend(folder)

    def execute(text: str) -> Tally:
        page = tmp_path / "page.md"
        page.write_text(text)
        book = Book(page, folder, {"localhost:6379": "127.0.0.1:1"}, os.environ)
        try:
            book.execute()
        finally:
            book.close()
        return book.tally

    return execute


def block(language: str, code: str) -> str:
    """Return a fenced block."""
    return f"```{language}\n{code}\n```\n\n"


def test_blocks_share_names_and_servers_are_replaced(read: Read) -> None:
    """Python runs in one namespace, a session after it, and what is printed may be shown as text."""
    page = block("python", 'url = "redis://localhost:6379"\nprint("made", url)')
    page += block("python", ">>> url\n'redis://127.0.0.1:1'") + block("text", "made redis://...")
    assert read(page) == Tally(executed=3)


def test_a_file_is_written_and_used(read: Read) -> None:
    """A block that begins with a file's name is that file, for commands and imports."""
    page = block("python", "# greet.py\nprint('hello')") + block("console", "$ python greet.py\nhello")
    assert read(page) == Tally(executed=2)


def test_a_block_that_cannot_run_says_why(read: Read) -> None:
    """A reason takes a block out, and is kept."""
    page = '<!--- skip: next "it needs an account" -->\n\n' + block("hcl", "resource {}")
    tally = read(page)
    assert (tally.executed, tally.checked) == (0, 0)
    assert tally.skipped == ["page.md:3: it needs an account"]


def test_commands_of_the_readers_own_app_are_parsed(read: Read) -> None:
    """They run nothing, but their names and options exist."""
    page = block("console", "$ celery -A proj idempotency list --state running\n$ celery -A proj idempotency --help")
    assert read(page) == Tally(checked=1)
    with pytest.raises(click.UsageError, match="--condition"):
        read(block("console", "$ celery -A proj idempotency list --condition running"))


def test_the_stand_in_is_parsed_too(read: Read) -> None:
    """It would run until somebody ends it."""
    assert read(block("console", "$ python -m idempotent_tasks dynamodb --table shop")) == Tally(checked=1)
    with pytest.raises(click.UsageError, match="--tabel"):
        read(block("console", "$ python -m idempotent_tasks dynamodb --tabel shop"))


@pytest.mark.parametrize(
    ("page", "complaint"),
    [
        (block("python", ">>> 1 + 1\n3"), "Expected"),
        (block("python", "assert False, 'not so'"), "not so"),
        (block("console", "$ echo one\ntwo"), "printed"),
        (block("console", "$ false | cat"), "exited with 1"),
        (block("console", "$ celery -A proj idempotency lists"), "no command lists"),
        (block("console", "$ pip install '.[unknown]'"), "no extras"),
        (block("console", "$ scripts/nowhere"), "scripts/nowhere"),
        (block("console", "$ docker compose up --wait unknown"), "no service unknown"),
        (block("json", "{") + block("python", "1"), "Expecting"),
        (block("hcl", "resource {}"), "say with a `skip`"),
        (block("", "what is this"), "0 of them with a language"),
        ("<!--- skip: next -->\n\n" + block("python", "1"), "skipped without a reason"),
        (block("python", "# unused.py\n1"), "nothing runs or imports"),
    ],
)
def test_what_is_not_so_is_told(read: Read, page: str, complaint: str) -> None:
    """Wrong values, outputs, options, names and data, unknown languages and files that nothing uses are failures."""
    with pytest.raises((AssertionError, ValueError), match=complaint):
        read(page)
