"""How many requests to DynamoDB a delivery costs, counted on the wire of a real worker."""

from collections.abc import Iterator
from typing import Final

from benchmarks.speed import contenders
from benchmarks.speed.bench import Bench
from benchmarks.speed.contenders import CACHED, CHARGE, NOTE
from benchmarks.speed.rows import Reach, Row
from benchmarks.speed.worker import Worker, running
from tests.testbed.wire import Wire, wire_to

__all__ = ["measure"]

#: What the protocol promises (a claim, a commit, and a note where something follows).
PROMISED: Final = {"first run": 2, "replay": 1, "replay from the process's memory": 0, "first run with a link": 3}


def measure(bench: Bench) -> Iterator[Row]:
    """Yield the counts of each contender."""
    for name in contenders.names("powertools", "ours", "ours-stock"):
        bench.say(f"requests: {name}")
        # Of its own, because what another contender ran would be replayed.
        table = bench.table(bench.ministack_url)
        # A refusal that brings no item costs a read more, so the server is one that brings it.
        with wire_to(bench.ministack_url) as wire, running(bench.place(name, wire.endpoint, table), processes=1) as it:
            counts = _counts(it, wire)
        for what, count in counts.items():
            reach = Reach(least=PROMISED[what], most=PROMISED[what]) if name.startswith("ours") else None
            yield Row(
                part="requests",
                measure=what,
                subject=contenders.load(name).title,
                unit="requests",
                values=(float(count),),
                reach=reach,
            )


def _counts(worker: Worker, wire: Wire) -> dict[str, int]:
    # The first asks for the time too, once a process.
    worker.run(CHARGE, "warm")
    worker.run(CACHED, "known")
    steps = {
        "first run": (CHARGE, "order", ()),
        "replay": (CHARGE, "order", ()),
        "replay from the process's memory": (CACHED, "known", ()),
        "first run with a link": (CHARGE, "linked", (NOTE,)),
    }
    counts = {}
    for what, (task, order_id, links) in steps.items():
        wire.clear()
        worker.run(task, order_id, link=[worker.follow_up(link) for link in links])
        counts[what] = len(wire.operations())
    return counts
