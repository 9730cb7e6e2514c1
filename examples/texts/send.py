"""Publish a reminder and what follows it, and print what becomes of it."""

import sys

from celery import chain
from tasks import note, remind

from idempotent_tasks import UnresolvedError


def main(reminder_id: str, number: str) -> None:
    """Publish the chain; wait for the note, or until somebody has to decide about the reminder."""
    noted = chain(remind.s(reminder_id, number, "Your appointment is tomorrow."), note.s(reminder_id)).apply_async()
    try:
        print(noted.get(timeout=120))
    except UnresolvedError:
        print(f"{reminder_id} waits for a decision")


if __name__ == "__main__":
    main(*sys.argv[1:])
