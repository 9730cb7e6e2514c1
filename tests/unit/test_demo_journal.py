"""The demo's journal: complete lines are read as they were written, each once."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from idempotent_tasks.demo.journal import Entry, Journal, Reader, What


@pytest.fixture
def journal(tmp_path: Path) -> Journal:
    """An empty journal."""
    return Journal(tmp_path / "journal.jsonl")


def test_entries_come_back_as_they_were_written(journal: Journal) -> None:
    """Every field survives, and each entry is read once."""
    first = Entry(at=1.5, what=What.CHARGED, payment="pay-01", pid=3, worker=2, cents=4200)
    second = Entry(at=2.5, what=What.WORKER_KILLED, payment="pay-01", pid=2)
    reader = Reader(journal.path)
    assert reader.news() == []
    journal.append(first)
    assert reader.news() == [first]
    journal.append(second)
    assert reader.news() == [second]
    assert reader.news() == []


def test_partial_line_is_not_read(journal: Journal) -> None:
    """A line that is being written is read when it is complete."""
    entry = Entry(at=1.0, what=What.READY, pid=7)
    journal.append(entry)
    line = journal.path.read_bytes()
    journal.path.write_bytes(line[:10])
    reader = Reader(journal.path)
    assert reader.news() == []
    journal.path.write_bytes(line)
    assert reader.news() == [entry]


def test_concurrent_writers_do_not_tear_lines(journal: Journal) -> None:
    """Every line of eight writers is there."""
    entries = [Entry(at=float(number), what=What.STARTED, payment=f"pay-{number}") for number in range(200)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(journal.append, entries))
    assert sorted(Reader(journal.path).news(), key=lambda entry: entry.at) == entries
