"""The speed command: reads the options, measures part after part, and writes the reports that were asked for."""

import argparse
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

from rich.console import Console

from benchmarks.command import add_files, unwinding_on_signals, write
from benchmarks.speed import contenders
from benchmarks.speed.bench import Bench, SpeedError
from benchmarks.speed.report import Report, draw_picture, machine
from benchmarks.speed.rows import Row, failed
from tests.testbed.servers import MissingServiceError

__all__ = ["main"]

#: The module and function of each part, in the order of the report; imported only where it is measured, because some
#: need a package of their own.
PARTS: Final = {
    "requests": ("deliveries", "requests"),
    "throughput": ("deliveries", "throughput"),
    "micro": ("micro", "measure"),
    "imports": ("imports", "measure"),
    "start": ("start", "measure"),
    "memory": ("deliveries", "memory"),
    "renewals": ("renewals", "measure"),
    "flood": ("flood", "measure"),
    "fairness": ("fairness", "measure"),
    "deferrals": ("flood", "deferrals"),
    "crowd": ("crowd", "measure"),
}

#: Exit codes.
REACHED, MISSED, UNMEASURED = 0, 1, 2
ROUNDS, QUICK_ROUNDS = 5, 1


def main(arguments: Sequence[str]) -> int:
    """Measure and report.

    Returns:
        0 if every reach that binds was reached, 1 if one was not, 2 if a part could not be measured.
    """
    options = _parser().parse_args(arguments)
    console = Console()
    report, unmeasured = _measure(options, Console(stderr=True))
    report.show(console)
    write(options, report, draw_picture)
    if failed(report.rows):
        return MISSED
    return UNMEASURED if unmeasured else REACHED


def _measure(options: argparse.Namespace, progress: Console) -> tuple[Report, bool]:
    rounds = options.rounds or (QUICK_ROUNDS if options.quick else ROUNDS)
    shape, rows, missing = machine(), list[Row](), list[str]()
    with ExitStack() as stack:
        stack.enter_context(unwinding_on_signals())
        folder = Path(stack.enter_context(TemporaryDirectory(prefix="idempotent-tasks-speed-")))
        opened = Bench.opened(
            folder,
            rounds=rounds,
            quick=options.quick,
            say=lambda text: progress.print(text, style="dim", highlight=False),
            pyperf=options.pyperf and options.pyperf.resolve(),
        )
        bench = stack.enter_context(opened)
        for name in options.only:
            try:
                module, function = PARTS[name]
                rows += getattr(import_module(f"benchmarks.speed.{module}"), function)(bench)
            except (SpeedError, MissingServiceError, ModuleNotFoundError, TimeoutError) as error:
                missing.append(f"{name}: {error}")
    notes = (*missing, *_absent())
    return Report(machine=shape, rounds=rounds, quick=options.quick, rows=tuple(rows), notes=notes), bool(missing)


def _absent() -> list[str]:
    if contenders.names("powertools"):
        return []
    return ["Powertools, whose package aws-lambda-powertools is not installed"]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="speed", description=__doc__)
    parser.add_argument("--rounds", type=_positive, metavar="N", help=f"{ROUNDS} by default, {QUICK_ROUNDS} if quick")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS), metavar="PART")
    parser.add_argument("--quick", action="store_true", help="small sizes: shows that it works, and no figure")
    add_files(parser, everything="everything that was measured", tables="the tables", picture="the contenders")
    parser.add_argument("--pyperf", type=Path, metavar="FILE", help="write the single calls for pyperf's own commands")
    return parser


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("at least 1")
    return number


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
