"""What a person does about parked keys: lists them, looks at the provider's books, and resolves each."""

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

from benchmarks.provider import Charge
from tests.testbed.workers import PROJECT_ROOT

__all__ = ["Operator", "Resolution"]

#: Commands at a time; each is a process that imports Celery.
PARALLEL: Final = 2
#: A command that found the store or the broker away is repeated, which it may be, at most so often.
TRIES: Final = 8
PAUSE_SECONDS: Final = 0.5
COMMAND_SECONDS: Final = 60.0

#: What the key of a record is about, and what the operator did: ``done`` or ``run``.
Resolution = tuple[str, str]


class Operator:
    """Runs ``celery idempotency`` as a person does, each command in a process of its own.

    Args:
        app: the module that ``celery -A`` loads.
        environment: of the commands, all of it.
    """

    def __init__(self, app: str, environment: Mapping[str, str]) -> None:
        self._command = [sys.executable, "-m", "celery", "-A", app, "idempotency"]
        self._environment = dict(environment)

    def resolve_parked(
        self, order_of: Callable[[dict[str, Any]], str], charges_of: Callable[[str], list[Charge]]
    ) -> list[Resolution]:
        """Resolve each parked key by what the provider has done, and return what was decided for which order.

        Args:
            order_of: takes a record, as ``list --json`` prints it, and returns the order that its key stands for.
            charges_of: returns the charges of an order.

        Raises:
            RuntimeError: a command failed until it was given up.
        """

        def resolve(record: dict[str, Any]) -> Resolution:
            order = order_of(record)
            charges = charges_of(order)
            decision = ("--done", json.dumps(charges[0]["value"])) if charges else ("--run",)
            self._run("resolve", record["key"], *decision, "--yes")
            return order, decision[0].removeprefix("--")

        with ThreadPoolExecutor(PARALLEL) as threads:
            return list(threads.map(resolve, list(self._parked())))

    def _parked(self) -> Iterator[dict[str, Any]]:
        for line in self._run("list", "--state", "parked", "--json").splitlines():
            yield json.loads(line)

    def _run(self, *arguments: str) -> str:
        command = [*self._command, *arguments]
        for attempt in range(1, TRIES + 1):
            ended = subprocess.run(  # noqa: S603 (our own command)
                command,
                env=self._environment,
                cwd=PROJECT_ROOT,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=COMMAND_SECONDS,
                check=False,
            )
            if ended.returncode == 0:
                return ended.stdout
            time.sleep(PAUSE_SECONDS * attempt)
        raise RuntimeError(f"{' '.join(arguments)} failed {TRIES} times: {ended.stderr or ended.stdout}")
