"""Plays a day of a fleet of workers in virtual time: what duplicates of hot keys do to one partition of DynamoDB."""

import argparse
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any, Final

from rich.console import Console

from benchmarks.day.fleet import Fleet, Load, Rules
from benchmarks.day.partition import Partition
from benchmarks.day.plan import DAY_SECONDS, Plan
from benchmarks.day.report import Played, as_json, markdown, size_table
from idempotent_tasks import Idempotency
from idempotent_tasks.core.lease import lease_terms

__all__ = ["main", "play"]

#: Exit codes.
KEPT, LOST = 0, 1
#: Deliveries of a duplicate for which slots are reserved in the other partitions' name: one that is put off, one that
#: replays.
OTHERS_DELIVERIES: Final = 2


def main(arguments: Sequence[str]) -> int:
    """Play and report.

    Returns:
        0 if each message has its result, else 1.
    """
    options = _parser().parse_args(arguments)
    console = Console(soft_wrap=True, highlight=False)
    began, runs = time.monotonic(), []
    for rules in _rules(options):
        runs.append(play(options, rules))
        Console(stderr=True).print(f"{runs[-1].title}: {time.monotonic() - began:.0f} s so far", style="dim")
    for table in (markdown(runs), *map(size_table, runs)):
        console.print(f"{table}\n", markup=False)
    if options.json:
        options.json.write_text(as_json(_plain(options), runs), encoding="utf-8")
    return LOST if any(run.measures()["messages without a result"] for run in runs) else KEPT


def play(options: argparse.Namespace, rules: Rules) -> Played:
    """Play one run of what the options describe."""
    plan, load = _plan(options), _load(options)
    partition = _partition(options, plan, load)
    fleet = Fleet(load, rules, partition, options.seed)
    return Played(
        rules=rules,
        load=load,
        tallies=fleet.run(plan.publishes()),
        partition=partition,
        partitions=options.partitions,
        others_a_day=plan.other_keys_per_second * DAY_SECONDS if _is_day(options) else None,
        price=options.price,
    )


def _is_day(options: argparse.Namespace) -> bool:
    return options.hours * 3600 == DAY_SECONDS and not options.flood


def _rules(options: argparse.Namespace) -> list[Rules]:
    given = Rules(known=options.known, wakeups=options.wakeups)
    return [Rules(known=False, wakeups=False), given] if options.compare else [given]


def _plan(options: argparse.Namespace) -> Plan:
    rate = options.keys_per_second / options.partitions
    spread = options.body_seconds if options.spread_seconds is None else options.spread_seconds
    return Plan(
        seconds=options.hours * 3600,
        hot_keys_per_second=rate * options.hot_share,
        other_keys_per_second=rate * (1 - options.hot_share),
        swing=options.swing,
        least_duplicates=options.least_duplicates,
        most_duplicates=options.most_duplicates,
        exponent=options.exponent,
        spread_seconds=spread,
        flood=options.flood,
        seed=options.seed,
    )


def _load(options: argparse.Namespace) -> Load:
    terms = lease_terms(Idempotency(), options.time_limit)
    load = Load(
        body_seconds=options.body_seconds,
        request_seconds=options.request_ms / 1000,
        claim_seconds=terms.lease_seconds,
        result_bytes=options.result_bytes,
        slots=options.workers,
        concurrency=options.concurrency,
        threads=options.pool == "threads",
    )
    return replace(load, occupied=round(_occupied(options, _plan(options), load)))


def _occupied(options: argparse.Namespace, plan: Plan, load: Load) -> float:
    """Return how many slots the keys that are not played occupy at noon: rate times duration (Little's law)."""
    run = options.other_body_seconds + 2 * load.request_seconds
    again = OTHERS_DELIVERIES * (load.request_seconds + load.publish_seconds)
    others = plan.other_keys_per_second * options.partitions * run
    hot = plan.hot_keys_per_second * (options.partitions - 1) * (run + plan.mean_duplicates * again)
    return (others + hot) * (1 + options.swing)


def _partition(options: argparse.Namespace, plan: Plan, load: Load) -> Partition:
    return Partition(
        burst_seconds=options.burst_seconds,
        others=plan.others,
        other_units=1 + load.finished_units,
        chance=Random(f"partition {options.seed}"),
    )


def _plain(options: argparse.Namespace) -> dict[str, Any]:
    return {name: str(value) if isinstance(value, Path) else value for name, value in vars(options).items()}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.day", description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    add = parser.add_argument
    add("--hours", type=float, default=24.0, help="how long, from midnight on")
    add("--seed", type=int, default=1, help="decides all that is random")
    add("--no-known", dest="known", action="store_false", help="a process asks about each duplicate of a busy key")
    add("--no-wakeups", dest="wakeups", action="store_false", help="no worker keeps copies until the body has ended")
    add("--compare", action="store_true", help="play without either first")
    add("--json", type=Path, metavar="FILE", help="write the options and all measures")
    add("--price", type=float, default=1.0, help="USD for a million write units: an example, as in the documents")
    _add_fleet(parser.add_argument_group("the fleet"))
    _add_keys(parser.add_argument_group("the keys"))
    return parser


def _add_fleet(group: Any) -> None:
    add = group.add_argument
    add("--workers", type=int, default=10_000, help="bodies that run at once: processes, or threads")
    add("--concurrency", type=int, default=10, help="how many of them one celery worker has")
    add("--pool", choices=("prefork", "threads"), default="prefork", help="prefork: each is a process of its own")
    add("--partitions", type=int, default=100, help="of the table; one is played, the others are like it")
    add("--burst-seconds", type=float, default=1.0, help="for how long a partition keeps units; AWS names up to 300")
    add("--request-ms", type=float, default=5.0, help="of a request to DynamoDB")


def _add_keys(group: Any) -> None:
    add = group.add_argument
    add("--keys-per-second", type=float, default=10_000.0, help="of the whole table, averaged over a day")
    add("--swing", type=float, default=0.5, help="by which part there are more at noon and fewer at midnight")
    add("--hot-share", type=float, default=0.01, help="the part of the keys that has duplicates")
    add("--least-duplicates", type=int, default=10, help="of a hot key; their number has a Pareto distribution")
    add("--most-duplicates", type=int, default=5_000, help="of a hot key")
    add("--exponent", type=float, default=1.5, help="of that distribution: the greater, the fewer have many")
    add("--spread-seconds", type=float, help="in which the duplicates come (default: those of the body)")
    add("--flood", type=int, default=0, help="one hot key with so many duplicates, instead of a day")
    add("--body-seconds", type=float, default=0.1, help="of a hot key's body")
    add("--other-body-seconds", type=float, default=0.1, help="of any other key's")
    add("--time-limit", type=float, default=30.0, help="the hard time limit, in seconds; a claim lives a little longer")
    add("--result-bytes", type=int, default=1024, help="of each result")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
