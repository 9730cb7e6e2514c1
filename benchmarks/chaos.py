"""The chaos command: one seeded storm of kills over six ways to guard a Celery task; ``--help`` says the rest."""

import runpy
import sys
from pathlib import Path

# Started by its path, this file has its own folder on the path of imports, where the packages are not.
sys.path[0] = str(Path(__file__).resolve().parents[1])

if __name__ == "__main__":
    runpy.run_module("benchmarks.storm", run_name="__main__", alter_sys=True)
