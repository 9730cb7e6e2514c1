"""One call under pyperf: ``python -m benchmarks.speed.timed --call NAME``, with the options of a pyperf script.

What is timed is processor time of the process (`time.process_time`), not the time that passes.
"""

import time
from collections.abc import Callable
from typing import Any

import pyperf

from benchmarks.speed.calls import CALLS, Call

__all__: list[str] = []


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

    runner = pyperf.Runner(program_args=("-m", "benchmarks.speed.timed"), add_cmdline_args=pass_on)
    runner.argparser.add_argument("--call", choices=CALLS, required=True)
    options = runner.parse_args()
    runner.metadata["clock"] = "process_time"
    # The main process of pyperf only collects.
    call = CALLS[options.call]() if options.worker else object
    runner.bench_time_func(options.call, timer_of(call))


if __name__ == "__main__":
    main()
