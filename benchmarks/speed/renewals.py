"""How late one process renews a thousand live claims in a table, and what that takes of one processor."""

import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Final

from benchmarks.speed.bench import Bench
from benchmarks.speed.calls import store_at
from benchmarks.speed.rows import Reach, Row
from idempotent_tasks import DynamoDBStore
from idempotent_tasks.core.lease import LATE_AFTER, RENEW_AFTER, LeaseRenewer, LeaseTerms, RunContext
from idempotent_tasks.core.records import ClaimRequest, Granted
from idempotent_tasks.core.retry import RetryingStore
from idempotent_tasks.events import Event

__all__ = ["measure"]

LEASES_MEASURED: Final = 2.5
RETENTION_SECONDS: Final = 3600
#: Percent of one processor.
MOST_CPU: Final = 5.0


@dataclass(frozen=True, kw_only=True, slots=True)
class _Kept:
    """What became of claims that were renewed for a while."""

    #: The longest time from a claim or a renewal to the next renewal, in seconds.
    latest: float
    #: How many threads renewed.
    threads: int
    #: How many claims were over when they were renewed.
    expired: int
    #: The process's processor time, in percent of a core.
    cpu: float


def measure(bench: Bench) -> Iterator[Row]:
    """Yield how late, how busy and how many were lost; once, because every claim is renewed many times in a run."""
    claims, lease = bench.size(1000, 20), float(bench.size(30, 2))
    bench.say(f"renewals: {claims} claims for {lease * LEASES_MEASURED:g} s")
    kept = _keep(store_at(bench.roto_url, bench.table(bench.roto_url)), claims, lease)
    subject = f"{claims:,} claims of {lease:g} s"
    rows = (
        # A third of the lease, and by how much a renewal may be late before another thread helps.
        ("latest renewal", "s", kept.latest, Reach(most=lease * (RENEW_AFTER + LATE_AFTER), binding=False)),
        ("claims that expired", "", kept.expired, Reach(least=0, most=0)),
        ("processor time", "% of a core", kept.cpu, Reach(most=MOST_CPU, binding=False)),
        ("threads", "", kept.threads, None),
    )
    for what, unit, value, reach in rows:
        yield Row(part="renewals", measure=what, subject=subject, unit=unit, values=(value,), reach=reach)


def _keep(store: DynamoDBStore, claims: int, lease_seconds: float) -> _Kept:
    """Keep so many claims, all claimed at once, for `LEASES_MEASURED` leases in real time."""
    renewed_at: dict[str, float] = {}
    gaps: list[float] = []
    threads: set[int] = set()

    def observe(event: Event) -> None:
        now = store.clock.now()
        gaps.append(now - renewed_at[event.key])
        renewed_at[event.key] = now
        threads.add(threading.get_ident())

    renewer, term = LeaseRenewer(), LeaseTerms(lease_seconds=lease_seconds, renewed=True, longest_seconds=None)
    with ExitStack() as bodies:
        for key in map(str, range(claims)):
            run = _start(store, key, lease_seconds)
            renewed_at[key] = store.clock.now()
            bodies.enter_context(renewer.renewing(run, store, term, observe))
        began, spent_before = time.monotonic(), time.process_time()
        threading.Event().wait(lease_seconds * LEASES_MEASURED)
        cpu = (time.process_time() - spent_before) / (time.monotonic() - began) * 100
    return _Kept(latest=max(gaps), threads=len(threads), expired=sum(gap > lease_seconds for gap in gaps), cpu=cpu)


def _start(store: DynamoDBStore, key: str, lease_seconds: float) -> RunContext:
    request = ClaimRequest(
        key=key,
        owner=key,
        lease_seconds=lease_seconds,
        retention_seconds=RETENTION_SECONDS,
        task="speed.charge",
        task_id=key,
        worker="celery@speed",
    )
    answer = store.claim(request)
    assert isinstance(answer, Granted)  # noqa: S101 - for the type checker
    return RunContext(answer.claim, RetryingStore(store=store, observe=lambda _: None))
