"""How many tasks a second a real worker runs whose body does nothing, and what each takes of the processors.

Of those of the worker, and of the rest of the machine: broker, table, kernel, and whoever waits for the tasks' end.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

import psutil

from benchmarks.speed import contenders
from benchmarks.speed.bench import Bench
from benchmarks.speed.playing import measured, titled
from benchmarks.speed.rows import Reach, Row, rows_of
from benchmarks.speed.worker import running

__all__ = ["measure"]

PROCESSES: Final = 2
#: So many for each process that both of them have had some.
WARM_UP_TASKS: Final = 20 * PROCESSES
RATE, CPU = "tasks a second", "processor time a task"
ELSEWHERE, IDLE = "processor time a task, outside the worker", "idle processors"
MICROSECONDS: Final = 1_000_000

Sample = Mapping[str, float]


def measure(bench: Bench) -> Iterator[Row]:
    """Yield rates and processor times of each contender, and the ratios."""
    taken = measured(bench, _sample, "plain", "bare", "powertools", "ours", "ours-stock")
    yield from rows_of("throughput", titled(taken), {RATE: "1/s", CPU: "µs", ELSEWHERE: "µs", IDLE: "%"})
    yield from _ratios(taken)


def _sample(bench: Bench, name: str, table: str, number: int) -> Sample:
    bench.say(f"throughput: round {number + 1} of {bench.rounds}, {name}")
    tasks = bench.size(2000, 100)
    with running(bench.place(name, bench.roto_url, table), processes=PROCESSES) as worker:
        worker.warm_up(WARM_UP_TASKS)
        worker.stage(tasks)
        before, began = _cpu_seconds(worker.pid), psutil.cpu_times()
        tally = worker.work_off(tasks)
        spent, ended = _cpu_seconds(worker.pid) - before, psutil.cpu_times()
    busy, idle = _busy(ended) - _busy(began), _idle(ended) - _idle(began)
    return {
        RATE: tasks / tally.seconds,
        CPU: spent / tasks * MICROSECONDS,
        ELSEWHERE: (busy - spent) / tasks * MICROSECONDS,
        IDLE: idle / (busy + idle) * 100,
    }


def _cpu_seconds(pid: int) -> float:
    """Return what a process and all below it have spent, in seconds."""
    parent = psutil.Process(pid)
    times = [process.cpu_times() for process in (parent, *parent.children(recursive=True))]
    return sum(each.user + each.system for each in times)


def _busy(machine: Any) -> float:
    """Return what all processors have worked, in seconds, by what `psutil.cpu_times` returned."""
    # Linux counts guests as users.
    return float(machine.user + machine.nice + machine.system + machine.irq + machine.softirq)


def _idle(machine: Any) -> float:
    return float(machine.idle + machine.iowait)


def _ratios(taken: Mapping[str, Sequence[Sample]]) -> Iterator[Row]:
    for name in ("bare", "ours", "ours-stock"):
        # The others are shown for comparison: nothing that writes twice takes less than bare requests, and the road
        # over boto3 has the same client to pay for as Powertools.
        judged = name == "ours"
        if "powertools" in taken:
            yield from _by_powertools(taken, name, judged=judged)
        if name != "bare":
            values = tuple(its[RATE] / bare[RATE] for its, bare in zip(taken[name], taken["bare"], strict=True))
            yield _ratio(f"{RATE}, by those of two bare requests", name, values)


def _by_powertools(taken: Mapping[str, Sequence[Sample]], name: str, *, judged: bool) -> Iterator[Row]:
    rounds = list(zip(taken["plain"], taken["powertools"], taken[name], strict=True))
    rates = tuple(its[RATE] / theirs[RATE] for _, theirs, its in rounds)
    yield _ratio(f"{RATE}, by Powertools'", name, rates, Reach(least=2.0) if judged else None)
    # What the rates would be if table and broker were elsewhere, and nobody had to wait for them.
    worker_rates = tuple(theirs[CPU] / its[CPU] for _, theirs, its in rounds)
    yield _ratio("tasks in a second of the worker's processor time, by Powertools'", name, worker_rates)
    added = tuple((its[CPU] - plain[CPU]) / (theirs[CPU] - plain[CPU]) for plain, theirs, its in rounds)
    yield _ratio(f"{CPU} above plain Celery's, by Powertools'", name, added, Reach(most=0.4) if judged else None)


def _ratio(measure: str, name: str, values: tuple[float, ...], reach: Reach | None = None) -> Row:
    subject = contenders.load(name).title
    return Row(part="throughput", measure=measure, subject=subject, unit="x", values=values, reach=reach)
