"""The documentation site: ``sphinx-build -W -n --keep-going docs docs/_build``."""

import sys
from importlib.metadata import version as version_of
from pathlib import Path
from typing import Any

from docutils import nodes
from sphinx.addnodes import pending_xref
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.ext.napoleon import GoogleDocstring
from sphinx.util.docutils import SphinxDirective
from sphinx.util.nodes import make_refnode

sys.path.insert(0, str(Path(__file__).parent))
import tables

project = "idempotent_tasks"
author = "the authors of idempotent_tasks"
version = release = version_of("idempotent-tasks")

extensions = ["myst_parser", "sphinx.ext.autodoc"]
exclude_patterns = ["_build"]
myst_heading_anchors = 3

default_role = "py:obj"
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
# Nothing is fetched while the site is built: names of other projects are shown, not linked.
nitpick_ignore_regex = [
    (r"py:.*", r"(boto3|botocore|celery|collections|dataclasses|datetime|enum|kombu|typing)\..*"),
    # Internals that docstrings name.
    (r"py:.*", r"idempotent_tasks\.core\.(processes|encoding\.T|receipts\.Receipts|records\.Reserver|steps\.T)"),
    (r"py:.*", r"idempotent_tasks\.core\.retry\.RetryingStore"),
    (r"py:.*", r"idempotent_tasks\.stores\.aws\.Credentials"),
]

html_theme = "furo"
html_title = f"idempotent_tasks {version}"
html_theme_options = {
    "source_repository": "https://github.com/idempotent-tasks/idempotent-tasks",
    "source_branch": "main",
    "source_directory": "docs/",
    "top_of_page_buttons": ["view"],
}
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_copy_source = False
html_show_copyright = False
html_show_sphinx = False

EVENTS = "idempotent_tasks.events"
OPTIONS = "idempotent_tasks.Idempotency"


class TableOf(SphinxDirective):
    """A table that is written from the code: ``settings`` or ``options``."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        """Return the table."""
        self.env.note_reread()
        return self.parse_text_to_nodes(tables.TABLES[self.arguments[0]]())


def write_signature(_app: Sphinx, _what: str, name: str, *_rest: Any) -> tuple[str, None] | None:
    """Show the options of a task with their defaults."""
    return (tables.signature(), None) if name == OPTIONS else None


def read_google_style(_app: Sphinx, what: str, name: str, _obj: object, _options: Any, lines: list[str]) -> None:
    """Turn a docstring's sections into fields; napoleon itself would take an attribute's first words for a type."""
    if name == OPTIONS:
        # The table of options says it.
        lines[:] = tables.without_arguments("\n".join(lines)).splitlines()
    if what not in {"attribute", "property"}:
        lines[:] = GoogleDocstring(lines, what=what).lines()


def resolve_short_name(
    app: Sphinx, env: BuildEnvironment, node: pending_xref, content: nodes.TextElement
) -> nodes.reference | None:
    """Link a name that a docstring gives without its module, if one documented object is meant."""
    if node.get("refdomain") != "py":
        return None
    python = env.domains.python_domain
    found = python.find_obj(env, None, None, node["reftarget"], None, searchmode=1)
    # What the package exports is known under the name of its module too.
    found = [(name, entry) for name, entry in found if not entry.aliased]
    if len(found) > 1:
        # Events and the answers of a store share names; only the events mean each other.
        about_events = node.get("py:module") == EVENTS
        found = [(name, entry) for name, entry in found if name.startswith(EVENTS) is about_events]
    if len(found) != 1:
        return None
    ((name, entry),) = found
    return make_refnode(app.builder, node["refdoc"], entry.docname, entry.node_id, content, name)


def setup(app: Sphinx) -> None:
    """Connect them."""
    app.add_directive("table-of", TableOf)
    app.connect("autodoc-process-signature", write_signature)
    app.connect("autodoc-process-docstring", read_google_style)
    app.connect("missing-reference", resolve_short_name)
