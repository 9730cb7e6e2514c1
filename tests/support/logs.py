"""What the library has logged in a test."""

import logging

import pytest

__all__ = ["logged"]


def logged(caplog: pytest.LogCaptureFixture) -> list[logging.LogRecord]:
    """Return the library's own records: kombu and Celery log in the same process, some of it once or at any moment."""
    return [record for record in caplog.records if record.name.partition(".")[0] == "idempotent_tasks"]
