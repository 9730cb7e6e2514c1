"""How late a keeper renews a thousand live claims in a table, and what that takes of one processor."""

from collections.abc import Iterator
from typing import Final

from benchmarks.speed.bench import Bench
from benchmarks.speed.guards import store_at
from benchmarks.speed.renewals import LEASES_MEASURED, measure_over
from benchmarks.speed.rows import Reach, Row
from idempotent_tasks.keeper import LATE_AFTER, RENEW_AFTER

__all__ = ["measure"]

#: Percent of one processor.
MOST_CPU: Final = 5.0


def measure(bench: Bench) -> Iterator[Row]:
    """Yield how late, how busy and how many were lost; once, because every claim is renewed many times in a run."""
    claims, lease = bench.size(1000, 20), float(bench.size(30, 2))
    bench.say(f"keeper: {claims} claims for {lease * LEASES_MEASURED:g} s")
    store = store_at(bench.roto_url, bench.table(bench.roto_url))
    kept = measure_over(store, claims, lease)
    subject = f"{claims:,} claims of {lease:g} s"
    rows = (
        # A third of the lease, and by how much a renewal may be late before another thread helps.
        ("latest renewal", "s", kept.latest, Reach(most=lease * (RENEW_AFTER + LATE_AFTER), binding=False)),
        ("claims that expired", "", kept.expired, Reach(least=0, most=0)),
        ("processor time", "% of a core", kept.spent / kept.seconds * 100, Reach(most=MOST_CPU, binding=False)),
        ("threads", "", kept.threads, None),
    )
    for what, unit, value, reach in rows:
        yield Row(part="keeper", measure=what, subject=subject, unit=unit, values=(value,), reach=reach)
