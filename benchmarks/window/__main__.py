"""The window command: has bodies end between their effect and their commit, and counts effects that are repeated."""

import argparse
import json
import os
import random
import signal
import sys
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final
from uuid import uuid4

from celery import Celery
from celery.states import READY_STATES
from rich.console import Console

from benchmarks import provider
from benchmarks.command import own_environment, ready_worker, unwinding_on_signals
from benchmarks.parked import Operator
from benchmarks.speed.report import machine
from benchmarks.window.bodies import CLOSED, LOCAL_LAST, PARK, WAYS, Place, build_app
from idempotent_tasks import DynamoDBStore
from tests.testbed.journal import LineReader
from tests.testbed.servers import MissingServiceError, redis_server, roto_server
from tests.testbed.waiting import wait_for
from tests.testbed.workers import CeleryWorker

__all__ = ["KILLED", "RAISED", "Count", "main", "markdown"]

PROCESSES: Final = 2
#: Between two moments, in seconds: one of a body is then as likely as any other.
PAUSES: Final = (0.3, 0.7)
#: About as many as the pool can work off between two moments, so that it is busy until the last kill.
ORDERS_FOR_EACH_MOMENT: Final = 4
#: At most; a process that was just started runs no body yet.
MOMENTS_FOR_EACH_KILL: Final = 10
#: What ends a body before its commit, and what the report calls it.
KILLED, RAISED = "killed", "raised"
TROUBLES: Final = {KILLED: "kills", RAISED: "time-outs"}
#: How long a body waits for the provider before it raises; a late answer comes this much after the charge.
TIMEOUT_SECONDS: Final = {KILLED: 2.0, RAISED: 1.0}
LATE_SECONDS: Final = {KILLED: 0.0, RAISED: 2.0}
#: Longer than either time-out.
SETTLE_SECONDS: Final = 3.0
#: For all results, in seconds.
RESULT_SECONDS: Final = 180.0
#: Exit codes.
KEPT, BROKEN, UNMEASURED = 0, 1, 2


@dataclass(frozen=True, kw_only=True)
class Count:
    """What was counted of one task in one kind of trouble."""

    way: str
    trouble: str
    orders: int
    #: Bodies that it ended: processes that were killed in one, or time-outs that one raised.
    struck: int
    #: Effects beyond one for each order.
    repeated: int
    #: Orders without an effect.
    missing: int
    #: Orders that an operator resolved, and those whose publishers have no result after that.
    resolved: int
    unanswered: int


def main(arguments: Sequence[str]) -> int:
    """Measure and report.

    Returns:
        0 if each order had its effect and its result, and exactly one effect where something prevents a second; 1 if
        not; 2 if it could not be measured.
    """
    options = _parser().parse_args(arguments)
    console = Console(soft_wrap=True, highlight=False)
    try:
        counts = _measure(options)
    except (MissingServiceError, TimeoutError) as error:
        console.print(f"not measured: {error}", style="red", highlight=False, markup=False)
        return UNMEASURED
    shape = machine()
    for trouble in options.troubles:
        console.print(markdown(trouble, [count for count in counts if count.trouble == trouble]) + "\n", markup=False)
    console.print(f"{shape['cores']} cores of {shape['cpu']}, {shape['python']}, Celery {shape['versions']['celery']}")
    if options.json:
        options.json.write_text(json.dumps({"machine": shape, "counts": [asdict(count) for count in counts]}, indent=1))
    return BROKEN if any(map(_is_broken, counts)) else KEPT


def _is_broken(count: Count) -> bool:
    return bool(count.missing or count.unanswered or (count.repeated and count.way in CLOSED))


def markdown(trouble: str, counts: Sequence[Count]) -> str:
    """Return the table of one kind of trouble, as the documents show it."""
    heads = ("body", "orders", TROUBLES[trouble], "effects repeated", "resolved by hand")
    lines = [f"| {' | '.join(heads)} |", "|---|---:|---:|---:|---:|"]
    for count in counts:
        cells = (count.orders, count.struck, count.repeated, count.resolved)
        lines.append(f"| {WAYS[count.way]} | {' | '.join(map(str, cells))} |")
    return "\n".join(lines)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.window", description=__doc__)
    parser.add_argument("--kills", type=int, default=40, metavar="N", help="or time-outs, of each body (default: 40)")
    parser.add_argument("--body-seconds", type=float, default=0.3, metavar="S", help="of each body (default: 0.3)")
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS), help="only these bodies")
    parser.add_argument("--troubles", nargs="+", choices=TROUBLES, default=list(TROUBLES), help="only these")
    parser.add_argument("--seed", type=int, default=1, metavar="N", help="decides when which process is killed")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the machine and the counts")
    return parser


def _measure(options: argparse.Namespace) -> list[Count]:
    with ExitStack() as stack:
        stack.enter_context(unwinding_on_signals())
        folder = Path(stack.enter_context(TemporaryDirectory(prefix="idempotent-tasks-window-")))
        stack.enter_context(own_environment(folder))
        redis, dynamodb = stack.enter_context(redis_server(folder)), stack.enter_context(roto_server(folder))
        # No request leaves a body whose effect is local, so none of them is answered late.
        pairs = [each for each in product(options.troubles, options.ways) if each != (RAISED, LOCAL_LAST)]
        return [
            Measurement(way, trouble, redis=redis, dynamodb=dynamodb, folder=folder, options=options).count()
            for trouble, way in pairs
        ]


class Measurement:
    """One task in one kind of trouble, with a queue, a table and a provider of its own.

    Args:
        way: the task.
        trouble: what ends its bodies.
        redis: the broker's URL, without a database number.
        dynamodb: the endpoint.
        folder: gets a folder for the files.
        options: the command's.
    """

    def __init__(
        self, way: str, trouble: str, *, redis: str, dynamodb: str, folder: Path, options: argparse.Namespace
    ) -> None:
        self._way, self._trouble, self._options = way, trouble, options
        self._redis, self._dynamodb = redis, dynamodb
        self._folder = folder / f"{trouble}-{way}"
        self._folder.mkdir()
        self._chance = random.Random(options.seed)
        #: The task id of each order.
        self._orders: dict[str, str] = {}

    def count(self) -> Count:
        """Publish, make trouble, have parked keys resolved, and count."""
        late_seconds = LATE_SECONDS[self._trouble]
        with provider.running(lambda: self._options.body_seconds, late_seconds=late_seconds) as charging:
            place = self._place(charging.url)
            app = build_app(place)
            with ready_worker("window", place, place.queue, self._folder, processes=PROCESSES) as worker:
                struck = self._kill(app, worker) if self._trouble == KILLED else self._time_out(app)
                self._await(app, "READY")
                resolved = self._resolve(app, place, charging) if self._way == PARK else 0
            ledger = Counter(entry["order"] for entry in LineReader(Path(place.ledger)).news())
            made = [len(charging.charges(order)) + ledger[order] for order in self._orders]
        return Count(
            way=self._way,
            trouble=self._trouble,
            orders=len(made),
            struck=struck,
            repeated=sum(times - 1 for times in made if times),
            missing=made.count(0),
            resolved=resolved,
            unanswered=sum(app.AsyncResult(each).state != "SUCCESS" for each in self._orders.values()),
        )

    def _place(self, provider_url: str) -> Place:
        table = f"window-{uuid4().hex[:8]}"
        DynamoDBStore(table, region="eu-west-1", endpoint_url=self._dynamodb).create_table()
        return Place(
            redis_url=f"{self._redis}/0",
            queue=f"window-{uuid4().hex}",
            store_url=f"dynamodb://eu-west-1/{table}?endpoint_url={self._dynamodb}",
            provider_url=provider_url,
            journal=str(self._folder / "journal"),
            ledger=str(self._folder / "ledger"),
            body_seconds=self._options.body_seconds,
            timeout_seconds=TIMEOUT_SECONDS[self._trouble],
            settle_seconds=SETTLE_SECONDS,
        )

    def _publish(self, app: Celery, orders: int) -> None:
        task: Any = app.tasks[self._way]
        for order in [f"order-{uuid4().hex}" for _ in range(orders)]:
            self._orders[order] = task.delay(order).id

    def _kill(self, app: Celery, worker: CeleryWorker) -> int:
        """Publish, kill processes at random moments of bodies, and return how many."""
        killed, processes = 0, Processes(worker, self._folder / "journal")
        for _ in range(self._options.kills * MOMENTS_FOR_EACH_KILL):
            self._publish(app, ORDERS_FOR_EACH_MOMENT)
            time.sleep(self._chance.uniform(*PAUSES))
            killed += processes.kill_running(self._chance)
            if killed == self._options.kills:
                break
        return killed

    def _time_out(self, app: Celery) -> int:
        """Publish orders of which each first request is answered too late, and return how many bodies raised."""
        self._publish(app, self._options.kills)
        self._await(app, "READY")
        return sum(entry.get("raised", False) for entry in LineReader(self._folder / "journal").news())

    def _resolve(self, app: Celery, place: Place, charging: provider.Provider) -> int:
        """Have an operator resolve what is parked, and return how many orders that was."""
        order_of = {task_id: order for order, task_id in self._orders.items()}
        operator = Operator("benchmarks.window.worker_app", os.environ | place.environment())
        resolved = operator.resolve_parked(lambda record: order_of[record["task_id"]], charging.charges)
        self._await(app, "SUCCESS")
        return len(resolved)

    def _await(self, app: Celery, state: str) -> None:
        """Return when all results are there, or all are successes.

        Raises:
            TimeoutError: they do not come.
        """
        states = READY_STATES if state == "READY" else {state}
        waiting = list(self._orders.values())

        def none_is_left() -> bool:
            while waiting and app.AsyncResult(waiting[-1]).state in states:
                waiting.pop()
            return not waiting

        wait_for(none_is_left, RESULT_SECONDS, lambda: f"{len(waiting)} results of {self._way} are missing")


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
