"""The example of a store of one's own: it passes the suite by the command of its README."""

import re
from pathlib import Path

from tests.support.examples import Example


def test_the_store_passes_the_suite(tmp_path: Path) -> None:
    """Nothing fails, and nothing is left out but steps, which this store does not keep."""
    example = Example("store", tmp_path, {"PYTEST_ADDOPTS": "-p no:cacheprovider -rs"})
    output = example.run("python -m pytest")
    last = output.splitlines()[-1]
    assert re.fullmatch(r"\d+ passed, \d+ skipped in .*", last), last
    reasons = re.findall(r"^SKIPPED .*: (.+)$", output, re.MULTILINE)
    assert set(reasons) == {"this store keeps no steps"}
