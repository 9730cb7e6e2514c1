"""The one decision about a service that is not there: skipped on a laptop, failed in CI."""

import os
from typing import NoReturn

import pytest

__all__ = ["unavailable"]


def unavailable(service: str, reason: str, remedy: str) -> NoReturn:
    """End the test: a failure where the environment says ``CI=true``, a skip elsewhere.

    Args:
        service: the service's name.
        reason: what was looked for and not found.
        remedy: the command that makes it available on a laptop.
    """
    message = f"{service} is not available: {reason}; to get it: {remedy}"
    if os.environ.get("CI", "").lower() in {"true", "1", "yes"}:
        pytest.fail(message, pytrace=False)
    pytest.skip(message)
