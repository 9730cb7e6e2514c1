"""The window command: kills pool processes at random moments of their bodies, and counts effects that are repeated."""

import argparse
import json
import random
import signal
import sys
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final
from uuid import uuid4

from celery.result import AsyncResult
from rich.console import Console

from benchmarks.command import own_environment, ready_worker, unwinding_on_signals
from benchmarks.speed.report import machine
from benchmarks.window import provider
from benchmarks.window.bodies import LOCAL_LAST, REMOTE, REMOTE_WITH_KEY, Place, build_app
from idempotent_tasks import DynamoDBStore
from tests.testbed.journal import LineReader
from tests.testbed.servers import MissingServiceError, redis_server, roto_server
from tests.testbed.workers import CeleryWorker

__all__ = ["Count", "main", "markdown"]

PROCESSES: Final = 2
#: Between two moments, in seconds: one of a body is then as likely as any other.
PAUSES: Final = (0.3, 0.7)
#: About as many as the pool can work off between two moments, so that it is busy until the last kill.
ORDERS_FOR_EACH_MOMENT: Final = 4
#: At most; a process that was just started runs no body yet.
MOMENTS_FOR_EACH_KILL: Final = 10
#: For one result, in seconds.
RESULT_SECONDS: Final = 120.0
#: Exit codes.
KEPT, BROKEN, UNMEASURED = 0, 1, 2


@dataclass(frozen=True, kw_only=True)
class Count:
    """What was counted of one kind of effect."""

    effect: str
    orders: int
    #: Of processes that ran a body.
    kills: int
    #: Effects beyond one for each order.
    repeated: int
    #: Orders without an effect.
    missing: int


def main(arguments: Sequence[str]) -> int:
    """Measure and report.

    Returns:
        0 if each order had its effect, and exactly one where the provider recognises the key; 1 if not; 2 if it could
        not be measured.
    """
    options = _parser().parse_args(arguments)
    console = Console(soft_wrap=True, highlight=False)
    try:
        counts = _measure(options)
    except (MissingServiceError, TimeoutError) as error:
        console.print(f"not measured: {error}", style="red", highlight=False, markup=False)
        return UNMEASURED
    shape = machine()
    console.print(markdown(counts))
    console.print(f"{shape['cores']} cores of {shape['cpu']}, {shape['python']}, Celery {shape['versions']['celery']}")
    if options.json:
        options.json.write_text(json.dumps({"machine": shape, "counts": [asdict(count) for count in counts]}, indent=1))
    recognised = sum(count.repeated for count in counts if count.effect == REMOTE_WITH_KEY)
    return BROKEN if recognised or any(count.missing for count in counts) else KEPT


def markdown(counts: Sequence[Count]) -> str:
    """Return the table of the report, as the documents show it."""
    lines = ["| effect of the body | orders | kills | repeated |", "|---|---:|---:|---:|"]
    lines += [f"| {count.effect} | {count.orders} | {count.kills} | {count.repeated} |" for count in counts]
    return "\n".join(lines)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.window", description=__doc__)
    parser.add_argument("--kills", type=int, default=60, metavar="N", help="for each kind of effect (default: 60)")
    parser.add_argument("--body-seconds", type=float, default=0.3, metavar="S", help="of each body (default: 0.3)")
    parser.add_argument("--seed", type=int, default=1, metavar="N", help="decides when which process is killed")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the machine and the counts")
    return parser


def _measure(options: argparse.Namespace) -> list[Count]:
    with ExitStack() as stack:
        stack.enter_context(unwinding_on_signals())
        folder = Path(stack.enter_context(TemporaryDirectory(prefix="idempotent-tasks-window-")))
        stack.enter_context(own_environment(folder))
        redis, dynamodb = stack.enter_context(redis_server(folder)), stack.enter_context(roto_server(folder))
        table = f"window-{uuid4().hex[:8]}"
        DynamoDBStore(table, region="eu-west-1", endpoint_url=dynamodb).create_table()
        store = f"dynamodb://eu-west-1/{table}?endpoint_url={dynamodb}"
        return [
            _count(effect, f"{redis}/0", store, folder / f"{number}", options)
            for number, effect in enumerate((REMOTE, REMOTE_WITH_KEY, LOCAL_LAST))
        ]


def _count(effect: str, redis: str, store: str, folder: Path, options: argparse.Namespace) -> Count:
    folder.mkdir()
    journal, ledger = folder / "journal", folder / "ledger"
    with provider.running(options.body_seconds) as charging:
        place = Place(
            redis_url=redis,
            queue=f"window-{uuid4().hex}",
            store_url=store,
            provider_url=charging.url,
            journal=str(journal),
            ledger=str(ledger),
            body_seconds=options.body_seconds,
        )
        with ready_worker("window", place, place.queue, folder, processes=PROCESSES) as worker:
            task: Any = build_app(place).tasks[effect]
            orders = dict[str, AsyncResult]()
            chance = random.Random(options.seed)
            killed, processes = 0, Processes(worker, journal)
            for _ in range(options.kills * MOMENTS_FOR_EACH_KILL):
                new = [f"order-{uuid4().hex}" for _ in range(ORDERS_FOR_EACH_MOMENT)]
                orders |= {order: task.delay(order) for order in new}
                time.sleep(chance.uniform(*PAUSES))
                killed += processes.kill_running(chance)
                if killed == options.kills:
                    break
            for result in orders.values():
                result.get(timeout=RESULT_SECONDS)
    effects = charging.charges + Counter(entry["order"] for entry in LineReader(ledger).news())
    made = [effects[order] for order in orders]
    return Count(
        effect=effect,
        orders=len(orders),
        kills=killed,
        repeated=sum(times - 1 for times in made if times),
        missing=made.count(0),
    )


class Processes:
    """The processes of a pool, and whether each runs a body.

    Args:
        worker: its worker.
        journal: where bodies say that they begin and end.
    """

    def __init__(self, worker: CeleryWorker, journal: Path) -> None:
        self._worker = worker
        self._reader = LineReader(journal)
        self._running: dict[int, bool] = {}

    def kill_running(self, chance: random.Random) -> bool:
        """Kill one that runs a body now, and return whether there was one."""
        children = self._worker.children()
        self._running |= {entry["pid"]: entry["runs"] for entry in self._reader.news()}
        running = [pid for pid in children if self._running.get(pid)]
        return bool(running) and self._worker.signal_child(chance.choice(running), signal.SIGKILL)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
