"""The outage command: takes DynamoDB away while bodies end, publishes their keys again, and counts effects and runs."""

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

from benchmarks import provider
from benchmarks.command import own_environment, ready_worker, unwinding_on_signals
from benchmarks.outage.bodies import BEGAN, RECOVER, WAYS, Place, build_app
from benchmarks.speed.report import machine
from idempotent_tasks import DynamoDBStore
from tests.testbed.journal import LineReader
from tests.testbed.servers import MissingServiceError, redis_server, roto_server
from tests.testbed.waiting import wait_for
from tests.testbed.wire import Wire, wire_to

__all__ = ["Count", "main"]

PROCESSES: Final = 4
BODY_SECONDS: Final = 1.0
#: How long a charge takes, and how long its request may be on its way.
CHARGE_SECONDS: Final = 0.3
SETTLE_SECONDS: Final = 2.0
#: How long DynamoDB is away, in lives of a claim.
OUTAGE_LEASES: Final = 2.0
#: For one result, in seconds.
RESULT_SECONDS: Final = 120.0
#: Exit codes.
KEPT, BROKEN, UNMEASURED = 0, 1, 2


@dataclass(frozen=True, kw_only=True)
class Count:
    """What was counted of one task whose keys were published twice."""

    way: str
    keys: int
    #: Keys whose body ran more than once.
    ran_twice: int
    #: Keys whose effect was made more than once.
    charged_twice: int
    #: Outcomes that were not recorded in time; those that were stored later, and those that came after another run.
    unrecorded: int
    recorded_late: int
    superseded: int


class Outages:
    """Rounds of outages under one worker.

    Args:
        way: the task.
        place: the worker's.
        wire: to its DynamoDB.
        chance: decides when a key is published again.
    """

    def __init__(self, way: str, place: Place, wire: Wire, chance: random.Random) -> None:
        self._wire, self._chance = wire, chance
        self._seconds = OUTAGE_LEASES * place.claim_seconds(way)
        self._task: Any = build_app(place).tasks[way]
        self._reader = LineReader(Path(place.journal))
        #: How often each body began, and each event happened.
        self.began: Counter[str] = Counter()
        self.seen: Counter[str] = Counter()

    def play(self) -> None:
        """Begin as many bodies as the pool has processes, take DynamoDB away, and publish each key again meanwhile."""
        orders = [f"order-{uuid4().hex}" for _ in range(PROCESSES)]
        results = [self._task.delay(order) for order in orders]
        wait_for(lambda: self._all_began(orders), RESULT_SECONDS, "the bodies do not begin")
        moments = sorted((self._chance.uniform(0, self._seconds), order) for order in orders)
        with self._wire.outage():
            began = time.monotonic()
            for moment, order in [*moments, (self._seconds, None)]:
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
        0; or 1 if `recover` did not prevent an effect from being made twice; or 2 if it could not be measured.
    """
    options = _parser().parse_args(arguments)
    console = Console(soft_wrap=True, highlight=False)
    try:
        counts = _measure(options)
    except (MissingServiceError, TimeoutError) as error:
        console.print(f"not measured: {error}", style="red", highlight=False, markup=False)
        return UNMEASURED
    shape = machine()
    console.print(markdown(counts), markup=False)
    console.print(f"{shape['cores']} cores of {shape['cpu']}, {shape['python']}, Celery {shape['versions']['celery']}")
    if options.json:
        options.json.write_text(json.dumps({"machine": shape, "counts": [asdict(count) for count in counts]}, indent=1))
    return BROKEN if any(count.charged_twice for count in counts if count.way == RECOVER) else KEPT


def markdown(counts: Sequence[Count]) -> str:
    """Return the table of the report, as the documents show it."""
    heads = ("task", "keys", "effects twice", "bodies twice", "outcomes late", "stored", "superseded")
    lines = [f"| {' | '.join(heads)} |", "|---|---:|---:|---:|---:|---:|---:|"]
    for count in counts:
        ran = (count.keys, count.charged_twice, count.ran_twice)
        cells = (count.way, *ran, count.unrecorded, count.recorded_late, count.superseded)
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.outage", description=__doc__)
    parser.add_argument("--outages", type=int, default=15, metavar="N", help="how often DynamoDB is away (default: 15)")
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS), help="only these tasks")
    parser.add_argument("--lease-seconds", type=float, default=4.0, metavar="S", help="of each claim (default: 4)")
    parser.add_argument("--seed", type=int, default=1, metavar="N", help="decides when keys are published again")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the machine and the counts")
    return parser


def _measure(options: argparse.Namespace) -> list[Count]:
    with ExitStack() as stack:
        stack.enter_context(unwinding_on_signals())
        folder = Path(stack.enter_context(TemporaryDirectory(prefix="idempotent-tasks-outage-")))
        stack.enter_context(own_environment(folder))
        redis = stack.enter_context(redis_server(folder))
        wire = stack.enter_context(wire_to(stack.enter_context(roto_server(folder))))
        return [_count(way, f"{redis}/0", wire, folder / way, options) for way in options.ways]


def _count(way: str, redis: str, wire: Wire, folder: Path, options: argparse.Namespace) -> Count:
    folder.mkdir()
    table = f"outage-{uuid4().hex[:8]}"
    DynamoDBStore(table, region="eu-west-1", endpoint_url=wire.endpoint).create_table()
    with provider.running(lambda: CHARGE_SECONDS) as charging:
        place = Place(
            redis_url=redis,
            queue=f"outage-{uuid4().hex}",
            store_url=f"dynamodb://eu-west-1/{table}?endpoint_url={wire.endpoint}",
            provider_url=charging.url,
            journal=str(folder / "journal"),
            lease_seconds=options.lease_seconds,
            body_seconds=BODY_SECONDS,
            settle_seconds=SETTLE_SECONDS,
        )
        with ready_worker("outage", place, place.queue, folder, processes=PROCESSES):
            outages = Outages(way, place, wire, random.Random(options.seed))
            for _ in range(options.outages):
                outages.play()
            # Both tasks have a result; an outcome that comes too late may not know it yet.
            wait_for(outages.all_settled, RESULT_SECONDS, "outcomes are neither stored nor given up")
        return Count(
            way=way,
            keys=len(outages.began),
            ran_twice=sum(times > 1 for times in outages.began.values()),
            charged_twice=sum(len(charging.charges(order)) > 1 for order in outages.began),
            unrecorded=outages.seen["Unrecorded"],
            recorded_late=outages.seen["RecordedLate"],
            superseded=outages.seen["Superseded"],
        )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
