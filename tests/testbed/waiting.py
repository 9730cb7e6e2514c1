"""Waiting for an event, always bounded and always with a message."""

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

#: How often a condition is looked at, in seconds.
POLL_SECONDS = 0.02


def wait_for(look: Callable[[], T], timeout_seconds: float, message: str | Callable[[], str]) -> T:
    """Return the first truthy value that ``look`` returns.

    Raises:
        TimeoutError: nothing truthy within the time; it carries the message, which may be computed then.
    """
    deadline = time.monotonic() + timeout_seconds
    while True:
        value = look()
        if value:
            return value
        if time.monotonic() > deadline:
            text = message if isinstance(message, str) else message()
            raise TimeoutError(f"after {timeout_seconds:g} s: {text}")
        time.sleep(POLL_SECONDS)
