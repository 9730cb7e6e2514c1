"""What the speed command measures of a worker: work that was done, and no work that failed."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.speed.bench import Bench, SpeedError
from benchmarks.speed.calls import store_at
from benchmarks.speed.contenders import CHARGE
from benchmarks.speed.worker import running
from idempotent_tasks.core.records import Status


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    """Yield what the parts are given."""
    with Bench.opened(tmp_path, rounds=1, quick=True, say=print) as opened:
        yield opened


def test_bare_requests_write_what_a_guarded_run_writes(bench: Bench) -> None:
    """Or the rate of two requests would be that of two refusals."""
    table = bench.table(bench.roto_url)
    with running(bench.place("bare", bench.roto_url, table), processes=1) as worker:
        worker.run(CHARGE, "A-1")
    assert store_at(bench.roto_url, table, stock=True).get("bare#A-1").status is Status.COMPLETED


def test_task_that_fails_is_no_measurement(bench: Bench) -> None:
    """Tasks that fail can be faster than those that do their work."""
    nowhere = bench.place("bare", "http://127.0.0.1:1", "none")
    with running(nowhere, processes=1) as worker, pytest.raises(SpeedError, match=r"bare failed: ConnectionRefused"):
        worker.run(CHARGE, "A-1")
