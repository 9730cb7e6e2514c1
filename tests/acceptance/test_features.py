"""The table of features: each answer of ours is shown by something that exists, and each "no" says why."""

import re
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[2] / "docs" / "explanation" / "comparison.md"
LINK = re.compile(r"\[[^\]]+\]\(([^)#]*)(?:#([^)]+))?\)")
#: A link whose document stands at the end of the page: ``[text][label]``, and ``[label]: document``.
LABELLED = re.compile(r"\[[^\]]+\]\[(\w+)\]")
DEFINED = re.compile(r"^\[(\w+)\]: (\S+)$", re.MULTILINE)
ROW = re.compile(r"^\| (?P<feature>[^|]+) \| (?P<here>[^|]+) \| (?P<peers>.+) \|$", re.MULTILINE)
PEERS = 8
#: Labels whose documents are not written yet; who writes one defines its label, and takes it out here.
AWAITED: set[str] = set()

TEXT = PAGE.read_text(encoding="utf-8")
rows = {
    found["feature"]: found
    for found in ROW.finditer(TEXT)
    if not found["feature"].startswith("-") and found["here"] != "here"
}
each_row = pytest.mark.parametrize("feature", rows)
labelled = dict(DEFINED.findall(TEXT))
direct = {(found[1], found[2]) for found in LINK.finditer(TEXT)}
targets = sorted(direct | {(path, None) for path in labelled.values()}, key=str)


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
    assert LINK.search(here) or LABELLED.search(here), "names no test and no document"
    if here.startswith("no"):
        assert here.startswith("no: "), "a bare no"
        assert len(here) > len("no: because of it")


@each_row
def test_each_peer_has_an_answer(feature: str) -> None:
    """No cell is empty or missing."""
    cells = [cell.strip() for cell in rows[feature]["peers"].split(" | ")]
    assert len(cells) == PEERS
    assert all(cells)


def test_each_label_is_defined_or_awaited() -> None:
    """A label without its document is not forgotten, once the document is there."""
    used = set(LABELLED.findall(TEXT))
    assert used - set(labelled) == AWAITED
    for label in AWAITED:
        found = [path.name for path in PAGE.parent.rglob(f"{label}.md")]
        assert not found, f"{found} is there: define its label in {PAGE.name}, and take it out of AWAITED"


@pytest.mark.parametrize(("path", "anchor"), targets)
def test_each_link_leads_somewhere(path: str, anchor: str | None) -> None:
    """The file exists, and the heading in it."""
    target = PAGE.parent / path
    assert target.is_file()
    if anchor:
        assert anchor in anchors(target)
