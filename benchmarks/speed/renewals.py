"""What the keeper costs, and how many claims it keeps: ``python -m benchmarks.speed.renewals`` from the project's root.

The first table is counted in fast motion, on a clock that nobody waits for.  The second is measured in real time, with
real threads and a store in memory whose every renewal takes as long as told; ``--quick`` leaves it out.
"""

import sys
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import repeat
from typing import Any, Final

from idempotent_tasks.clock import SystemClock
from idempotent_tasks.events import Event
from idempotent_tasks.keeper import RENEW_AFTER, Keeper, Term
from idempotent_tasks.stores import Store
from idempotent_tasks.testing import MemoryStore
from tests.support.fast_motion import Hour
from tests.support.guarding import start
from tests.support.stores import FaultyStore

TASKS: Final = 24
LEASE_SECONDS: Final = 30.0
#: Seconds.
BODIES: Final = (1.0, 9.0, 30.0, 600.0)
#: How many claims, and how long a call takes, in seconds.
LOADS: Final = ((1, 0.05), (100, 0.005), (100, 0.05), (1000, 0.005), (1000, 0.05), (1000, 0.1))
LEASES_MEASURED: Final = 2.5


def hour_table() -> None:
    """Print what 24 tasks within an hour cost, by the length of their bodies."""
    say(f"{TASKS} tasks in an hour, lease {LEASE_SECONDS:g} s")
    say(f"{'body':>8} {'renewals a task':>16} {'in the hour':>12} {'writes with claim and commit':>29} {'wake-ups':>9}")
    for body in BODIES:
        hour = Hour(TASKS, body, LEASE_SECONDS)
        renewals = hour.run()
        say(f"{body:>6g} s {renewals / TASKS:>16g} {renewals:>12} {renewals + 2 * TASKS:>29} {hour.wakes:>9}")


def load_table() -> None:
    """Print how late renewals are when many claims that were taken at one moment are kept with a slow store."""
    say(f"\nclaims kept by one process, lease {LEASE_SECONDS:g} s, all claimed at once")
    say(f"{'claims':>8} {'a call takes':>13} {'latest renewal after':>21} {'threads':>8} {'claims that expired':>20}")
    for claims, call_seconds in LOADS:
        latest, threads, expired = measure(claims, call_seconds)
        say(f"{claims:>8} {call_seconds * 1000:>10g} ms {latest:>19.1f} s {threads:>8} {expired:>20}")


@dataclass(frozen=True, kw_only=True, slots=True)
class Kept:
    """What became of claims that were kept for a while."""

    #: The longest time from a claim or a renewal to the next renewal, and the shortest, in seconds.
    latest: float
    earliest: float
    #: How many threads renewed.
    threads: int
    #: How many claims were over when they were renewed.
    expired: int
    #: How long they were kept after the last was claimed, and the process's processor time meanwhile, in seconds.
    seconds: float
    spent: float


def measure(claims: int, call_seconds: float) -> tuple[float, int, int]:
    """Keep so many claims for a while with a store in memory whose renewals take so many seconds.

    Returns:
        The longest time from a claim or a renewal to the next renewal in seconds, how many threads renewed, and how
        many claims were over when they were renewed.
    """
    pause = threading.Event()

    def slow(call: Callable[[], Any]) -> Any:
        pause.wait(call_seconds)
        return call()

    kept = measure_over(FaultyStore(MemoryStore(clock=SystemClock()), renew=repeat(slow)), claims, LEASE_SECONDS)
    assert kept.earliest >= LEASE_SECONDS * RENEW_AFTER  # noqa: S101 - a table of something else would be no use
    return kept.latest, kept.threads, kept.expired


def measure_over(store: Store, claims: int, lease_seconds: float) -> Kept:
    """Keep so many claims in a store for `LEASES_MEASURED` leases, in real time.

    Args:
        store: where.
        claims: how many, all claimed at once.
        lease_seconds: how long each lives without a renewal.
    """
    renewed_at: dict[str, float] = {}
    gaps: list[float] = []
    threads: set[int] = set()

    def observe(event: Event) -> None:
        now = store.clock.now()
        gaps.append(now - renewed_at[event.key])
        renewed_at[event.key] = now
        threads.add(threading.get_ident())

    keeper, term = Keeper(), Term(lease_seconds=lease_seconds, renewed=True, longest_seconds=None)
    with ExitStack() as bodies:
        for key in map(str, range(claims)):
            run = start(store, key, lease_seconds, key=key)
            renewed_at[key] = store.clock.now()
            bodies.enter_context(keeper.keep(run, store, term, observe))
        began, spent_before = time.monotonic(), time.process_time()
        threading.Event().wait(lease_seconds * LEASES_MEASURED)
        seconds, cost = time.monotonic() - began, time.process_time() - spent_before
    return Kept(
        latest=max(gaps),
        earliest=min(gaps),
        threads=len(threads),
        expired=sum(gap > lease_seconds for gap in gaps),
        seconds=seconds,
        spent=cost,
    )


def say(line: str) -> None:
    """Print a line at once."""
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    hour_table()
    if "--quick" not in sys.argv[1:]:
        load_table()
