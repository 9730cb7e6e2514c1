"""The pages of features: each answer of ours is shown by something that exists, and others are asked the same."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "reference" / "features.md"
#: Each with the number of its tools; the first column of answers is ours.
COMPARISONS = {"compared-with-powertools": 2, "compared-with-locks": 2, "compared-with-decorators": 4}
#: Where the host shows a file of the repository, which the site does not contain.
HOSTED = "https://github.com/idempotent-tasks/idempotent-tasks/blob/main/"
LINK = re.compile(r"\[[^\]]+\]\(([^)#]*)(?:#([^)]+))?\)")
ROW = re.compile(r"^\| (?P<feature>[^|]+) \| (?P<answers>.+) \|$", re.MULTILINE)

TEXT = PAGE.read_text(encoding="utf-8")


def rows_of(text: str) -> dict[str, str]:
    """Return the answers of each feature, in the order of a page."""
    found = ((row["feature"].strip(), row["answers"]) for row in ROW.finditer(text))
    return {feature: answers for feature, answers in found if feature not in ("feature", "")}


rows = rows_of(TEXT)
targets = sorted({(found[1], found[2]) for found in LINK.finditer(TEXT)}, key=str)


def anchors(document: Path) -> set[str]:
    """Return the anchors of a document's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", document.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_the_table_is_read() -> None:
    """A change of its form must not leave these tests with nothing to check."""
    assert len(rows) >= 40
    assert len(targets) >= 30


@pytest.mark.parametrize("feature", rows)
def test_each_answer_is_shown(feature: str) -> None:
    """Whatever we say of ourselves has a link; a "no" also a reason."""
    here = rows[feature]
    assert LINK.search(here), "names no test and no document"
    if here.startswith("no"):
        assert here.startswith("no: "), "a bare no"
        assert len(here) > len("no: because of it")


@pytest.mark.parametrize("page", COMPARISONS)
def test_each_tool_has_an_answer_to_the_same_questions(page: str) -> None:
    """Each comparison has all features in our order, and no cell is empty or missing."""
    answers = rows_of((ROOT / "docs" / "explanation" / f"{page}.md").read_text(encoding="utf-8"))
    assert list(answers) == list(rows)
    for feature, cells in answers.items():
        assert len(cells.split(" | ")) == 1 + COMPARISONS[page], feature
        assert all(cell.strip() for cell in cells.split(" | ")), feature


@pytest.mark.parametrize("page", COMPARISONS)
def test_our_short_answers_are_those_of_the_page(page: str) -> None:
    """A short "no" is a "no" on the page of features, and nothing else is."""
    answers = rows_of((ROOT / "docs" / "explanation" / f"{page}.md").read_text(encoding="utf-8"))
    short = {feature: cells.split(" | ")[0] for feature, cells in answers.items()}
    assert {feature for feature in short if short[feature] == "no"} == {
        feature for feature in rows if rows[feature].startswith("no")
    }


@pytest.mark.parametrize(("path", "anchor"), targets)
def test_each_link_leads_somewhere(path: str, anchor: str | None) -> None:
    """The file exists, and the heading in it."""
    target = ROOT / path.removeprefix(HOSTED) if path.startswith(HOSTED) else PAGE.parent / path
    assert target.is_file()
    if anchor:
        assert anchor in anchors(target)
