"""The documents that describe the code name all of it, and the pictures are of their sources."""

import inspect
import pkgutil
import re
import subprocess
import sys
import tomllib
from dataclasses import fields
from hashlib import sha256
from importlib import import_module
from pathlib import Path
from types import ModuleType

import pytest

import idempotent_tasks
from idempotent_tasks import Idempotency, IdempotencyError, events, settings
from idempotent_tasks.cli.format import STATES

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
DIAGRAMS = DOCS / "diagrams"
REFERENCE = "\n".join(page.read_text(encoding="utf-8") for page in (DOCS / "reference").glob("*.md"))
AUTODOC = re.compile(r"^\.\. auto(?:module|class|function|data):: ([\w.]+)", re.MULTILINE)
WRITTEN = re.compile(r"^\.\. py:class:: ([\w.]+)\((.*)\)$", re.MULTILINE)
#: A step of a walk through the code: a file of the package, and what of it is entered.
STEP = re.compile(r"`([\w/]+)\.py`\s+`([\w.]+)`")
#: Of the table of settings or of options: name, default, meaning.
ROW = re.compile(r"^\| `(\w+)` \| (\S+) \| (.+) \|$", re.MULTILINE)
#: What `pip install idempotent-tasks` does not bring.
EXTRAS = (
    "django",
    "eventlet",
    "fastapi",
    "gevent",
    "opentelemetry",
    "prometheus_client",
    "pydantic",
    "redis",
    "rich",
    "sqlalchemy",
)
IMPORTING = f"""
import pkgutil, sys
for name in {EXTRAS}:
    sys.modules[name] = None
for name in sys.argv[1:]:
    pkgutil.resolve_name(name)
"""


@pytest.mark.parametrize("source", sorted(DIAGRAMS.glob("*.mmd")), ids=lambda source: source.stem)
def test_a_picture_is_of_its_source(source: Path) -> None:
    """The picture names the digest of the source and the style; `scripts/diagrams` renders it again."""
    drawn_from = [source, DIAGRAMS / "config.json", DIAGRAMS / "style.css"]
    digest = sha256(b"".join(path.read_bytes() for path in drawn_from)).hexdigest()
    first_line, _, _ = source.with_suffix(".svg").read_text(encoding="utf-8").partition("\n")
    assert first_line == f"<!-- of {source.name} {digest} -->"


def test_every_picture_has_a_source_and_is_shown() -> None:
    """No SVG is left behind by a source that is gone, or made for no page."""
    pages = "\n".join(page.read_text(encoding="utf-8") for page in DOCS.rglob("*.md"))
    for picture in DIAGRAMS.glob("*.svg"):
        assert picture.with_suffix(".mmd").exists()
        assert f"diagrams/{picture.name})" in pages


def test_every_page_is_of_one_kind() -> None:
    """A reader who knows what they want finds each page under it; nothing but the home page lies beside."""
    kinds = {"contributing", "explanation", "how-to", "reference", "tutorial"}
    pages = {path.relative_to(DOCS) for path in DOCS.rglob("*.md") if "_build" not in path.parts}
    assert {page.parts[0] for page in pages} == kinds | {"index.md"}


def test_no_page_offers_a_file_for_download() -> None:
    """A link to a file that is no page would copy that file into the site; the repository's host shows it instead."""
    for page in DOCS.rglob("*.md"):
        linked = re.findall(r"(?<!!)\[[^\]]*\]\((?!https?:|#)([^)#\s]+)", page.read_text(encoding="utf-8"))
        assert [each for each in linked if not each.endswith(".md")] == [], page


def test_what_the_host_is_said_to_show_is_in_the_repository() -> None:
    """Each address of a file or folder of the repository names one that exists."""
    shown = re.compile(r"https://github\.com/idempotent-tasks/idempotent-tasks/(?:blob|tree)/main/([^)\s\"#>]+)")
    named = {name for page in DOCS.rglob("*.md") for name in shown.findall(page.read_text(encoding="utf-8"))}
    assert len(named) > 20
    # The package may be an installed one, and not beside the tests.
    package = Path(idempotent_tasks.__file__).parent
    places = {name: package.parent if name.startswith(f"{package.name}/") else ROOT for name in sorted(named)}
    assert [name for name, place in places.items() if not (place / name).exists()] == []


def test_no_page_asks_an_index_for_what_it_does_not_have() -> None:
    """Until the package is published, README and home page alone say how it will be installed, and say when."""
    asked = re.compile(r"^.*pip install[^\n]*idempotent[-_]tasks.*$", re.MULTILINE)
    pages = {
        path: asked.findall(path.read_text(encoding="utf-8")) for path in [ROOT / "README.md", *DOCS.rglob("*.md")]
    }
    found = {path.name: lines for path, lines in pages.items() if lines}
    assert set(found) == {"README.md", "index.md"}
    assert [line for lines in found.values() for line in lines if "once published" not in line] == []


def test_the_versions_page_has_every_extra() -> None:
    """Whoever installs an extra finds what it brings."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    page = (DOCS / "reference" / "versions.md").read_text(encoding="utf-8")
    rows = " ".join(re.findall(r"^\| (`.+?) \| ", page, re.MULTILINE))
    assert set(project["optional-dependencies"]) - set(re.findall(r"`(\w+)`", rows)) == set()


def test_the_reference_has_every_public_name() -> None:
    """Each name of the package is documented by itself, or is an error, all of which one module holds."""
    documented = {name.rpartition(".")[2] for name in AUTODOC.findall(REFERENCE)}
    whole_modules = {"Record", "Status"}  # with all of idempotent_tasks.core.records
    for name in idempotent_tasks.__all__:
        thing = getattr(idempotent_tasks, name)
        is_error = isinstance(thing, type) and issubclass(thing, IdempotencyError)
        assert is_error or name in documented | whole_modules, name


def test_the_reference_has_every_event() -> None:
    """Each kind of event is documented by itself."""
    documented = set(AUTODOC.findall(REFERENCE))
    assert {f"{events.__name__}.{kind.__name__}" for kind in events.KINDS} - documented == set()


def test_the_incident_page_has_every_event() -> None:
    """Whoever reads a log finds each line's first word, or among those of level DEBUG."""
    page = (DOCS / "how-to" / "incidents.md").read_text(encoding="utf-8")
    named = {words.split()[0] for words in re.findall(r"`([^`\n]+)`", page)}
    assert {kind.__name__.lower() for kind in events.KINDS} - named == set()


@pytest.fixture
def tables(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """What writes the tables of the reference."""
    monkeypatch.syspath_prepend(DOCS)
    return import_module("tables")


def test_the_tables_of_settings_and_options_are_complete(tables: ModuleType) -> None:
    """Each setting and each option has a row with its default and its meaning, in a table that a page shows."""
    own, options = (ROW.findall(write()) for write in tables.TABLES.values())
    assert [name for name, _, _ in own] == [setting.key for setting in settings.SETTINGS]
    assert [name for name, _, _ in options] == [field.name for field in fields(Idempotency)]
    assert {'`"warn"`', "`10_000`", "none"} <= {default for _, default, _ in own}
    wait = 'how long ``on_busy="wait"`` waits, in seconds'
    assert ("wait_timeout", "`10`", wait) in options
    (disabled,) = (meaning for name, _, meaning in own if name == "idempotency_disabled")
    assert disabled.endswith("; the environment's `IDEMPOTENCY_DISABLED` counts before it")
    assert [name for name in tables.TABLES if f"```{{table-of}} {name}\n```" not in REFERENCE] == []


def test_the_options_of_a_task_are_shown_with_their_defaults(tables: ModuleType) -> None:
    """The reference spells out a signature that the class leaves open, and the options in the table alone."""
    assert tables.signature().startswith(
        "(*, key=None, validate=None, downstream=None, prefix=None, expires=3600, unresolved_for="
    )
    shown = tables.without_arguments(inspect.cleandoc(Idempotency.__doc__ or ""))
    assert "max_crashes" not in shown
    assert "Raises:\n    ConfigurationError: " in shown


def test_the_reference_needs_no_extra() -> None:
    """Every module that the reference reads can be imported with nothing but what the package asks for."""
    command = [sys.executable, "-c", IMPORTING, *AUTODOC.findall(REFERENCE)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("named", WRITTEN.findall(REFERENCE), ids=lambda named: named[0])
def test_what_the_reference_writes_by_hand_is_what_is_there(named: tuple[str, str]) -> None:
    """A class whose module needs an extra is written with its signature, since the site is built without extras."""
    pytest.importorskip(named[0].split(".")[2])
    shown = inspect.signature(pkgutil.resolve_name(named[0]))
    bare = [parameter.replace(annotation=inspect.Parameter.empty) for parameter in shown.parameters.values()]
    written = inspect.signature(eval(f"lambda {named[1]}: None"))
    assert list(written.parameters.values()) == bare


def test_the_walks_name_what_is_there() -> None:
    """Each function that a walk through the code names is in its file."""
    page = (DOCS / "contributing" / "architecture.md").read_text(encoding="utf-8")
    steps = STEP.findall(page)
    assert len(steps) > 30
    for path, name in steps:
        module = "idempotent_tasks." + path.replace("/", ".")
        assert pkgutil.resolve_name(f"{module}:{name}"), (path, name)


def test_the_page_of_the_commands_has_every_state() -> None:
    """The words of the command line, in its order, with its own meaning of each."""
    page = (DOCS / "reference" / "commands.md").read_text(encoding="utf-8")
    section = page.partition("## States")[2].partition("\n## ")[0]
    assert dict(re.findall(r"^\| `(\w+)` \| (.+) \|$", section, re.MULTILINE)) == STATES
