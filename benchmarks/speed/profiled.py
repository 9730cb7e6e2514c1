"""Where the time of one guarded run goes, without a network: ``python -m benchmarks.speed.profiled``."""

import argparse
import cProfile
import pstats
import sys
from collections.abc import Sequence

from benchmarks.speed.calls import guarded

__all__ = ["main"]


def main(arguments: Sequence[str]) -> int:
    """Profile, print the functions that took most, and return 0."""
    options = _parser().parse_args(arguments)
    call = guarded(stock=options.stock)
    call()
    profile = cProfile.Profile()
    with profile:
        for _ in range(options.calls):
            call()
    pstats.Stats(profile).strip_dirs().sort_stats(options.sort).print_stats(options.lines)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="profiled", description=__doc__)
    parser.add_argument("--stock", action="store_true", help="with boto3 sending every request")
    parser.add_argument("--calls", type=int, default=2000)
    parser.add_argument("--sort", choices=("tottime", "cumtime", "ncalls"), default="tottime")
    parser.add_argument("--lines", type=int, default=30, help="how many functions are printed")
    return parser


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
