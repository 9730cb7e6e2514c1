"""Where the time of one guarded run goes, without a network: ``python -m benchmarks.speed.profiled``."""

import argparse
import cProfile
import pstats
import sys
from collections.abc import Sequence

from benchmarks.speed.calls import guarded
from benchmarks.speed.errors import SpeedError

__all__ = ["main"]


def main(arguments: Sequence[str]) -> int:
    """Profile, and print the functions that took most.

    Returns:
        0, or 2 if the road cannot be stubbed.
    """
    options = _parser().parse_args(arguments)
    try:
        call = guarded(stock=options.stock)
    except SpeedError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    call()
    profile = cProfile.Profile()
    with profile:
        for _ in range(options.calls):
            call()
    pstats.Stats(profile).strip_dirs().sort_stats(options.sort).print_stats(options.lines)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="profiled", description=__doc__)
    parser.add_argument("--stock", action="store_true", help="over boto3, where there is another road")
    parser.add_argument("--calls", type=int, default=2000)
    parser.add_argument("--sort", choices=("tottime", "cumtime", "ncalls"), default="tottime")
    parser.add_argument("--lines", type=int, default=30, help="how many functions are printed")
    return parser


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
