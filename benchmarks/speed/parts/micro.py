"""What single calls take of a processor, without a network, measured by pyperf."""

import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, Final

import pyperf

from benchmarks.speed.bench import Bench
from benchmarks.speed.calls import CALLS, SIZES
from benchmarks.speed.contenders import names
from benchmarks.speed.errors import SpeedError
from benchmarks.speed.rounds import interleaved
from benchmarks.speed.rows import Reach, Row, rows_of

__all__ = ["measure"]

PROJECT_ROOT: Final = Path(__file__).parents[3]
CPU: Final = "processor time of a call"
MICROSECONDS: Final = 1_000_000
#: What is divided by what, and where it is to lie.
RATIOS: Final = (
    ("guarded run", "two stock update_item", 0.5),
    ("guarded run", "Powertools", None),
    ("guarded run over boto3", "two stock update_item", None),
    ("key of 1 MB, one field", "json.dumps of 1 MB", None),
    *((f"key of {size}, all of it", f"json.dumps of {size}", None) for size in SIZES),
    ("digest of 1 MB, all of it", "json.dumps of 1 MB", 2.0),
)


def measure(bench: Bench) -> Iterator[Row]:
    """Yield the processor time of each call, and the ratios that matter."""
    calls = [name for name in CALLS if name != "Powertools" or names("powertools")]
    suites = interleaved(bench.rounds, {name: partial(_run, bench, name) for name in calls})
    taken = {name: [{CPU: median(run.get_values()) * MICROSECONDS} for run in runs] for name, runs in suites.items()}
    if bench.pyperf:
        # Afterwards, because it changes the first run of each.
        pyperf.BenchmarkSuite([_merged(runs) for runs in suites.values()]).dump(str(bench.pyperf), replace=True)
    yield from rows_of("micro", taken, {CPU: "µs"})
    yield from _ratios(taken)


def _run(bench: Bench, name: str, number: int) -> Any:
    """Have pyperf measure one call in a process of its own, and return its benchmark."""
    bench.say(f"micro: round {number + 1} of {bench.rounds}, {name}")
    report = bench.folder / f"{name.replace(' ', '-')}.{number}.json"
    command = [sys.executable, "-m", "benchmarks.speed.timed", "--call", name, "--processes", "1", "--copy-env"]
    command += ["--values", str(bench.size(5, 2)), "--quiet", "--output", str(report)]
    ended = subprocess.run(command, cwd=PROJECT_ROOT, capture_output=True, text=True, check=False)  # noqa: S603
    if ended.returncode:
        raise SpeedError(f"{name} cannot be measured: {ended.stderr.strip().rpartition(chr(10))[2]}")
    return pyperf.Benchmark.load(str(report))


def _merged(runs: Sequence[Any]) -> Any:
    whole, *others = runs
    for each in others:
        whole.add_runs(each)
    return whole


def _ratios(taken: Mapping[str, Sequence[Mapping[str, float]]]) -> Iterator[Row]:
    for name, base, most in RATIOS:
        if name in taken and base in taken:
            yield Row(
                part="micro",
                measure=f"{CPU}, by that of {base}",
                subject=name,
                unit="x",
                values=tuple(ours[CPU] / theirs[CPU] for ours, theirs in zip(taken[name], taken[base], strict=True)),
                reach=None if most is None else Reach(most=most),
            )
