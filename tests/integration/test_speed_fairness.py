"""What the speed command measures of a flood's neighbours: that they run, and before it where they have priority."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.speed.bench import Bench
from benchmarks.speed.fairness import DELIVERIES, LONGEST, MEDIAN, Case, Site, sample


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    """Yield what the parts are given."""
    with Bench.opened(tmp_path, rounds=1, quick=True, say=print) as opened:
        yield opened


@pytest.mark.parametrize("case", [Case(priorities=True), Case(own_queue=True)], ids=["priorities", "own queue"])
def test_others_run_beside_a_flood(bench: Bench, case: Case) -> None:
    """Each of the flood's messages is put off, and all others are over; so small a flood is no measurement."""
    site = Site(broker="Redis", table=bench.table(bench.ministack_url))
    measured = sample(bench, site, "flooded", case, 0)
    assert measured[DELIVERIES] > 1
    assert 0 < measured[MEDIAN] <= measured[LONGEST]
