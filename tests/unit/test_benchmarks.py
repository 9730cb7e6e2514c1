"""What benchmarks and simulation import: the library, neither what only tests use nor what only the demo ships."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FORBIDDEN = {
    "benchmarks": ("pytest", "tests.support", "idempotent_tasks.demo"),
    "simulation": ("pytest", "tests", "benchmarks", "idempotent_tasks.demo"),
    "tests/testbed": ("pytest", "tests.support", "benchmarks", "idempotent_tasks.demo"),
}


def imports_of(path: Path) -> set[str]:
    """Return the dotted names that a module imports, those of functions included."""
    nodes = list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
    froms = [node for node in nodes if isinstance(node, ast.ImportFrom)]
    names = {f"{node.module}.{alias.name}" for node in froms for alias in node.names}
    return names | {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}


@pytest.mark.parametrize("folder", FORBIDDEN)
def test_what_may_not_be_imported(folder: str) -> None:
    """A benchmark runs where pytest is not installed, and a change of a test's helper changes no benchmark."""
    modules = list((ROOT / folder).rglob("*.py"))
    assert modules
    found = {(path.name, name) for path in modules for name in imports_of(path) if name.startswith(FORBIDDEN[folder])}
    assert not found
