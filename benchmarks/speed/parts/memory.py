"""What the library takes of memory: in an idle process of a worker's pool, and for outcomes that it remembers."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Final

import psutil

from benchmarks.speed import contenders
from benchmarks.speed.bench import Bench
from benchmarks.speed.contenders import CHARGE
from benchmarks.speed.playing import measured, titled
from benchmarks.speed.rows import Reach, Row, rows_of
from benchmarks.speed.worker import new_order, running
from tests.testbed.forking import Child
from tests.testbed.outcome_memory import remember_ten_thousand

__all__ = ["measure"]

MEGABYTE: Final = 1_000_000
#: In megabytes: of an idle process, and of 10,000 outcomes of 1 KB.
MOST_MORE, MOST_REMEMBERED = 8.0, 20.0
#: All of what it shares with nobody, and the same with its part of what it shares.
UNIQUE, PROPORTIONAL = "memory of an idle process, unique (USS)", "memory of an idle process, proportional (PSS)"

Sample = Mapping[str, float]


def measure(bench: Bench) -> Iterator[Row]:
    """Yield the memory of an idle process after one task, what ours has more, and that of the cache."""
    taken = measured(bench, _sample, "client", "powertools", "ours", "ours-stock")
    yield from rows_of("memory", titled(taken), {UNIQUE: "MB", PROPORTIONAL: "MB"})
    yield from _more(taken)
    bench.say("memory: 10,000 outcomes")
    # In a process of its own, where no other thread takes memory meanwhile.
    kept, taken_bytes = Child(remember_ten_thousand).result()
    yield Row(
        part="memory",
        measure="outcomes of 1 KB that the cache remembers",
        subject=f"{kept:,} of them",
        unit="MB",
        values=(taken_bytes / MEGABYTE,),
        reach=Reach(most=MOST_REMEMBERED),
    )


def _sample(bench: Bench, name: str, table: str, number: int) -> Sample:
    bench.say(f"memory: round {number + 1} of {bench.rounds}, {name}")
    with running(bench.place(name, bench.roto_url, table), processes=1) as worker:
        worker.run(CHARGE, new_order())
        (child,) = psutil.Process(worker.pid).children()
        memory = child.memory_full_info()
    return {UNIQUE: memory.uss / MEGABYTE, PROPORTIONAL: memory.pss / MEGABYTE}


def _more(taken: Mapping[str, Sequence[Sample]]) -> Iterator[Row]:
    for measure_ in (UNIQUE, PROPORTIONAL):
        yield Row(
            part="memory",
            measure=f"{measure_}, more than with a boto3 client",
            subject=contenders.load("ours").title,
            unit="MB",
            values=tuple(
                ours[measure_] - plain[measure_] for plain, ours in zip(taken["client"], taken["ours"], strict=True)
            ),
            reach=Reach(most=MOST_MORE),
        )
