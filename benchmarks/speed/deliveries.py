"""What deliveries to a real worker cost: requests to DynamoDB, processor time and rate, an idle process's memory."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, Final

from benchmarks.speed import contenders
from benchmarks.speed.bench import Bench
from benchmarks.speed.contenders import CACHED, CHARGE, NOTE
from benchmarks.speed.rows import Reach, Row, interleaved, rows_of
from benchmarks.speed.worker import Worker, new_order, running
from tests.testbed.forking import Child
from tests.testbed.outcome_memory import remember_ten_thousand
from tests.testbed.wire import Wire, wire_to

__all__ = ["cpu_seconds", "memory", "requests", "throughput"]

Sample = Mapping[str, float]

#: What the protocol promises (a claim, a commit, and a note where something follows).
PROMISED: Final = {"first run": 2, "replay": 1, "replay from the process's memory": 0, "first run with a link": 3}

PROCESSES: Final = 2
#: So many for each process that both of them have had some.
WARM_UP_TASKS: Final = 20 * PROCESSES
RATE, CPU = "tasks a second", "processor time a task"
ELSEWHERE, IDLE = "processor time a task, outside the worker", "idle processors"
MICROSECONDS: Final = 1_000_000

MEGABYTE: Final = 1_000_000
#: In megabytes: of an idle process, and of 10,000 outcomes of 1 KB.
MOST_MORE, MOST_REMEMBERED = 8.0, 20.0
#: All of what it shares with nobody, and the same with its part of what it shares.
UNIQUE, PROPORTIONAL = "memory of an idle process, unique (USS)", "memory of an idle process, proportional (PSS)"


def requests(bench: Bench) -> Iterator[Row]:
    """Yield how many requests to DynamoDB a delivery costs each contender, counted on the wire of a real worker."""
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


def throughput(bench: Bench) -> Iterator[Row]:
    """Yield rates and processor times of each contender, and the ratios."""
    taken = _measured(bench, _sample_throughput, "plain", "bare", "powertools", "ours", "ours-stock")
    yield from rows_of("throughput", _titled(taken), {RATE: "1/s", CPU: "µs", ELSEWHERE: "µs", IDLE: "%"})
    yield from _ratios(taken)


def _sample_throughput(bench: Bench, name: str, table: str, number: int) -> Sample:
    import psutil

    bench.say(f"throughput: round {number + 1} of {bench.rounds}, {name}")
    tasks = bench.size(2000, 100)
    with running(bench.place(name, bench.roto_url, table), processes=PROCESSES) as worker:
        worker.warm_up(WARM_UP_TASKS)
        worker.stage(tasks)
        before, began = cpu_seconds(worker.pid), psutil.cpu_times()
        tally = worker.work_off(tasks)
        spent, ended = cpu_seconds(worker.pid) - before, psutil.cpu_times()
    busy, idle = _busy(ended) - _busy(began), _idle(ended) - _idle(began)
    return {
        RATE: tasks / tally.seconds,
        CPU: spent / tasks * MICROSECONDS,
        ELSEWHERE: (busy - spent) / tasks * MICROSECONDS,
        IDLE: idle / (busy + idle) * 100,
    }


def cpu_seconds(pid: int) -> float:
    """Return what a process and all below it have spent, in seconds."""
    import psutil

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
        # The others are shown for comparison: nothing that writes twice takes less than bare requests, and sending
        # by boto3 has the same client to pay for as Powertools.
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


def memory(bench: Bench) -> Iterator[Row]:
    """Yield the memory of an idle process after one task, what ours has more, and that of the cache."""
    taken = _measured(bench, _sample_memory, "client", "powertools", "ours", "ours-stock")
    yield from rows_of("memory", _titled(taken), {UNIQUE: "MB", PROPORTIONAL: "MB"})
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


def _sample_memory(bench: Bench, name: str, table: str, number: int) -> Sample:
    import psutil

    bench.say(f"memory: round {number + 1} of {bench.rounds}, {name}")
    with running(bench.place(name, bench.roto_url, table), processes=1) as worker:
        worker.run(CHARGE, new_order())
        (child,) = psutil.Process(worker.pid).children()
        taken = child.memory_full_info()
    return {UNIQUE: taken.uss / MEGABYTE, PROPORTIONAL: taken.pss / MEGABYTE}


def _more(taken: Mapping[str, Sequence[Sample]]) -> Iterator[Row]:
    for kind in (UNIQUE, PROPORTIONAL):
        yield Row(
            part="memory",
            measure=f"{kind}, more than with a boto3 client",
            subject=contenders.load("ours").title,
            unit="MB",
            values=tuple(ours[kind] - plain[kind] for plain, ours in zip(taken["client"], taken["ours"], strict=True)),
            reach=Reach(most=MOST_MORE),
        )


def _measured(bench: Bench, sample: Callable[[Bench, str, str, int], Sample], *names: str) -> dict[str, list[Sample]]:
    """Return the samples of those of the named contenders that can play here, round by round.

    Args:
        bench: where.
        sample: takes one, for a contender, over a table, in a round that is counted from 0.
        names: of the contenders.
    """
    table = bench.table(bench.roto_url)
    return interleaved(bench.rounds, {name: partial(sample, bench, name, table) for name in contenders.names(*names)})


def _titled(taken: Mapping[str, list[Sample]]) -> dict[str, list[Sample]]:
    """Return what was taken of contenders by what the tables say of them."""
    return {contenders.load(name).title: samples for name, samples in taken.items()}
