"""A stand-in for a card processor that accepts idempotency keys; its books are a SQLite file."""

import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager

from django.conf import settings

SCHEMA = """
CREATE TABLE IF NOT EXISTS requests (key TEXT);
CREATE TABLE IF NOT EXISTS charges (id INTEGER PRIMARY KEY, key TEXT UNIQUE, reference TEXT, cents INTEGER);
"""


@contextmanager
def books() -> Iterator[sqlite3.Connection]:
    """Open the books for one transaction."""
    with closing(sqlite3.connect(settings.PROCESSOR_BOOKS, timeout=30)) as connection, connection:
        connection.executescript(SCHEMA)
        yield connection


def charge(reference: str, cents: int, *, idempotency_key: str) -> int:
    """Charge the card of an order, once for each key, and return the number of the charge."""
    with books() as connection:
        connection.execute("INSERT INTO requests VALUES (?)", (idempotency_key,))
        connection.execute(
            "INSERT INTO charges (key, reference, cents) VALUES (?, ?, ?) ON CONFLICT (key) DO NOTHING",
            (idempotency_key, reference, cents),
        )
        ((number,),) = connection.execute("SELECT id FROM charges WHERE key = ?", (idempotency_key,))
    return int(number)
