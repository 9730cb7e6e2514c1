"""Runs the chaos command: ``python -m benchmarks.chaos``."""

import sys

from benchmarks.chaos.command import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
