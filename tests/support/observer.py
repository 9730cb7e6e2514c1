"""An observer of the library's events that writes each down, and holds its process at a gate of the event's name."""

import os
import threading
from dataclasses import asdict
from functools import cache
from typing import Any

from tests.support.app import VARIABLE, AppConfig
from tests.testbed.journal import Journal


def observe(event: Any) -> None:
    """Write ``Claimed``, ``Committed`` and so on into the journal, with the thread, then pass the gate of that name."""
    name = type(event).__name__
    details = asdict(event)
    _journal().write(name, id=details.pop("task_id"), thread=threading.get_ident(), **details)
    _journal().pass_gate(name)


@cache
def _journal() -> Journal:
    return AppConfig.from_json(os.environ[VARIABLE]).journal
