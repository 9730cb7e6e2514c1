"""Ending everything that a command started, whatever signal asks the command to end."""

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

__all__ = ["unwinding_on_signals"]


@contextmanager
def unwinding_on_signals() -> Iterator[None]:
    """Turn the signals that ask a program to end into `SystemExit`, so that everything started is ended first."""

    def leave(number: int, _frame: FrameType | None) -> None:
        sys.exit(128 + number)

    asking = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.signal(number, leave) for number in asking}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
