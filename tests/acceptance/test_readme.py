"""The README tells the truth: its code runs, its commands and pictures exist."""

import re
from pathlib import Path
from typing import Any

import pytest

from idempotent_tasks import MemoryStore
from tests.support.documents import Book

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The names that the README's Python blocks leave behind, over a store in memory."""
    book = Book(ROOT / "README.md", tmp_path_factory.mktemp("reader"), replacements={}, environment={})
    book.execute()
    book.namespace["app"].conf.idempotency_store = MemoryStore()
    return book.namespace


def test_the_first_code_stands_before_line_40() -> None:
    """A reader sees code on the first screen."""
    assert README[: README.index("```python")].count("\n") < 40


def test_two_publishes_of_one_order_charge_once(shop: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    """The first example does what the README says of it."""
    order = {"id": "ord-17", "amount": 1999}
    results = [shop["charge"].apply((order,)).get(), shop["charge"].apply(kwargs={"order": order}).get()]
    assert results == [1999, 1999]
    assert capsys.readouterr().out.count("charge 1999 once for shop.charge#") == 1


def test_a_redelivered_receipt_is_sent_once(shop: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    """Without a key of its own, a task's key is its id."""
    for _ in range(2):
        shop["send_receipt"].apply(("ord-17",), task_id="one-delivery").get()
    shop["send_receipt"].apply(("ord-17",), task_id="another-publish").get()
    assert capsys.readouterr().out == "receipt for ord-17\n" * 2


def test_a_reminder_with_another_total_is_refused(shop: dict[str, Any]) -> None:
    """The example with `validate` refuses a changed payload."""
    invoice = {"number": 4, "total": 10}
    assert shop["remind"].apply(("ann", invoice)).get() == "ann reminded by mail"
    assert shop["remind"].apply(("ann", invoice, "sms")).get() == "ann reminded by mail"
    changed = shop["remind"].apply(("ann", {**invoice, "total": 11}))
    assert type(changed.result).__name__ == "PayloadMismatchError"


def test_every_local_file_that_it_names_exists() -> None:
    """Links, pictures and scripts are there."""
    named = re.findall(r"\]\((?!https?:|#)([^)#]+)", README) + re.findall(r"^\$ (scripts/\w+)", README, re.MULTILINE)
    assert [name for name in named if not (ROOT / name).exists()] == []
