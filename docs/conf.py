"""The documentation site: ``sphinx-build -W -n --keep-going docs docs/_build``."""

from importlib.metadata import version as version_of
from typing import Any

from docutils import nodes
from sphinx.addnodes import pending_xref
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.ext.napoleon import GoogleDocstring
from sphinx.util.nodes import make_refnode

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
    (r"py:.*", r"idempotent_tasks\.(liveness|result_types\.T|stores\.aws\.Credentials)"),
]

html_theme = "furo"
html_title = f"idempotent_tasks {version}"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_copy_source = False
html_show_copyright = False
html_show_sphinx = False

EVENTS = "idempotent_tasks.events"


def read_google_style(_app: Sphinx, what: str, _name: str, _obj: object, _options: Any, lines: list[str]) -> None:
    """Turn a docstring's sections into fields; napoleon itself would take an attribute's first words for a type."""
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
    if len(found) > 1:
        # Events and the answers of a store share names; only the events mean each other.
        about_events = node.get("py:module") == EVENTS
        found = [(name, entry) for name, entry in found if name.startswith(EVENTS) is about_events]
    if len(found) != 1:
        return None
    ((name, entry),) = found
    return make_refnode(app.builder, node["refdoc"], entry.docname, entry.node_id, content, name)


def setup(app: Sphinx) -> None:
    """Connect the two."""
    app.connect("autodoc-process-docstring", read_google_style)
    app.connect("missing-reference", resolve_short_name)
