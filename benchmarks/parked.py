"""What an operator does about parked keys: lists them, looks at the provider's books, and resolves each.

As a program it runs the commands that its input has, because a process for each of them would import Celery each time:
``python -m benchmarks.parked APP`` reads a JSON list of argument lists, and writes the exit codes and outputs.
"""

import json
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from benchmarks.provider import Charge
from tests.testbed.workers import PROJECT_ROOT

__all__ = ["Operator", "Resolution"]

#: A command that found the store or the broker away is repeated, which it may be, at most so often.
TRIES: Final = 30
PAUSE_SECONDS: Final = 0.5
#: For all commands of a try.
COMMANDS_SECONDS: Final = 120.0

#: What the key of a record is about, and what the operator did: ``done`` or ``run``.
Resolution = tuple[str, str]


class Operator:
    """Runs ``celery idempotency`` commands, in processes of its own.

    Args:
        app: the module that ``celery -A`` loads.
        environment: of these processes, all of it.
    """

    def __init__(self, app: str, environment: Mapping[str, str]) -> None:
        self._command = [sys.executable, "-m", "benchmarks.parked", app]
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
        (listed,) = self._run([["list", "--state", "parked", "--json"]])
        found, commands = [], []
        for record in map(json.loads, listed.splitlines()):
            order = order_of(record)
            charges = charges_of(order)
            decision = ["--done", json.dumps(charges[0]["value"])] if charges else ["--run"]
            found.append((order, decision[0].removeprefix("--")))
            commands.append(["resolve", record["key"], *decision, "--yes"])
        self._run(commands)
        return found

    def _run(self, commands: Sequence[Sequence[str]]) -> list[str]:
        """Return the output of each command; those that fail are repeated."""
        outputs: dict[int, str] = {}
        for attempt in range(1, TRIES + 1):
            left = [number for number in range(len(commands)) if number not in outputs]
            if not left:
                break
            for number, (code, output) in zip(left, self._try([commands[each] for each in left]), strict=True):
                if code == 0:
                    outputs[number] = output
                elif attempt == TRIES:
                    raise RuntimeError(f"{' '.join(commands[number])} failed {TRIES} times: {output}")
            time.sleep(0.0 if len(outputs) == len(commands) else PAUSE_SECONDS)
        return [outputs[number] for number in range(len(commands))]

    def _try(self, commands: Sequence[Sequence[str]]) -> list[tuple[int, str]]:
        ended = subprocess.run(  # noqa: S603 (our own command)
            self._command,
            env=self._environment,
            cwd=PROJECT_ROOT,
            input=json.dumps(commands),
            capture_output=True,
            text=True,
            timeout=COMMANDS_SECONDS,
            check=False,
        )
        if ended.returncode != 0:
            raise RuntimeError(f"no command could be run: {ended.stderr}")
        return [(code, output) for code, output in json.loads(ended.stdout)]


def main(app: str) -> None:
    """Run the commands of ``celery -A APP idempotency`` that the standard input lists."""
    from celery.bin.celery import celery
    from click.testing import CliRunner

    ended = [CliRunner().invoke(celery, ["-A", app, "idempotency", *each]) for each in json.load(sys.stdin)]
    # A list's footer goes to the standard error.
    json.dump([(each.exit_code, each.stdout if each.exit_code == 0 else each.output) for each in ended], sys.stdout)


if __name__ == "__main__":
    main(sys.argv[1])
