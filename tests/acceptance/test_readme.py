"""The README tells the truth: its code runs, its commands and pictures exist."""

import re
from pathlib import Path
from typing import Any

import pytest
from celery import _state

from idempotent_tasks import MemoryStore

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()


@pytest.fixture
def shop(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The names of the README's first code, over a store in memory."""
    # Celery would add its task to every app that is finalised later.
    monkeypatch.setattr(_state, "_on_app_finalizers", set(_state._on_app_finalizers))
    (code, *_) = re.findall(r"^```python\n(.+?)^```", README, re.MULTILINE | re.DOTALL)
    namespace: dict[str, Any] = {"__name__": "shop"}
    exec(compile(code, "README.md", "exec", dont_inherit=True), namespace)
    namespace["app"].conf.idempotency_store = MemoryStore()
    return namespace


def test_the_first_code_stands_before_line_40() -> None:
    """A reader sees code on the first screen."""
    assert README[: README.index("```python")].count("\n") < 40


def test_it_is_read_in_three_minutes() -> None:
    """It has at most 700 words before the links."""
    text, _, _ = README.partition("\n## Links\n")
    assert len(text) < len(README)
    assert len(text.split()) <= 700


def test_two_publishes_of_one_order_charge_once(shop: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    """The first example does what the README says of it."""
    results = [shop["charge"].apply(("ord-17", 4200)).get(), shop["charge"].apply(("ord-17",), {"cents": 4200}).get()]
    assert results == [{"paid": 4200}] * 2
    assert capsys.readouterr().out.count("charged 4200 for bb72704b-8a83-591f-b915-d427dbad0537") == 1


def test_the_measured_window_is_the_one_that_the_site_shows() -> None:
    """Kills and repeated charges are those of the table of measurements; each tool repeated none."""
    page = (ROOT / "docs" / "explanation" / "promise.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (an `IdempotentTask`|the same[^|]*) \| \d+ \| (\d+) \| (\d+) \|$", page, re.MULTILINE)
    (_, kills, repeated), *tools = rows
    assert f"killed at {kills} random moments, charged again after {repeated} of them" in " ".join(README.split())
    assert [row[1:] for row in tools] == [(kills, "0")] * 3


def test_every_local_file_that_it_names_exists() -> None:
    """Links, pictures and scripts are there."""
    named = re.findall(r"\]\((?!https?:|#)([^)#]+)", README) + re.findall(r"^\$ (scripts/\w+)", README, re.MULTILINE)
    assert [name for name in named if not (ROOT / name).exists()] == []
