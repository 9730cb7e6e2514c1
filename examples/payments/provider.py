"""A stand-in for a card processor that accepts idempotency keys; its books are a SQLite file."""

import os
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager

BOOKS = os.environ.get("BOOKS", "books.sqlite")
#: Seconds that the processor takes to charge, and after that to answer.
CHARGE_SECONDS = float(os.environ.get("CHARGE_SECONDS", "0.1"))
ANSWER_SECONDS = float(os.environ.get("ANSWER_SECONDS", "0.1"))

SCHEMA = """
CREATE TABLE IF NOT EXISTS requests (key TEXT, fence INTEGER);
CREATE TABLE IF NOT EXISTS charges (id INTEGER PRIMARY KEY, key TEXT UNIQUE, customer TEXT, amount_cents INTEGER);
"""


@contextmanager
def books() -> Iterator[sqlite3.Connection]:
    """Open the books for one transaction."""
    with closing(sqlite3.connect(BOOKS, timeout=30)) as connection, connection:
        connection.executescript(SCHEMA)
        yield connection


def charge(key: str, fence: int, customer: str, amount_cents: int) -> int:
    """Charge a card, once for each key, and return the number of the receipt."""
    with books() as connection:
        connection.execute("INSERT INTO requests VALUES (?, ?)", (key, fence))
    time.sleep(CHARGE_SECONDS)
    with books() as connection:
        connection.execute(
            "INSERT INTO charges (key, customer, amount_cents) VALUES (?, ?, ?) ON CONFLICT (key) DO NOTHING",
            (key, customer, amount_cents),
        )
        ((receipt,),) = connection.execute("SELECT id FROM charges WHERE key = ?", (key,))
    time.sleep(ANSWER_SECONDS)
    return int(receipt)


if __name__ == "__main__":
    with books() as connection:
        for table in ("requests", "charges"):
            ((rows,),) = connection.execute(f"SELECT count(*) FROM {table}")  # noqa: S608 - our own two names
            print(f"{table}: {rows}")
