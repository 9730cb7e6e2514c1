"""What single calls take of a processor, without a network, measured by pyperf.

Run as a module, it is one call under pyperf (``--call NAME`` and the options of a pyperf script). What is timed is
processor time of the process (`time.process_time`), not the time that passes.
"""

import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, Final

import pyperf

from benchmarks.speed.bench import Bench, SpeedError
from benchmarks.speed.calls import CALLS, SIZES, Call
from benchmarks.speed.contenders import names
from benchmarks.speed.rows import Reach, Row, interleaved, rows_of

__all__ = ["measure"]

PROJECT_ROOT: Final = Path(__file__).parents[2]
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
    command = [sys.executable, "-m", "benchmarks.speed.micro", "--call", name, "--processes", "1", "--copy-env"]
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


def timer_of(call: Call) -> Callable[[int], float]:
    """Return what makes a number of calls and returns the processor seconds that they took."""

    def run(loops: int) -> float:
        before = time.process_time()
        for _ in range(loops):
            call()
        return time.process_time() - before

    return run


def main() -> None:
    """Be pyperf's main process, or one of the processes that it starts to measure in."""

    def pass_on(command: list[str], options: Any) -> None:
        command += ["--call", options.call]

    runner = pyperf.Runner(program_args=("-m", "benchmarks.speed.micro"), add_cmdline_args=pass_on)
    runner.argparser.add_argument("--call", choices=CALLS, required=True)
    options = runner.parse_args()
    runner.metadata["clock"] = "process_time"
    # The main process of pyperf only collects.
    call = CALLS[options.call]() if options.worker else object
    runner.bench_time_func(options.call, timer_of(call))


if __name__ == "__main__":
    main()
