"""The task bodies whose processes end in unusual ways, or do not end when they should."""

import ctypes
import os
import signal
import sys
from collections.abc import Callable
from typing import Any, NoReturn

from billiard.common import TERM_SIGNAL
from celery import Task

from tests.testbed.journal import Journal
from tests.testbed.parents import PR_SET_PDEATHSIG

Body = Callable[..., Any]


def leaving_bodies(journal: Journal, charge: Body, about: Callable[[Task], dict[str, Any]]) -> dict[str, Body]:
    """Return them by task name; ``charge`` is the body that does one side effect, ``about`` what a line tells."""

    def brittle(self: Task, order: str, value: Any = None) -> Any:
        """Do as `charge` does, in a process that billiard's signal ends at once, so that nothing here cleans up."""
        signal.signal(TERM_SIGNAL, signal.SIG_DFL)
        return charge(self, order, value)

    def outlive(self: Task, order: str, value: Any = None) -> Any:
        """Do as `charge` does, in a process that does not die with its parent, as Celery wants it where Linux can."""
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, 0)
        return charge(self, order, value)

    def leave(self: Task, order: str, way: str, times: int = 1) -> str:
        """Leave the process in one of `WAYS` as often as told, then do the side effect and return the way."""
        journal.write("started", **about(self), key=order)
        if journal.count("started", key=order) <= times:
            WAYS[way]()
        journal.write("effect", **about(self), key=order)
        return way

    return {body.__name__: body for body in (brittle, outlive, leave)}


def _run_out_of_memory() -> NoReturn:
    raise MemoryError


#: How a body can take its process with it.
WAYS: dict[str, Callable[[], object]] = {
    "sys.exit": lambda: sys.exit(3),
    "os._exit": lambda: os._exit(3),
    "os._exit(0)": lambda: os._exit(0),
    "segfault": lambda: ctypes.string_at(0),
    "MemoryError": _run_out_of_memory,
}
