"""A forked child of the test, as a prefork worker's parent process forks them: whatever its threads do meanwhile."""

import multiprocessing
import warnings
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

__all__ = ["Child"]

#: Below the limit of a test: a busy machine is no failure.
CHILD_SECONDS = 100


class Child:
    """A forked process that makes one call and reports what came of it."""

    def __init__(self, call: Callable[[], Any]) -> None:
        fork = multiprocessing.get_context("fork")
        self._reports, report = fork.Pipe(duplex=False)
        self._process = fork.Process(target=self._run, args=(call, report))
        with warnings.catch_warnings():
            # Python 3.12 and later warn of any fork beside a thread, such as a prefork worker's parent has, or a test.
            warnings.filterwarnings("ignore", ".*use of fork.*", DeprecationWarning)
            self._process.start()
        report.close()

    @staticmethod
    def _run(call: Callable[[], Any], report: Connection) -> None:
        try:
            report.send(call())
        except Exception as error:  # noqa: BLE001 - whatever it is, the parent raises it
            report.send(error)

    def result(self) -> Any:
        """Return what the call returned, or raise what it raised, once the process has ended."""
        assert self._reports.poll(CHILD_SECONDS), f"the child said nothing for {CHILD_SECONDS} s"
        result = self._reports.recv()
        self._process.join(CHILD_SECONDS)
        assert self._process.exitcode == 0
        if isinstance(result, Exception):
            raise result
        return result
