"""The outage command: takes DynamoDB away while bodies end, publishes their keys again, and counts their runs."""

import argparse
import json
import random
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

from rich.console import Console

from benchmarks.command import own_environment, ready_worker, unwinding_on_signals
from benchmarks.outage.bodies import BEGAN, CHARGE, Place, build_app
from benchmarks.speed.report import machine
from idempotent_tasks import DynamoDBStore
from tests.testbed.journal import LineReader
from tests.testbed.servers import MissingServiceError, redis_server, roto_server
from tests.testbed.waiting import wait_for
from tests.testbed.wire import Wire, wire_to

__all__ = ["Count", "main"]

PROCESSES: Final = 4
BODY_SECONDS: Final = 1.0
#: How long DynamoDB is away, in lives of a claim.
OUTAGE_LEASES: Final = 2.0
#: For one result, in seconds.
RESULT_SECONDS: Final = 120.0
#: Exit codes.
KEPT, UNMEASURED = 0, 2


@dataclass(frozen=True, kw_only=True)
class Count:
    """What was counted of keys that were published twice."""

    keys: int
    #: Keys whose body ran more than once.
    ran_twice: int
    #: Outcomes that were not recorded in time; those that were stored later, and those that came after another run.
    unrecorded: int
    recorded_late: int
    superseded: int


class Outages:
    """Rounds of outages under one worker.

    Args:
        place: the worker's.
        wire: to its DynamoDB.
        chance: decides when a key is published again.
    """

    def __init__(self, place: Place, wire: Wire, chance: random.Random) -> None:
        self._place, self._wire, self._chance = place, wire, chance
        self._task: Any = build_app(place).tasks[CHARGE]
        self._reader = LineReader(Path(place.journal))
        #: How often each body began, and each event happened.
        self.began: Counter[str] = Counter()
        self.seen: Counter[str] = Counter()

    def play(self) -> None:
        """Begin as many bodies as the pool has processes, take DynamoDB away, and publish each key again meanwhile."""
        orders = [f"order-{uuid4().hex}" for _ in range(PROCESSES)]
        results = [self._task.delay(order) for order in orders]
        wait_for(lambda: self._all_began(orders), RESULT_SECONDS, "the bodies do not begin")
        seconds = OUTAGE_LEASES * self._place.lease_seconds
        moments = sorted((self._chance.uniform(0, seconds), order) for order in orders)
        with self._wire.outage():
            began = time.monotonic()
            for moment, order in [*moments, (seconds, None)]:
                time.sleep(max(began + moment - time.monotonic(), 0.0))
                if order is not None:
                    results.append(self._task.delay(order))
        for result in results:
            result.get(timeout=RESULT_SECONDS)

    def _all_began(self, orders: Sequence[str]) -> bool:
        self._read()
        return all(self.began[order] for order in orders)

    def all_settled(self) -> bool:
        """Return whether each outcome that was kept is stored by now, or known to have come too late."""
        self._read()
        return self.seen["RecordedLate"] + self.seen["Superseded"] >= self.seen["kept"]

    def _read(self) -> None:
        for line in self._reader.news():
            if line["what"] == BEGAN:
                self.began[line["key"]] += 1
            else:
                self.seen[line["what"]] += 1
                self.seen["kept"] += line["kept"]


def main(arguments: Sequence[str]) -> int:
    """Measure and report.

    Returns:
        0; or 2 if it could not be measured.
    """
    options = _parser().parse_args(arguments)
    console = Console(soft_wrap=True, highlight=False)
    try:
        count = _measure(options)
    except (MissingServiceError, TimeoutError) as error:
        console.print(f"not measured: {error}", style="red", highlight=False, markup=False)
        return UNMEASURED
    shape = machine()
    console.print(
        f"{count.keys} keys, each published twice: {count.ran_twice} bodies ran twice; of {count.unrecorded} outcomes "
        f"that were not recorded in time {count.recorded_late} were stored later, {count.superseded} came too late"
    )
    console.print(f"{shape['cores']} cores of {shape['cpu']}, {shape['python']}, Celery {shape['versions']['celery']}")
    if options.json:
        options.json.write_text(json.dumps({"machine": shape, "count": asdict(count)}, indent=1))
    return KEPT


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.outage", description=__doc__)
    parser.add_argument("--outages", type=int, default=15, metavar="N", help="how often DynamoDB is away (default: 15)")
    parser.add_argument("--lease-seconds", type=float, default=4.0, metavar="S", help="of each claim (default: 4)")
    parser.add_argument("--seed", type=int, default=1, metavar="N", help="decides when keys are published again")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the machine and the counts")
    return parser


def _measure(options: argparse.Namespace) -> Count:
    with ExitStack() as stack:
        stack.enter_context(unwinding_on_signals())
        folder = Path(stack.enter_context(TemporaryDirectory(prefix="idempotent-tasks-outage-")))
        stack.enter_context(own_environment(folder))
        redis = stack.enter_context(redis_server(folder))
        wire = stack.enter_context(wire_to(stack.enter_context(roto_server(folder))))
        table = f"outage-{uuid4().hex[:8]}"
        DynamoDBStore(table, region="eu-west-1", endpoint_url=wire.endpoint).create_table()
        place = Place(
            redis_url=f"{redis}/0",
            queue=f"outage-{uuid4().hex}",
            store_url=f"dynamodb://eu-west-1/{table}?endpoint_url={wire.endpoint}",
            journal=str(folder / "journal"),
            lease_seconds=options.lease_seconds,
            body_seconds=BODY_SECONDS,
        )
        stack.enter_context(ready_worker("outage", place, place.queue, folder, processes=PROCESSES))
        outages = Outages(place, wire, random.Random(options.seed))
        for _ in range(options.outages):
            outages.play()
        # Both tasks have a result; an outcome that comes too late may not know it yet.
        wait_for(outages.all_settled, RESULT_SECONDS, "outcomes are neither stored nor given up")
        return Count(
            keys=len(outages.began),
            ran_twice=sum(times > 1 for times in outages.began.values()),
            unrecorded=outages.seen["Unrecorded"],
            recorded_late=outages.seen["RecordedLate"],
            superseded=outages.seen["Superseded"],
        )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
