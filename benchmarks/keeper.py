"""What the keeper costs, and how many claims it keeps: ``python -m benchmarks.keeper`` from the project's root.

The first table is counted in fast motion, on a clock that nobody waits for.  The second is measured in real time, with
real threads and a store in memory whose every renewal takes as long as told; ``--quick`` leaves it out.
"""

import sys
import threading
from collections.abc import Callable
from contextlib import ExitStack
from itertools import repeat
from typing import Any, Final

from idempotent_tasks.clock import SystemClock
from idempotent_tasks.events import Event
from idempotent_tasks.keeper import RENEW_AFTER, Keeper, Term
from idempotent_tasks.testing import MemoryStore
from tests.support.fast_motion import Hour
from tests.support.keeping import start
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


def measure(claims: int, call_seconds: float) -> tuple[float, int, int]:
    """Keep so many claims for a while.

    Returns:
        The longest time from a claim or a renewal to the next renewal in seconds, how many threads renewed, and how
        many claims were over when they were renewed.
    """
    clock, pause = SystemClock(), threading.Event()
    renewed_at: dict[str, float] = {}
    gaps: list[float] = []
    threads: set[int] = set()

    def slow(call: Callable[[], Any]) -> Any:
        pause.wait(call_seconds)
        return call()

    def observe(event: Event) -> None:
        now = clock.now()
        gaps.append(now - renewed_at[event.key])
        renewed_at[event.key] = now
        threads.add(threading.get_ident())

    store = FaultyStore(MemoryStore(clock=clock), renew=repeat(slow))
    keeper, term = Keeper(), Term(lease_seconds=LEASE_SECONDS, renewed=True, longest_seconds=None)
    with ExitStack() as bodies:
        for key in map(str, range(claims)):
            run = start(store, key, LEASE_SECONDS, key=key)
            renewed_at[key] = clock.now()
            bodies.enter_context(keeper.keep(run, store, term, observe))
        pause.wait(LEASE_SECONDS * LEASES_MEASURED)
    assert min(gaps) >= LEASE_SECONDS * RENEW_AFTER  # noqa: S101 - a table of something else would be no use
    return max(gaps), len(threads), sum(gap > LEASE_SECONDS for gap in gaps)


def say(line: str) -> None:
    """Print a line at once."""
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    hour_table()
    if "--quick" not in sys.argv[1:]:
        load_table()
