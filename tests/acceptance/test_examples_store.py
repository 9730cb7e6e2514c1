"""The example of a store of one's own: it passes the suite by the command of its README."""

from pathlib import Path

from tests.support.examples import Example


def test_the_store_passes_the_suite(tmp_path: Path) -> None:
    """Nothing fails, and nothing is left out."""
    example = Example("store", tmp_path, {"PYTEST_ADDOPTS": "-p no:cacheprovider"})
    last = example.run("python -m pytest").splitlines()[-1]
    assert " passed in " in last
    assert "skipped" not in last
