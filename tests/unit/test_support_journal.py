"""The tests' own journal: a line that is still being written is not read."""

from pathlib import Path

from tests.testbed.journal import Journal


def test_half_a_line_is_no_entry_yet(tmp_path: Path) -> None:
    """A reader may come between the two pages of one write; it sees the line when it is whole."""
    journal = Journal(tmp_path)
    journal.write("effect", key="a")
    journal.write("effect", key="b")
    whole = journal.path.read_bytes()
    journal.path.write_bytes(whole[:-10])
    assert [entry["key"] for entry in journal.entries("effect")] == ["a"]
    journal.path.write_bytes(whole)
    assert journal.count("effect") == 2
