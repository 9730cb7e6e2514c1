"""The table of features: each answer of ours is shown by something that exists, and each "no" says why."""

import re
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[2] / "docs" / "features.md"
LINK = re.compile(r"\[[^\]]+\]\(([^)#]*)(?:#([^)]+))?\)")
ROW = re.compile(r"^\| (?P<feature>[^|]+) \| (?P<here>[^|]+) \| (?P<peers>.+) \|$", re.MULTILINE)
PEERS = 8
#: Documents that the table names and that are not written yet; a line here must go when its document comes.
AWAITED = {"producer.md", "results.md"}

rows = {
    found["feature"]: found
    for found in ROW.finditer(PAGE.read_text(encoding="utf-8"))
    if not found["feature"].startswith("-") and found["here"] != "here"
}
each_row = pytest.mark.parametrize("feature", rows)
targets = sorted({(found[1], found[2]) for found in LINK.finditer(PAGE.read_text(encoding="utf-8"))}, key=str)


def anchors(document: Path) -> set[str]:
    """Return the anchors of a document's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", document.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_the_table_is_read() -> None:
    """A change of its form must not leave these tests with nothing to check."""
    assert len(rows) >= 40
    assert len(targets) >= 30


@each_row
def test_each_answer_is_shown(feature: str) -> None:
    """Whatever we say of ourselves has a link; a "no" also a reason."""
    here = rows[feature]["here"]
    assert LINK.search(here), "names no test and no document"
    if here.startswith("no"):
        assert here.startswith("no: "), "a bare no"
        assert len(here) > len("no: because of it")


@each_row
def test_each_peer_has_an_answer(feature: str) -> None:
    """No cell is empty or missing."""
    cells = [cell.strip() for cell in rows[feature]["peers"].split(" | ")]
    assert len(cells) == PEERS
    assert all(cells)


@pytest.mark.parametrize(("path", "anchor"), targets)
def test_each_link_leads_somewhere(path: str, anchor: str | None) -> None:
    """The file exists, and the heading in it."""
    target = PAGE.parent / path
    if path in AWAITED:
        assert not target.exists(), f"{path} is there: take it out of AWAITED"
        return
    assert target.is_file()
    if anchor:
        assert anchor in anchors(target)
